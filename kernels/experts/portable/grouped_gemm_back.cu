// SPEC §6: the products of rows on the way back, `da = W_outᵀ dy_t` and `dx = W_inᵀ dh`, over the same ragged groups as the
// way forward; and `dx = W_rᵀ dz` of the router. Weights are read across their rows: no transposed copy is made.
//
//   grouped_gemm_{bf16,f16}_dh[_any]          da, and from it dh, g·a and parts of dg (experts/hidden_gradient.cuh)
//   grouped_gemm_{bf16,f16}_nn[_any]          out = A B; `_any` for rows at any address
//   grouped_gemm_tf32_nn_f16_weights[_any]    the same for TF32 rows of A, which dh is beside f16: exact factors, half the rate
//   grouped_gemm_f32_dh, grouped_gemm_f32_nn  f32 products and sums
//   grouped_gemm_f32_nn_{bf16,f16}_weights    the same for f32 rows of A and 16-bit weights: logits are f32 always
//
// Persistent: grid (blocks that fit the device), block 256, roles and barriers as in experts/portable/grouped_gemm.cu, whose scheduler
// and main loops these are: a step of TF32 is 16 elements of the depth. Sums are in the order of the depth, whatever block
// computes them.
// Operations: 2·depth·columns a row, in steps of 16 rows; bytes: weights of every expert that has rows, rows of A and of the
// output, for `dh` also h, dh and g·a; of L2: both factors of every tile, and those.
// For marin (T 8192, 16384 rows, D 2048, F 3072, swiglu, 8 experts) the cost model (`da-moe plan`) has these floors of an H100,
// in ms: bytes at 3 TB/s; bytes of every tile at the 5.5 TB/s of L2; wavefronts of shared memory; instructions of the main
// loop; operations at the 62% of 800 TFLOP/s that mma.sync is said to reach, half of that in TF32, and at 60 TFLOP/s in f32.
// Nothing is measured.
//
//                 memory      L2   banks   issue   units
//   da, bf16        0.22    0.53    0.37    0.27    0.42
//   dx, bf16        0.16    0.89    0.72    0.54    0.83
//   da, f16         0.39    0.62    0.37    0.27    0.42
//   dx, f16         0.25    1.20    1.04    1.20    1.66
//   da, f32         0.45    1.35    3.66    4.08    3.44
//   dx, f32         0.31    2.37    7.31    8.16    6.87

#include "experts/f32/f32_loop.cuh"
#include "experts/grouped.cuh"
#include "experts/portable/mma_loop.cuh"

#define MMA_BACK(rows, weights, name, product, Parameters, aligned)                                \
    extern "C" __global__ void __launch_bounds__(256, 1)                           \
        grouped_gemm_##name(const __grid_constant__ Parameters p) {                                \
        DYN_SMEM(shared, 128);                                                                     \
        using A = da_moe::RowsOfA<rows>;                                                           \
        using B = da_moe::ColumnsOfB<weights>;                                                     \
        da_moe::product<da_moe::MmaLoop<aligned, A, B>, A, B>(p, shared);                          \
    }                                                                                              \
    GPU_KERNEL(grouped_gemm_##name)

MMA_BACK(da_moe::bf16, da_moe::bf16, bf16_dh, hidden_gradient, HiddenGradient, true)
MMA_BACK(da_moe::bf16, da_moe::bf16, bf16_dh_any, hidden_gradient, HiddenGradient, false)
MMA_BACK(da_moe::f16, da_moe::f16, f16_dh, hidden_gradient, HiddenGradient, true)
MMA_BACK(da_moe::f16, da_moe::f16, f16_dh_any, hidden_gradient, HiddenGradient, false)
MMA_BACK(da_moe::bf16, da_moe::bf16, bf16_nn, grouped_gemm, GroupedGemm, true)
MMA_BACK(da_moe::bf16, da_moe::bf16, bf16_nn_any, grouped_gemm, GroupedGemm, false)
MMA_BACK(da_moe::f16, da_moe::f16, f16_nn, grouped_gemm, GroupedGemm, true)
MMA_BACK(da_moe::f16, da_moe::f16, f16_nn_any, grouped_gemm, GroupedGemm, false)
MMA_BACK(da_moe::tf32, da_moe::f16, tf32_nn_f16_weights, grouped_gemm, GroupedGemm, true)
MMA_BACK(da_moe::tf32, da_moe::f16, tf32_nn_f16_weights_any, grouped_gemm, GroupedGemm, false)

// Two blocks a multiprocessor, one where what becomes of the products takes registers.
#define F32_BACK(weights, name, product, Parameters, blocks)                                       \
    extern "C" __global__ void __launch_bounds__(256, blocks)                                      \
        grouped_gemm_##name(const __grid_constant__ Parameters p) {                                \
        using A = da_moe::RowsOfA<float>;                                                          \
        using B = da_moe::ColumnsOfB<weights>;                                                     \
        using Loop = da_moe::F32Loop<A, B>;                                                        \
        F32_SHARED(shared, Loop);                                                                  \
        da_moe::product<Loop, A, B>(p, shared);                                                    \
    }                                                                                              \
    GPU_KERNEL(grouped_gemm_##name)

F32_BACK(float, f32_dh, hidden_gradient, HiddenGradient, 1)
F32_BACK(float, f32_nn, grouped_gemm, GroupedGemm, 2)
F32_BACK(da_moe::bf16, f32_nn_bf16_weights, grouped_gemm, GroupedGemm, 2)
F32_BACK(da_moe::f16, f32_nn_f16_weights, grouped_gemm, GroupedGemm, 2)
