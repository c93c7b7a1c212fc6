// Scores of 16-bit queries and keys by mma.sync m16n8k16, f32 sums.
//
// A warp has 32 rows of the own tile and meets all 64 columns: 2 × 8 products of 16 × 8, 64 sums a thread. Up to CHUNKS
// chunks of 64 elements the own rows stay in registers for the whole walk; wider ones (CHUNKS = 0) are read from shared
// memory beside what they meet, in chunks of 32.
#pragma once

#include "importance/attention/tile.cuh"

namespace da_moe {

__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bf16) {
    ptx::mma_bf16(d, a, b);
}
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], f16) {
    ptx::mma_f16(d, a, b);
}

template <class S, int CHUNKS_>
struct TensorCore {
    using Storage = S;
    // Chunks of the width that stay in registers; 0: none does.
    static constexpr int CHUNKS = CHUNKS_;
    static constexpr int PIECES = CHUNKS > 0 ? 8 : 4;
    static constexpr int CHUNK = PIECES * PIECE_BYTES / static_cast<int>(sizeof(S));
    // One product's depth.
    static constexpr int STEP = 16;
    static constexpr int STEPS = CHUNK / STEP;
    // Rows and columns of a thread, and neighbouring lanes that share rows.
    static constexpr int R = 4;
    static constexpr int C = 16;
    static constexpr int LANES = 4;

    uint32_t own[CHUNKS > 0 ? CHUNKS : 1][CHUNKS > 0 ? STEPS : 1][R / 2][4];
    float sums[R / 2][C / 2][4];

    __device__ __forceinline__ static int row(int r) { return warp_index() * WARP + r * 8 + lane_index() / 4; }
    __device__ __forceinline__ static int column(int c) { return c / 2 * 8 + lane_index() % 4 * 2 + c % 2; }
    __device__ __forceinline__ float score(int r, int c) const { return sums[r / 2][c / 2][r % 2 * 2 + c % 2]; }

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int m = 0; m < R / 2; m++) {
#pragma unroll
            for (int n = 0; n < C / 2; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    sums[m][n][i] = 0.0f;
                }
            }
        }
    }

    // The warp's 32 rows, 16 elements of them.
    __device__ __forceinline__ static void load_own(uint32_t (&to)[R / 2][4], const uint4* tile, int step) {
#pragma unroll
        for (int m = 0; m < R / 2; m++) {
            const int row = warp_index() * WARP + m * 16 + lane_index() % 16;
            ptx::ldmatrix_x4(to[m], ptx::shared_address(tile + piece_at<PIECES>(row, 2 * step + lane_index() / 16)));
        }
    }

    // A chunk of the own tile into registers.
    __device__ __forceinline__ void keep(const uint4* tile, int chunk, int width) {
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            if (chunk * CHUNK + step * STEP < width) {
                load_own(own[chunk][step], tile, step);
            }
        }
    }

    // Adds a chunk's products: `walk` is met by the rows kept, or by those of `tile`.
    __device__ __forceinline__ void multiply(const uint4* tile, const uint4* walk, int chunk, int width) {
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            if (chunk * CHUNK + step * STEP >= width) {
                continue;
            }
            uint32_t(&a)[R / 2][4] = own[CHUNKS > 0 ? chunk : 0][CHUNKS > 0 ? step : 0];
            if constexpr (CHUNKS == 0) {
                load_own(a, tile, step);
            }
#pragma unroll
            for (int n = 0; n < C / 2; n += 2) {
                const int row = n * 8 + lane_index() % 8 + lane_index() / 16 * 8;
                const int piece = 2 * step + lane_index() / 8 % 2;
                uint32_t b[4];
                ptx::ldmatrix_x4(b, ptx::shared_address(walk + piece_at<PIECES>(row, piece)));
                const uint32_t left[2] = {b[0], b[1]};
                const uint32_t right[2] = {b[2], b[3]};
#pragma unroll
                for (int m = 0; m < R / 2; m++) {
                    multiply_add(sums[m][n], a[m], left, S());
                    multiply_add(sums[m][n + 1], a[m], right, S());
                }
            }
        }
    }
};

}  // namespace da_moe
