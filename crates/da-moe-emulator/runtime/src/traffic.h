// How the accesses of a warp lie in memory: wavefronts of shared memory, sectors of global memory.
//
// Lanes are fibres that run one after the other, so what the hardware sees as one access comes here as up to 32. They
// are put together by the place in the code and by how many times the lane has been there since all lanes of the warp
// met for the last time. In code that does not diverge that is exact, whatever the schedule. Where lanes go round a loop
// in different rounds, as in `for (...) if (mine) x = s[i];`, accesses count as one although the hardware makes several:
// a lower bound.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "report.h"

namespace emu {

constexpr unsigned WARP = 32;

enum class Space : uint8_t { Shared, Global };

// A warp's lanes at one instruction: `at[lane]` for those in `lanes`, all of as many bytes.
struct WarpAccess {
    uintptr_t at[WARP];
    uint32_t lanes;
    uint32_t bytes;
};

// In the order of `Traffic` in Rust.
struct TrafficTotals {
    uint64_t global_read_bytes, global_written_bytes;
    uint64_t background_bytes;
    uint64_t global_sectors;
    uint64_t wavefronts, ideal_wavefronts;
};

// Of one place in the code. In the order of `emulator_shared_place` in Rust.
struct SharedPlace {
    uint64_t accesses, wavefronts, ideal_wavefronts;
};

// What a device counts, if it was told to.
class Traffic {
public:
    bool counting = false;
    TrafficTotals totals = {};

    void add(Space space, Site site, const WarpAccess& access);
    // The place that has lost the most wavefronts but for `rank` others; false if there are not so many.
    bool place(size_t rank, Site& site, SharedPlace& counts) const;

private:
    std::unordered_map<Site, SharedPlace> places;
};

// A warp's accesses that its lanes have made one by one.
class WarpTraffic {
public:
    // An access of one lane, of any size.
    __attribute__((noinline)) void add(Space space, Site site, unsigned lane, uintptr_t address, size_t bytes);
    // All lanes have met: what they have done is counted.
    void close(Traffic& traffic);
    void clear();

private:
    struct Place {
        Space space = Space::Shared;
        Site site = 0;
        uint32_t times[WARP] = {};         // that each lane was here
        std::vector<WarpAccess> accesses;  // the first time, the second and so on
    };

    std::unordered_map<uint64_t, Place> places;
    std::vector<Place*> open;
};

}  // namespace emu
