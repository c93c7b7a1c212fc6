// SPEC §6: the products of rows on the way back, `da = W_outᵀ dy_t` and `dx = W_inᵀ dh`, over the same ragged groups as the
// way forward; and `dx = W_rᵀ dz` of the router. Weights are read across their rows: no transposed copy is made.
//
//   grouped_gemm_{bf16,f16}_dh[_any]          da, and from it dh, g·a and parts of dg (gemm/hidden_gradient.cuh)
//   grouped_gemm_{bf16,f16}_nn[_any]          out = A B; `_any` for rows at any address
//   grouped_gemm_f32_dh, grouped_gemm_f32_nn  f32 products and sums
//   grouped_gemm_f32_nn_{bf16,f16}_weights    the same for f32 rows of A and 16-bit weights: logits are f32 always
//
// Persistent: grid (blocks that fit the device), block 256, roles and barriers as in grouped_gemm_sm80.cu, whose scheduler
// and main loops these are. Sums are in the order of the depth, whatever block computes them.
// Operations: 2·depth·columns a row, in steps of 16 rows, of 4 in f32; bytes: weights of every expert that has rows, rows of
// A and of the output, for `dh` also h, dh and g·a; floor: the larger of operations over the units' rate and bytes over
// bandwidth. For marin (16384 rows, D 2048, F 3072, swiglu) in bf16: da 0.21 ms and dx 0.42 ms at 989 TFLOP/s, 0.34 and
// 0.67 ms at the 62% of them that mma.sync is said to reach on Hopper; their bytes 0.3 and 0.2 ms at 3 TB/s.

#include "gemm/f32_loop.cuh"
#include "gemm/grouped.cuh"
#include "gemm/mma_loop.cuh"

#define MMA_BACK(storage, name, product, Parameters, aligned)                                      \
    extern "C" __global__ void __launch_bounds__(256, 1)                           \
        grouped_gemm_##name(const __grid_constant__ Parameters p) {                                \
        DYN_SMEM(shared, 128);                                                                     \
        using A = da_moe::RowsOfA<storage>;                                                        \
        using B = da_moe::ColumnsOfB<storage>;                                                     \
        da_moe::product<da_moe::MmaLoop<aligned, A, B>, A, B>(p, shared);                          \
    }                                                                                              \
    GPU_KERNEL(grouped_gemm_##name)

MMA_BACK(da_moe::bf16, bf16_dh, hidden_gradient, HiddenGradient, true)
MMA_BACK(da_moe::bf16, bf16_dh_any, hidden_gradient, HiddenGradient, false)
MMA_BACK(da_moe::f16, f16_dh, hidden_gradient, HiddenGradient, true)
MMA_BACK(da_moe::f16, f16_dh_any, hidden_gradient, HiddenGradient, false)
MMA_BACK(da_moe::bf16, bf16_nn, grouped_gemm, GroupedGemm, true)
MMA_BACK(da_moe::bf16, bf16_nn_any, grouped_gemm, GroupedGemm, false)
MMA_BACK(da_moe::f16, f16_nn, grouped_gemm, GroupedGemm, true)
MMA_BACK(da_moe::f16, f16_nn_any, grouped_gemm, GroupedGemm, false)

#define F32_BACK(weights, name, product, Parameters)                                               \
    extern "C" __global__ void __launch_bounds__(256, 2)                                           \
        grouped_gemm_##name(const __grid_constant__ Parameters p) {                                \
        using A = da_moe::RowsOfA<float>;                                                          \
        using B = da_moe::ColumnsOfB<weights>;                                                     \
        using Loop = da_moe::F32Loop<A, B>;                                                        \
        F32_SHARED(shared, Loop);                                                                  \
        da_moe::product<Loop, A, B>(p, shared);                                                    \
    }                                                                                              \
    GPU_KERNEL(grouped_gemm_##name)

F32_BACK(float, f32_dh, hidden_gradient, HiddenGradient)
F32_BACK(float, f32_nn, grouped_gemm, GroupedGemm)
F32_BACK(da_moe::bf16, f32_nn_bf16_weights, grouped_gemm, GroupedGemm)
F32_BACK(da_moe::f16, f32_nn_f16_weights, grouped_gemm, GroupedGemm)
