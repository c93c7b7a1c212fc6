// SPEC §5: the two products of every routed row, `a = act(W_in x + b_in)` and `o = W_out a + b_out`, over ragged groups.
//
//   grouped_gemm_{bf16,f16}_{plain,gated}[_any]   tensor cores, f32 accumulators; `_any` for rows at any address
//   grouped_gemm_tf32_{plain,gated}[_any]         the same for f32 rows, 10 bits of each factor: only where asked for
//   grouped_gemm_f32_{plain,gated}                f32 products and sums
//   grouped_gemm_f32_plain_{bf16,f16}_rows        the same for 16-bit rows of A and f32 weights: a router kept in f32
//
// The first product gathers the rows of x by token while it loads them and applies bias and activation on its way out, the
// gate and the up projection of a column in one tile; the second one is `plain` without an activation.
//
// Persistent: grid (blocks that fit the device), block 256; a block takes tile after tile from the scheduler, which reads
// the plan's offsets on the device. Products per tile are added in the order of the depth, whatever block computes it.
//
// Roles: on tensor cores all eight warps load, and divide a tile of 128 rows and 256 columns two by four; in f32 a thread has
// 8 × 8 products of a tile of 128 × 128. Barriers of a tile: one before its first step; one a step (32 elements of the depth
// on tensor cores, 16 of TF32 and in f32), which guards a ring of four stages, of two in f32; on tensor cores one after the
// last; and for each half of its rows one between the products' way into shared memory and out of it, and one after that.
// experts/portable/mma_loop.cuh and experts/f32/f32_loop.cuh say what each guards.
//
// Operations: 2·depth·columns (twice that when gated) a row, in steps of 16 rows; bytes: weights of every expert that has
// rows, rows of A and of the output; of L2: both factors of every tile.
// For marin (T 8192, 16384 rows, D 2048, F 3072, swiglu, 8 experts) the cost model (`da-moe plan`) has these floors of an H100,
// in ms: bytes at 3 TB/s; bytes of every tile at the 5.5 TB/s of L2; wavefronts of shared memory; instructions of the main
// loop; operations at the 62% of 800 TFLOP/s that mma.sync is said to reach, and at 60 TFLOP/s in f32. Nothing is measured.
//
//                 memory      L2   banks   issue   units
//   W_in, bf16      0.12    0.90    0.74    0.54    0.83
//   W_out, bf16     0.09    0.45    0.37    0.27    0.42
//   W_in, f32       0.25    2.38    7.33    8.16    6.87
//   W_out, f32      0.18    1.20    3.66    4.08    3.44

#include "experts/f32/f32_loop.cuh"
#include "experts/grouped.cuh"
#include "experts/portable/mma_loop.cuh"

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
