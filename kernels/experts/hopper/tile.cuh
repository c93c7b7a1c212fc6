// Sizes of a Hopper product, and what lies where in a block's shared memory.
//
// A cluster of two blocks has a unit: up to 256 rows of one expert by 256 columns. Each block has up to 128 of the rows, A, and both
// have all that the columns are multiplied with, B, of which each fetches one half for both. A step is 64 elements of the depth.
// Two warpgroups multiply 64 rows each; a third brings the steps into a ring of stages.
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

// Rows of A that one warpgroup multiplies, and of a block.
constexpr int WARPGROUP_ROWS = 64;
constexpr int BLOCK_ROWS = 2 * WARPGROUP_ROWS;
// Columns of a unit. When gated, the first half of them are the gate's, the second those of the up projection for the same columns.
constexpr int COLUMNS = HOPPER_TILE_COLUMNS;
constexpr int HALF_COLUMNS = COLUMNS / 2;
constexpr int DEPTH = 64;
// Elements in 16 bytes.
constexpr int PIECE = 8;

constexpr int ROW_BYTES = DEPTH * 2;
constexpr int PIECES = ROW_BYTES / 16;
constexpr int A_BYTES = BLOCK_ROWS * ROW_BYTES;
constexpr int B_BYTES = COLUMNS * ROW_BYTES;
constexpr int HALF_B_BYTES = B_BYTES / 2;
constexpr int STAGE_BYTES = A_BYTES + B_BYTES;

// A plane is what one copy of TMA takes: 64 rows of 128 bytes. Each multiplying warpgroup has some for its way out.
constexpr int PLANE_BYTES = 64 * ROW_BYTES;
constexpr int BARRIERS_AT = HOPPER_SHARED_BYTES - 128;

// Where piece `piece` of row `row` lies.
__device__ __forceinline__ int swizzled(int row, int piece) { return row * ROW_BYTES + ((piece ^ (row % 8)) << 4); }

// An operand of a wgmma, 16 elements deep, of what starts at a shared address; `k` counts 16 elements of the step. Either its rows run along
// the depth, eight of them in 1024 bytes; or ACROSS it, 64 columns by 64 of the depth in a plane.
template <bool ACROSS>
__device__ __forceinline__ uint64_t descriptor(uint32_t address, int k) {
    constexpr uint64_t eight_rows = 8 * ROW_BYTES / 16, swizzle_128 = 1;
    constexpr uint64_t to_next_plane = ACROSS ? PLANE_BYTES / 16 : 0;
    constexpr int step = ACROSS ? 16 * ROW_BYTES : 16 * 2;
    const uint32_t start = (address + static_cast<uint32_t>(k * step)) >> 4;
    return start | to_next_plane << 16 | eight_rows << 32 | swizzle_128 << 62;
}

// The same in all lanes of a warp, and known to the compiler as such.
__device__ __forceinline__ int uniform(int value) { return __shfl_sync(FULL_WARP, value, 0); }

}  // namespace da_moe::hopper
