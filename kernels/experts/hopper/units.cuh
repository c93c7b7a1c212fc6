// Which unit of a product a cluster computes next, and which rows of it each block and warpgroup has.
//
// Units are numbered expert by expert. Within an expert, bands of 8 units come one after the other, within a band its columns, and
// within those the units: clusters that run at the same time share weights, and what the rows of a band and a few columns take has
// room in L2. Of n clusters each takes every n-th unit, so that which it gets depends on nothing but the offsets.
#pragma once

#include "experts/hopper/tile.cuh"
#include "experts/scheduler.cuh"

namespace da_moe::hopper {

constexpr int BAND = 8;

// Of these rows up to `most`, from the `skip`-th on.
__device__ __forceinline__ Segment part(const Segment& rows, int skip, int most) {
    return {rows.first + skip, max(min(rows.count - skip, most), 0)};
}

struct Unit {
    int expert;
    // First column of the output.
    int column;
    Segment rows;

    // Rows of one block of the cluster. What is left of an expert is divided so that both end together: a warpgroup multiplies 64
    // rows or none.
    __device__ __forceinline__ Segment of_block(int rank) const {
        const int first = (rows.count + UNIT_ROWS / 2 - 1) / (UNIT_ROWS / 2) * WARPGROUP_ROWS;
        return rank == 0 ? part(rows, 0, first) : part(rows, first, BLOCK_ROWS);
    }
};

__device__ __forceinline__ Segment of_warpgroup(const Segment& of_block, int warpgroup) {
    return part(of_block, warpgroup * WARPGROUP_ROWS, WARPGROUP_ROWS);
}

// Warpgroups of a block that have rows.
__device__ __forceinline__ int warpgroups(const Segment& of_block) {
    return (of_block.count + WARPGROUP_ROWS - 1) / WARPGROUP_ROWS;
}

template <bool GATED>
class Units {
public:
    __device__ __forceinline__ explicit Units(const GroupedGemm& p)
        : experts_(p, blockIdx.x / BLOCKS, gridDim.x / BLOCKS), columns_((p.columns + WIDTH - 1) / WIDTH) {}

    // False when no unit is left. Called by whole warps, which all get the same answer.
    __device__ __forceinline__ bool next(Unit& unit) {
        ExpertTile at;
        if (!experts_.next(columns_, at)) {
            return false;
        }
        const int units = ExpertTiles<UNIT_ROWS>::of(at.rows);
        const int of_band = BAND * columns_;
        const int first = at.index / of_band * BAND;
        const int in_band = min(units - first, BAND);
        const int index = at.index % of_band;
        const int row = (first + index % in_band) * UNIT_ROWS;
        unit = {at.expert, index / in_band * WIDTH, part(at.rows, row, UNIT_ROWS)};
        return true;
    }

private:
    static constexpr int WIDTH = GATED ? HALF_COLUMNS : COLUMNS;

    ExpertTiles<UNIT_ROWS> experts_;
    const int columns_;
};

}  // namespace da_moe::hopper
