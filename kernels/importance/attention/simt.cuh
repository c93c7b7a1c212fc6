// Scores of f32 queries and keys in f32, without tensor cores, whose products of f32 are shorter ones.
//
// A thread has 8 rows and 8 columns, so that 16 reads of 16 bytes feed 256 products and sums. The eight lanes that share
// rows read the same piece of them, and pieces of eight neighbouring columns: no bank is asked twice.
#pragma once

#include "importance/attention/tile.cuh"

namespace da_moe {

struct Simt {
    using Storage = float;
    static constexpr int CHUNKS = 0;
    static constexpr int PIECES = 4;
    static constexpr int CHUNK = PIECES * 4;
    static constexpr int STEP = 4;
    static constexpr int R = 8;
    static constexpr int C = 8;
    static constexpr int LANES = 8;

    float sums[R][C];

    __device__ __forceinline__ static int row(int r) { return warp_index() * WARP + r * 4 + lane_index() / 8; }
    __device__ __forceinline__ static int column(int c) { return c * 8 + lane_index() % 8; }
    __device__ __forceinline__ float score(int r, int c) const { return sums[r][c]; }

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int r = 0; r < R; r++) {
#pragma unroll
            for (int c = 0; c < C; c++) {
                sums[r][c] = 0.0f;
            }
        }
    }

    __device__ __forceinline__ static float4 read(const uint4* tile, int row, int piece) {
        return reinterpret_cast<const float4*>(tile)[piece_at<PIECES>(row, piece)];
    }

    __device__ __forceinline__ void multiply(const uint4* tile, const uint4* walk, int chunk, int width) {
        const int pieces = min((width - chunk * CHUNK + STEP - 1) / STEP, PIECES);
#pragma unroll 1
        for (int piece = 0; piece < pieces; piece++) {
            float4 a[R];
#pragma unroll
            for (int r = 0; r < R; r++) {
                a[r] = read(tile, row(r), piece);
            }
#pragma unroll
            for (int c = 0; c < C; c++) {
                const float4 b = read(walk, column(c), piece);
#pragma unroll
                for (int r = 0; r < R; r++) {
                    sums[r][c] += a[r].x * b.x;
                    sums[r][c] += a[r].y * b.y;
                    sums[r][c] += a[r].z * b.z;
                    sums[r][c] += a[r].w * b.w;
                }
            }
        }
    }
};

}  // namespace da_moe
