// What of a product is known when it is compiled: what it multiplies, and the way in which it is run.
#pragma once

#include "experts/hopper/tile.cuh"

namespace da_moe::hopper {

// The way. Others are there to be timed beside it.
struct Usual {
    // Of a cluster: each fetches its part of B for all.
    static constexpr int BLOCKS = 2;
    // Whether blocks tell where their clocks go.
    static constexpr bool CLOCKED = false;
    // Whether the second warpgroup starts one step after the first, so that one multiplies while the other leaves.
    static constexpr bool SKEWED = false;
};
struct Clocked : Usual {
    static constexpr bool CLOCKED = true;
};
struct Alone : Usual {
    static constexpr int BLOCKS = 1;
};
struct Skewed : Usual {
    static constexpr bool SKEWED = true;
};

struct Unit;
template <class K>
class Units;

// Rows by their expert's weights. GATHERED: rows of A are found by token. ACROSS: those of B run across the depth.
template <class StorageType, bool IS_GATED, bool IS_GATHERED, bool IS_ACROSS, class WayOfIt>
struct Kind {
    using Storage = StorageType;
    using Way = WayOfIt;
    using Unit = hopper::Unit;
    using Units = hopper::Units<Kind>;
    static constexpr bool GATED = IS_GATED;
    static constexpr bool GATHERED = IS_GATHERED;
    static constexpr bool A_ACROSS = false;
    static constexpr bool B_ACROSS = IS_ACROSS;
    // Of the ring, and planes of a warpgroup: what they leave.
    static constexpr int STAGES = 4;
    static constexpr int PLANES = (BARRIERS_AT - STAGES * STAGE_BYTES) / (2 * PLANE_BYTES);
    // Whether there are units without a step.
    static constexpr bool MAY_BE_EMPTY = false;
    static_assert(PLANES == 2 && BARRIERS_AT + 2 * STAGES * 8 <= HOPPER_SHARED_BYTES, "as the host asks for");
};

}  // namespace da_moe::hopper
