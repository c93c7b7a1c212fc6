// Sizes of a Hopper product, and what lies where in a block's shared memory.
//
// A cluster of two blocks has a unit: up to 256 rows of one expert by 256 rows of weights. Each block has up to 128 of the rows,
// A, and both have all of the weights, B, of which each fetches one half for both. A step is 64 elements of the depth: 128 bytes of
// every row. Two warpgroups multiply 64 rows each; a third brings the steps into a ring of four stages.
//
// Rows of 128 bytes lie one after the other, the 16-byte pieces of row r exchanged by xor with r mod 8: what TMA and wgmma call
// the 128-byte swizzle. It goes by address, so that everything starts at a multiple of 1024.
#pragma once

#include "abi.h"
#include "device/ptx_sm90.cuh"
#include "device/storage.cuh"
#include "device/warp.cuh"

namespace da_moe::hopper {

constexpr int WARPGROUP = 128;
constexpr int BLOCKS = 2;
constexpr int STAGES = 4;

// Rows of A that one warpgroup multiplies, of a block, and of a unit.
constexpr int WARPGROUP_ROWS = 64;
constexpr int BLOCK_ROWS = 2 * WARPGROUP_ROWS;
constexpr int UNIT_ROWS = BLOCKS * BLOCK_ROWS;
// Rows of B. When gated, the first half of them are the gate's, the second those of the up projection for the same columns.
constexpr int COLUMNS = HOPPER_TILE_COLUMNS;
constexpr int HALF_COLUMNS = COLUMNS / 2;
constexpr int DEPTH = 64;
// Elements of a row in 16 bytes.
constexpr int PIECE = 8;

constexpr int ROW_BYTES = DEPTH * 2;
constexpr int PIECES = ROW_BYTES / 16;
constexpr int A_BYTES = BLOCK_ROWS * ROW_BYTES;
constexpr int B_BYTES = COLUMNS * ROW_BYTES;
constexpr int STAGE_BYTES = A_BYTES + B_BYTES;

// A plane is what one store takes: 64 rows of 128 bytes. Each warpgroup has two.
constexpr int PLANE_BYTES = WARPGROUP_ROWS * ROW_BYTES;
constexpr int PLANES = 2;
constexpr int BARRIERS_AT = STAGES * STAGE_BYTES + 2 * PLANES * PLANE_BYTES;
static_assert(BARRIERS_AT + 2 * STAGES * 8 == HOPPER_SHARED_BYTES, "as the host asks for");

// Where piece `piece` of row `row` lies.
__device__ __forceinline__ int swizzled(int row, int piece) { return row * ROW_BYTES + ((piece ^ (row % 8)) << 4); }

// The operand of a wgmma, 16 elements deep, whose rows of a step start at a shared address; `k` counts 16 elements of the step.
// Rows run along the depth, and eight of them are 1024 bytes.
__device__ __forceinline__ uint64_t descriptor(uint32_t address, int k) {
    constexpr uint64_t eight_rows = 8 * ROW_BYTES / 16, swizzle_128 = 1;
    const uint32_t start = (address >> 4) + static_cast<uint32_t>(k * 16 * 2 / 16);
    return start | eight_rows << 32 | swizzle_128 << 62;
}

// The same in all lanes of a warp, and known to the compiler as such.
__device__ __forceinline__ int uniform(int value) { return __shfl_sync(FULL_WARP, value, 0); }

}  // namespace da_moe::hopper
