// elect.sync: one lane of a warp, the same in every election of a launch, and in every launch another.
#include "collective.h"
#include "emulator/ptx.h"

namespace emu {

namespace {

void elect(Warp& warp, void** records, uint32_t mask) {
    unsigned rank = Random(warp.block->machine->seed).below(static_cast<unsigned>(__builtin_popcount(mask)));
    for (; rank > 0; rank--) {
        mask &= mask - 1;
    }
    *static_cast<bool*>(records[__builtin_ctz(mask)]) = true;
}

}  // namespace

bool elect_sync(Location here) {
    bool elected = false;
    warp_collective(current(), "elect.sync", FULL_MASK, &elected, elect, here, site_of(__builtin_return_address(0)));
    return elected;
}

}  // namespace emu
