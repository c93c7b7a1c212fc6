// The tile scheduler of the grouped product, alone: which rows and columns it hands out, and how many rows are paid for.

#include "gemm/mma_loop.cuh"
#include "gemm/scheduler.cuh"

// `covered[row, column tile]` counts the tiles that hold a row; `paid` the rows that are multiplied, in whole steps.
extern "C" __global__ void schedule(const int32_t* offsets, int32_t rows, int32_t experts, int32_t columns,
                                    int32_t* covered, unsigned long long* paid) {
    using namespace da_moe;
    using Loop = MmaLoop<bf16, false, true>;
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
        if (lane_index() == 0) {
            const int steps = (tile.rows + Loop::ROW_STEP - 1) / Loop::ROW_STEP;
            atomicAdd(paid, static_cast<unsigned long long>(steps * Loop::ROW_STEP));
        }
    }
}
GPU_KERNEL(schedule)
