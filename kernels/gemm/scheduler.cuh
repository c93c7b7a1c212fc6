// Which tile of the grouped product a block computes next, read off the plan's offsets on the device.
//
// Tiles are numbered expert by expert, within an expert column by column and within a column row by row, so that blocks
// that run at the same time share weights. A block takes every gridDim.x-th tile. A tile knows how many rows it has, and the
// main loops multiply no more than those: an expert's last tile costs what it needs, and an expert without rows has no tile.
#pragma once

#include "../abi.h"
#include "../device/warp.cuh"

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

template <int TILE_ROWS, int TILE_COLUMNS>
class TileScheduler {
public:
    __device__ __forceinline__ explicit TileScheduler(const GroupedGemm& p)
        : p_(p), column_tiles_((p.columns + TILE_COLUMNS - 1) / TILE_COLUMNS), next_(blockIdx.x) {}

    // False when no tile is left. Called by whole warps, which all get the same answer.
    __device__ __forceinline__ bool next(Tile& tile) {
        while (group_ < p_.experts) {
            const int expert = group_ + lane_index();
            const int tiles = expert < p_.experts ? row_tiles(rows_of(expert)) * column_tiles_ : 0;
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
                tile = place(group_ + lane, static_cast<int>(next_) - first);
                next_ += gridDim.x;
                return true;
            }
            next_ -= __shfl_sync(FULL_WARP, through, WARP - 1);
            group_ += WARP;
        }
        return false;
    }

private:
    __device__ __forceinline__ Segment rows_of(int expert) const { return segment(p_.offsets, p_.rows, expert); }

    __device__ __forceinline__ static int row_tiles(const Segment& rows) {
        return (rows.count + TILE_ROWS - 1) / TILE_ROWS;
    }

    __device__ __forceinline__ Tile place(int expert, int tile) const {
        const Segment rows = rows_of(expert);
        const int tiles = row_tiles(rows);
        const int row = tile % tiles * TILE_ROWS;
        return {expert, rows.first + row, min(rows.count - row, TILE_ROWS), tile / tiles * TILE_COLUMNS};
    }

    const GroupedGemm& p_;
    const int column_tiles_;
    // The next tile, counted from the first of the group of 32 experts that is looked at.
    unsigned next_;
    int group_ = 0;
};

}  // namespace da_moe
