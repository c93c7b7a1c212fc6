// Which tile of the grouped product a block computes next, read off the plan's offsets on the device.
//
// Tiles are numbered expert by expert, within an expert column by column and within a column row by row, so that blocks
// that run at the same time share weights. A block takes every gridDim.x-th tile. A tile knows how many rows it has, and the
// main loops multiply no more than those: an expert's last tile costs what it needs, and an expert without rows has no tile.
#pragma once

#include "abi.h"
#include "device/warp.cuh"

namespace da_moe {

// Rows of the plan that one expert has. Offsets are not trusted with memory: rows end where their room does.
struct Segment {
    int first;
    int count;
};

__device__ __forceinline__ Segment segment(const int32_t* offsets, int rows, int expert) {
    if (offsets == nullptr) {
        return {0, rows};
    }
    const int first = offsets[expert];
    const int end = max(min(offsets[expert + 1], rows), 0);
    return {first, first < 0 ? 0 : max(end - first, 0)};
}

// Rows that part `index` has, where each has `share` of them.
__device__ __forceinline__ Segment share(int rows, int share, int index) {
    const int first = min(index * share, rows);
    return {first, min(rows - first, share)};
}

struct Tile {
    int expert;
    // First row of the plan, and how many of the expert's rows from there on are in the tile.
    int row;
    int rows;
    // First column of the output.
    int column;
};

// A tile among those of its expert.
struct ExpertTile {
    int expert;
    Segment rows;
    int index;
};

// Walks over the tiles of all experts, as many for each as its rows need times a number of columns: the `first`-th, and every
// `step`-th from there.
template <int TILE_ROWS>
class ExpertTiles {
public:
    __device__ __forceinline__ ExpertTiles(const GroupedGemm& p, unsigned first, unsigned step)
        : p_(p), next_(first), step_(step) {}

    // False when no tile is left. Called by whole warps, which all get the same answer.
    __device__ __forceinline__ bool next(int columns, ExpertTile& tile) {
        while (group_ < p_.experts) {
            const Segment rows = rows_of(group_ + lane_index());
            const int tiles = of(rows) * columns;
            int through = tiles;
#pragma unroll
            for (int distance = 1; distance < WARP; distance *= 2) {
                const int before = __shfl_up_sync(FULL_WARP, through, distance);
                through += lane_index() >= distance ? before : 0;
            }
            const unsigned holds = __ballot_sync(FULL_WARP, next_ < static_cast<unsigned>(through));
            if (holds != 0) {
                const int lane = __ffs(static_cast<int>(holds)) - 1;
                const int first = __shfl_sync(FULL_WARP, through - tiles, lane);
                const Segment of_tile = {__shfl_sync(FULL_WARP, rows.first, lane), __shfl_sync(FULL_WARP, rows.count, lane)};
                tile = {group_ + lane, of_tile, static_cast<int>(next_) - first};
                next_ += step_;
                return true;
            }
            next_ -= __shfl_sync(FULL_WARP, through, WARP - 1);
            rows_before_group_ = __shfl_sync(FULL_WARP, rows.first + rows.count, WARP - 1);
            group_ += WARP;
        }
        return false;
    }

    // Tiles that rows need.
    __device__ __forceinline__ static int of(const Segment& rows) { return (rows.count + TILE_ROWS - 1) / TILE_ROWS; }

private:
    // The rows of each lane's expert, none past the last. One that ends before an earlier one has none: no row is of two
    // experts, whatever the offsets are.
    __device__ __forceinline__ Segment rows_of(int expert) const {
        int end = rows_before_group_;
        if (expert < p_.experts) {
            end = max(end, p_.offsets == nullptr ? p_.rows : min(p_.offsets[expert + 1], p_.rows));
        }
#pragma unroll
        for (int distance = 1; distance < WARP; distance *= 2) {
            const int before = __shfl_up_sync(FULL_WARP, end, distance);
            end = lane_index() >= distance ? max(end, before) : end;
        }
        const int before = __shfl_up_sync(FULL_WARP, end, 1);
        const int first = lane_index() == 0 ? rows_before_group_ : before;
        return {first, end - first};
    }

    const GroupedGemm& p_;
    // The next tile, counted from the first of the group of 32 experts that is looked at.
    unsigned next_;
    const unsigned step_;
    // Of the group of 32 experts that is looked at, the first, and the rows before it.
    int group_ = 0;
    int rows_before_group_ = 0;
};

// The tiles of a block, column by column and within a column row by row.
template <int TILE_ROWS, int TILE_COLUMNS>
class TileScheduler {
public:
    __device__ __forceinline__ explicit TileScheduler(const GroupedGemm& p)
        : experts_(p, blockIdx.x, gridDim.x), column_tiles_((p.columns + TILE_COLUMNS - 1) / TILE_COLUMNS) {}

    // As `ExpertTiles::next`.
    __device__ __forceinline__ bool next(Tile& tile) {
        ExpertTile at;
        if (!experts_.next(column_tiles_, at)) {
            return false;
        }
        const int tiles = ExpertTiles<TILE_ROWS>::of(at.rows);
        const int row = at.index % tiles * TILE_ROWS;
        tile = {at.expert, at.rows.first + row, min(at.rows.count - row, TILE_ROWS), at.index / tiles * TILE_COLUMNS};
        return true;
    }

private:
    ExpertTiles<TILE_ROWS> experts_;
    const int column_tiles_;
};

}  // namespace da_moe
