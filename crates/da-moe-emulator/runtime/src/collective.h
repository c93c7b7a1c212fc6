// The meeting of a warp's lanes in one operation.
#pragma once

#include "machine.h"

namespace emu {

// Runs once, in the lane that comes last, with the records of all lanes of the mask.
using CollectiveAction = void (*)(Warp& warp, void** records, uint32_t mask);

void warp_collective(Thread& self, const char* name, uint32_t mask, void* record, CollectiveAction action,
                     Location here, Site site);

// Four whole warps make a warpgroup: fails in any other.
void check_warpgroup(Thread& self, const char* name, Site site);

// Everything the lanes know and have done up to now.
Knowledge release_lanes(Warp& warp, uint32_t mask);

}  // namespace emu
