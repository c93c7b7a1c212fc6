// The main loop for tensor cores on sm_80 and later: mma.sync with f32 accumulators, ldmatrix, cp.async in four stages. For
// bf16 and f16; and, where both operands run along the depth, for f32 as TF32, which keeps 10 bits of each factor and must be
// asked for.
//
// A tile is 128 vectors of A by 128 vectors of B, 64 bytes deep. Eight warps share all vectors of A and have 16 vectors of B
// each, so that a tile with fewer rows skips whole 16-row fragments in every warp alike. How a step of an operand lies in
// shared memory, and how it gets there, is the operand's (mma_operands.cuh).
//
// Barriers: one __syncthreads a step, after each thread has waited for its own copies of the stage that is read next;
// the same barrier says that the stage before it is free to be filled. One before the first step and one after the last, because
// the products of a tile leave through the same shared memory.
#pragma once

#include "../abi.h"
#include "../device/ptx.cuh"
#include "mma_operands.cuh"
#include "product_tile.cuh"

namespace da_moe {

// d += a · b on the tensor cores.
template <class S>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
__device__ __forceinline__ void mma<bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    ptx::mma_bf16(d, a, b);
}
template <>
__device__ __forceinline__ void mma<float>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    const uint32_t rounded_a[4] = {ptx::round_tf32(a[0]), ptx::round_tf32(a[1]), ptx::round_tf32(a[2]),
                                   ptx::round_tf32(a[3])};
    const uint32_t rounded_b[2] = {ptx::round_tf32(b[0]), ptx::round_tf32(b[1])};
    ptx::mma_tf32(d, rounded_a, rounded_b);
}
template <>
__device__ __forceinline__ void mma<f16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    ptx::mma_f16(d, a, b);
}

// ALIGNED: every row of both operands starts at a multiple of 16 bytes, and so can be copied in the background.
template <bool ALIGNED, class SourceA, class SourceB>
class MmaLoop {
public:
    using Storage = typename SourceA::Element;
    static constexpr int WARPS = 8;
    static constexpr int THREADS = WARPS * WARP;
    static constexpr int ROW_STEP = 16;
    static constexpr int TILE_ROWS = GEMM_TILE;
    static constexpr int TILE_COLUMNS = GEMM_TILE;
    // Elements of one step of the depth.
    static constexpr int STEP = MMA_STEP_BYTES / static_cast<int>(sizeof(Storage));
    using Products = ProductTile<TILE_ROWS, TILE_COLUMNS>;

    __device__ __forceinline__ explicit MmaLoop(unsigned char* shared)
        : shared_(shared), address_(ptx::shared_address(shared)) {}

    // The products of a tile with so many rows stay in the registers of the block.
    __device__ __forceinline__ void run(const SourceA& from_a, const SourceB& from_b, int rows, int depth) {
        // A warp whose vectors of B are not there multiplies nothing.
        fragments_ = warp_index() * 16 < from_b.vectors() ? (rows + ROW_STEP - 1) / ROW_STEP : 0;
        MmaOperand<ALIGNED, SourceA> a(from_a, shared_, address_, depth);
        MmaOperand<ALIGNED, SourceB> b(from_b, shared_ + OPERAND_BYTES, address_ + OPERAND_BYTES, depth);
#pragma unroll
        for (int f = 0; f < FRAGMENTS; f++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                products_[f][0][i] = 0.0f;
                products_[f][1][i] = 0.0f;
            }
        }
        const int steps = (depth + STEP - 1) / STEP;
        // Past the last step an empty group keeps the count of groups in step.
        const auto fill = [&](int step) {
            if (step < steps) {
                a.fill(step % STAGES * STAGE_BYTES, step);
                b.fill(step % STAGES * STAGE_BYTES, step);
            }
            ptx::cp_async_commit();
        };
        // No thread may fill a stage from which another still writes the tile before.
        __syncthreads();
        for (int step = 0; step < STAGES - 1; step++) {
            fill(step);
        }
        for (int step = 0; step < steps; step++) {
            ptx::cp_async_wait<STAGES - 2>();
            __syncthreads();
            fill(step + STAGES - 1);
            multiply(a, b, step % STAGES * STAGE_BYTES);
        }
        ptx::cp_async_wait<0>();
        __syncthreads();
    }

    // Hands over the products, and with them the shared memory that the stages were in.
    __device__ __forceinline__ Products products() {
        Products products(reinterpret_cast<float*>(shared_));
#pragma unroll
        for (int f = 0; f < FRAGMENTS; f++) {
            const int row = f * ROW_STEP + lane_index() / 4;
            const int column = warp_index() * 16 + lane_index() % 4 * 2;
#pragma unroll
            for (int part = 0; part < 2; part++) {
                const float(&of_part)[4] = products_[f][part];
                products.put(row, column + part * 8, of_part[0], of_part[1]);
                products.put(row + 8, column + part * 8, of_part[2], of_part[3]);
            }
        }
        return products;
    }

private:
    static constexpr int STAGES = 4;
    static constexpr int FRAGMENTS = TILE_ROWS / ROW_STEP;
    static constexpr int OPERAND_BYTES = TILE_ROWS * MMA_STEP_BYTES;
    static constexpr int STAGE_BYTES = 2 * OPERAND_BYTES;

    static_assert(STAGES * STAGE_BYTES == GEMM_SHARED_BYTES, "what the launch gives a block");
    static_assert(Products::BYTES <= GEMM_SHARED_BYTES, "the products take the place of the stages");

    template <class A, class B>
    __device__ __forceinline__ void multiply(const A& a, const B& b, int stage) {
#pragma unroll
        for (int k = 0; k < MMA_STEP_BYTES / 32; k++) {
            uint32_t of_b[4];
            b.fragment_of_b(of_b, stage, warp_index() * 16, k);
            const uint32_t halves[2][2] = {{of_b[0], of_b[1]}, {of_b[2], of_b[3]}};
#pragma unroll
            for (int f = 0; f < FRAGMENTS; f++) {
                if (f < fragments_) {
                    uint32_t of_a[4];
                    a.fragment_of_a(of_a, stage, f * ROW_STEP, k);
                    mma<Storage>(products_[f][0], of_a, halves[0]);
                    mma<Storage>(products_[f][1], of_a, halves[1]);
                }
            }
        }
    }

    unsigned char* shared_;
    uint32_t address_;
    int fragments_ = 0;
    float products_[FRAGMENTS][2][4];
};

}  // namespace da_moe
