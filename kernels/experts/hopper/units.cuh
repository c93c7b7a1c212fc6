// Which unit of a product a cluster computes next, and which rows of it each block and warpgroup has.
//
// Units are numbered expert by expert. Within an expert, bands of 8 units come one after the other, within a band its columns, and
// within those the units: clusters that run at the same time share weights, and what the rows of a band and a few columns take has
// room in L2. Of n clusters each takes every n-th unit, so that which it gets depends on nothing but the offsets.
#pragma once

#include "experts/hopper/kind.cuh"
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
    // Those of its rows that the cluster has.
    Segment rows;

    // Rows of one of a cluster's blocks. What is left of an expert is divided so that all end together: a warpgroup multiplies 64
    // rows or none.
    template <int BLOCKS>
    __device__ __forceinline__ Segment of_block(int rank) const {
        constexpr int HALVES = BLOCKS * WARPGROUP_ROWS;
        const int of_each = (rows.count + HALVES - 1) / HALVES * WARPGROUP_ROWS;
        return part(rows, rank * of_each, of_each);
    }
};

__device__ __forceinline__ Segment of_warpgroup(const Segment& of_block, int warpgroup) {
    return part(of_block, warpgroup * WARPGROUP_ROWS, WARPGROUP_ROWS);
}

// Warpgroups of a block that have rows.
__device__ __forceinline__ int warpgroups(const Segment& of_block) {
    return (of_block.count + WARPGROUP_ROWS - 1) / WARPGROUP_ROWS;
}

template <class K>
class Units {
public:
    __device__ __forceinline__ explicit Units(const GroupedGemm& p)
        : p_(p),
          experts_(p, blockIdx.x / K::Way::BLOCKS, gridDim.x / K::Way::BLOCKS),
          columns_((p.columns + WIDTH - 1) / WIDTH) {}

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

    __device__ __forceinline__ int depth(const Unit&) const { return p_.depth; }

private:
    static constexpr int UNIT_ROWS = K::Way::BLOCKS * BLOCK_ROWS;
    static constexpr int WIDTH = K::GATED ? HALF_COLUMNS : COLUMNS;

    const GroupedGemm& p_;
    ExpertTiles<UNIT_ROWS> experts_;
    const int columns_;
};

}  // namespace da_moe::hopper
