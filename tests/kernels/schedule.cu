// The schedulers of the grouped products, alone: which rows and columns they hand out.

#include "experts/portable/mma_loop.cuh"
#include "experts/operands.cuh"
#include "experts/scheduler.cuh"
#include "experts/weight_output.cuh"

// `covered[row, column tile]` counts the tiles that hold a row.
extern "C" __global__ void schedule(const int32_t* offsets, int32_t rows, int32_t experts, int32_t columns,
                                    int32_t* covered) {
    using namespace da_moe;
    using Loop = MmaLoop<true, RowsOfA<bf16>, RowsOfB<bf16, false>>;
    GroupedGemm p = {};
    p.offsets = offsets;
    p.rows = rows;
    p.experts = experts;
    p.columns = columns;
    const int column_tiles = (columns + Loop::TILE_COLUMNS - 1) / Loop::TILE_COLUMNS;
    TileScheduler<Loop::TILE_ROWS, Loop::TILE_COLUMNS> scheduler(p);
    Tile tile;
    while (scheduler.next(tile)) {
        for (int i = lane_index(); i < tile.rows; i += WARP) {
            atomicAdd(&covered[(tile.row + i) * column_tiles + tile.column / Loop::TILE_COLUMNS], 1);
        }
    }
}
GPU_KERNEL(schedule)

// One block a tile of the gradients. `covered[expert, row tile, column tile]` counts the blocks that have it.
extern "C" __global__ void weight_schedule(const int32_t* offsets, int32_t rows, int32_t experts, int32_t left,
                                           int32_t right, int32_t* covered) {
    using namespace da_moe;
    using Loop = MmaLoop<true, RoutedRows<bf16>, RoutedRows<bf16>>;
    WeightGradient p = {};
    p.offsets = offsets;
    p.rows = rows;
    p.experts = experts;
    p.left.columns = left;
    p.right.columns = right;
    const WeightTile tile = weight_tile<Loop::TILE_ROWS, Loop::TILE_COLUMNS>(p, static_cast<int>(blockIdx.x));
    if (threadIdx.x == 0) {
        const int row_tiles = (left + Loop::TILE_ROWS - 1) / Loop::TILE_ROWS;
        const int column_tiles = (right + Loop::TILE_COLUMNS - 1) / Loop::TILE_COLUMNS;
        const int row = tile.expert * row_tiles + tile.row / Loop::TILE_ROWS;
        atomicAdd(&covered[row * column_tiles + tile.column / Loop::TILE_COLUMNS], 1);
    }
}
GPU_KERNEL(weight_schedule)
