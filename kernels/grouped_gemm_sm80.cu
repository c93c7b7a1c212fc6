// SPEC §5: the two products of every routed row, `a = act(W_in x + b_in)` and `o = W_out a + b_out`, over ragged groups.
//
//   grouped_gemm_{bf16,f16}_{plain,gated}[_any]   tensor cores, f32 accumulators; `_any` for rows at any address
//   grouped_gemm_tf32_{plain,gated}[_any]         the same for f32 rows, 10 bits of each factor: only where asked for
//   grouped_gemm_f32_{plain,gated}                f32 products and sums
//   grouped_gemm_f32_plain_{bf16,f16}_rows        the same for 16-bit rows of A and f32 weights: a router kept in f32
//
// The first product gathers the rows of x by token while it loads them and applies bias and activation in registers, the
// gate and the up projection of a column in one thread; the second one is `plain` without an activation.
//
// Persistent: grid (blocks that fit the device), block 256; a block takes tile after tile from the scheduler, which reads
// the plan's offsets on the device. Products per tile are added in the order of the depth, whatever block computes it.
//
// Roles: on tensor cores all eight warps load, share a tile's 128 rows and have 16 of its columns each; in f32 a thread has
// 4 × 4 products of a tile of 64 × 64. Barriers of a tile on tensor cores: one before its first step, one a step (32
// elements of the depth, 16 of TF32), which guards a ring of four stages, one after the last, one between the products' way
// into shared memory and out of it; in f32 two a step of 16 and that last one. gemm/mma_loop.cuh and gemm/f32_loop.cuh say
// what each guards.
//
// Operations: 2·depth·columns (twice that when gated) a row, in steps of 16 rows, of 4 in f32; bytes: weights of every
// expert that has rows, rows of A and of the output; floor: the larger of operations over the units' rate and bytes over
// bandwidth. For marin (16384 rows, D 2048, F 3072, swiglu, 8 experts) in bf16: 0.42 ms and 0.21 ms at 989 TFLOP/s, 0.67 and
// 0.34 ms at the 62% of them that mma.sync is said to reach on Hopper, the 0.64 GB of both 0.2 ms at 3 TB/s; in f32 6.2 ms
// and 3.1 ms at 67 TFLOP/s.

#include "gemm/f32_loop.cuh"
#include "gemm/grouped.cuh"
#include "gemm/mma_loop.cuh"

namespace da_moe {
namespace {

template <class S, bool GATED, bool ALIGNED>
__device__ __forceinline__ void on_tensor_cores(const GroupedGemm& p, unsigned char* shared) {
    using A = RowsOfA<S>;
    using B = RowsOfB<S, GATED>;
    grouped_gemm<MmaLoop<ALIGNED, A, B>, A, B>(p, shared);
}

template <class S, bool GATED>
__device__ __forceinline__ void in_f32(const GroupedGemm& p) {
    using A = RowsOfA<S>;
    using B = RowsOfB<float, GATED>;
    using Loop = F32Loop<A, B>;
    F32_SHARED(shared, Loop);
    grouped_gemm<Loop, A, B>(p, shared);
}

}  // namespace
}  // namespace da_moe

// One block a multiprocessor: half of its registers are products.
#define MMA_GEMM(storage, name, gated, aligned)                                                    \
    extern "C" __global__ void __launch_bounds__(256, 1)                           \
        grouped_gemm_##name(const __grid_constant__ GroupedGemm p) {                               \
        DYN_SMEM(shared, 128);                                                                     \
        da_moe::on_tensor_cores<storage, gated, aligned>(p, shared);                               \
    }                                                                                              \
    GPU_KERNEL(grouped_gemm_##name)

MMA_GEMM(da_moe::bf16, bf16_plain, false, true)
MMA_GEMM(da_moe::bf16, bf16_gated, true, true)
MMA_GEMM(da_moe::bf16, bf16_plain_any, false, false)
MMA_GEMM(da_moe::bf16, bf16_gated_any, true, false)
MMA_GEMM(da_moe::f16, f16_plain, false, true)
MMA_GEMM(da_moe::f16, f16_gated, true, true)
MMA_GEMM(da_moe::f16, f16_plain_any, false, false)
MMA_GEMM(da_moe::f16, f16_gated_any, true, false)
MMA_GEMM(float, tf32_plain, false, true)
MMA_GEMM(float, tf32_gated, true, true)
MMA_GEMM(float, tf32_plain_any, false, false)
MMA_GEMM(float, tf32_gated_any, true, false)

#define F32_GEMM(rows, name, gated)                                                                \
    extern "C" __global__ void __launch_bounds__(256, 2)                                           \
        grouped_gemm_##name(const __grid_constant__ GroupedGemm p) {                               \
        da_moe::in_f32<rows, gated>(p);                                                            \
    }                                                                                              \
    GPU_KERNEL(grouped_gemm_##name)

F32_GEMM(float, f32_plain, false)
F32_GEMM(float, f32_gated, true)
F32_GEMM(da_moe::bf16, f32_plain_bf16_rows, false)
F32_GEMM(da_moe::f16, f32_plain_f16_rows, false)
