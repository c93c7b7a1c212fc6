// SPEC §6: gradients of weights, each expert's the sum of `left ⊗ right` over its rows: `dW_in = Σ dh ⊗ x_t`,
// `dW_out = Σ dy_t ⊗ (g·a)`, and with one group of all tokens the router's `dW_r = Σ dz ⊗ x_t`.
//
//   grouped_gemm_{bf16,f16}_tn[_any]         tensor cores, f32 accumulators; `_any` for rows at any address
//   grouped_gemm_tf32_tn_f16_{rows,left}[_any]   the same for TF32 beside f16, whose side is named: f16's dW_in and dW_out
//   grouped_gemm_f32_tn[_{bf16,f16}_rows]    f32 products and sums; the right factor's rows may be of a 16-bit type
//   weight_gradient_sum_{f32,bf16,f16}       adds up the parts of a gradient whose rows were divided
//
// Grid (column tiles · row tiles · E), block 256: one tile of one expert's gradient, whose depth is the expert's rows, so
// that a block's work is its expert's; blocks of an expert without rows write their zeros and end. Experts follow one
// another, so that blocks that run at the same time share rows. Rows are gathered by token while they are loaded, and are
// added in their order. Roles and barriers are the main loop's, and those of its products' way out. The router's gradient,
// which has few tiles, has its rows divided into parts by sizes alone, which are added up in their order.
// Operations: 2·M·N a row, in steps of 32 rows (16 in TF32, one in f32); bytes: both factors' rows once, and every gradient
// once; of L2: both factors of every tile, and the gradients.
// For marin (T 8192, 16384 rows, D 2048, F 3072, swiglu, 8 experts) the cost model (`da-moe plan`) has these floors of an H100,
// in ms: bytes at 3 TB/s; bytes of every tile at the 5.5 TB/s of L2; wavefronts of shared memory; instructions of the main
// loop; operations at the 62% of 800 TFLOP/s that mma.sync is said to reach, half of that in TF32, and at 60 TFLOP/s in f32.
// Nothing is measured.
//
//                 memory      L2   banks   issue   units
//   dW_in, bf16     0.16    0.92    0.74    0.54    0.83
//   dW_out, bf16    0.09    0.46    0.37    0.27    0.42
//   dW_in, f16      0.22    1.21    1.07    1.30    1.66
//   dW_out, f16     0.12    0.75    0.57    0.65    0.83
//   dW_in, f32      0.31    2.42    7.33    8.16    6.87
//   dW_out, f32     0.18    1.21    3.66    4.08    3.44
//   dW_r, bf16 x    0.01    0.01    0.02    0.01    0.00

#include "device/gradient.cuh"
#include "experts/f32/f32_loop.cuh"
#include "experts/portable/mma_loop.cuh"
#include "experts/operands.cuh"
#include "experts/weight_output.cuh"

namespace da_moe {
namespace {

template <class S, class Loop, class Left, class Right>
__device__ __forceinline__ void weight_gradient(const WeightGradient& p, unsigned char* shared) {
    const WeightTile tile = weight_tile<Loop::TILE_ROWS, Loop::TILE_COLUMNS>(p, static_cast<int>(blockIdx.x));
    const Segment rows = p.offsets == nullptr ? share(p.rows, p.share, tile.expert) : segment(p.offsets, p.rows, tile.expert);
    Loop loop(shared);
    const int height = min(p.left.columns - tile.row, Loop::TILE_ROWS);
    loop.run(Left(p.left, rows, tile.row), Right(p.right, rows, tile.column), height, rows.count);
    hand_out(loop, height, [&](int first, const auto& products) {
        WeightOutput<S>(p).write({tile.expert, tile.row + first, tile.column}, products);
    });
}

// Parts are asked for this many at a time, and added in their order.
constexpr int PARTS_AT_ONCE = 8;

template <class S>
__device__ __forceinline__ void sum_parts(const WeightGradientSum& p) {
    const int64_t element = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (element >= p.elements) {
        return;
    }
    float sum = 0.0f;
    for (int first = 0; first < p.part_count; first += PARTS_AT_ONCE) {
        float parts[PARTS_AT_ONCE];
#pragma unroll
        for (int i = 0; i < PARTS_AT_ONCE; i++) {
            parts[i] = first + i < p.part_count ? p.parts[(first + i) * p.elements + element] : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < PARTS_AT_ONCE; i++) {
            sum += first + i < p.part_count ? parts[i] : 0.0f;
        }
    }
    write_gradient<S, 1>(p.out, p.out_f32, element, {{sum}}, p.beta);
}

}  // namespace
}  // namespace da_moe

#define MMA_TN(storage, left, right, name, aligned)                                                \
    extern "C" __global__ void __launch_bounds__(256, 1)                           \
        grouped_gemm_##name(const __grid_constant__ WeightGradient p) {                            \
        DYN_SMEM(shared, 128);                                                                     \
        using Left = da_moe::RoutedRows<left>;                                                     \
        using Right = da_moe::RoutedRows<right>;                                                   \
        da_moe::weight_gradient<storage, da_moe::MmaLoop<aligned, Left, Right>, Left, Right>(p, shared); \
    }                                                                                              \
    GPU_KERNEL(grouped_gemm_##name)

MMA_TN(da_moe::bf16, da_moe::bf16, da_moe::bf16, bf16_tn, true)
MMA_TN(da_moe::bf16, da_moe::bf16, da_moe::bf16, bf16_tn_any, false)
MMA_TN(da_moe::f16, da_moe::f16, da_moe::f16, f16_tn, true)
MMA_TN(da_moe::f16, da_moe::f16, da_moe::f16, f16_tn_any, false)
MMA_TN(da_moe::f16, da_moe::tf32, da_moe::f16, tf32_tn_f16_rows, true)
MMA_TN(da_moe::f16, da_moe::tf32, da_moe::f16, tf32_tn_f16_rows_any, false)
MMA_TN(da_moe::f16, da_moe::f16, da_moe::tf32, tf32_tn_f16_left, true)
MMA_TN(da_moe::f16, da_moe::f16, da_moe::tf32, tf32_tn_f16_left_any, false)

#define F32_TN(storage, left, right, name)                                                         \
    extern "C" __global__ void __launch_bounds__(256, 2)                                           \
        grouped_gemm_##name(const __grid_constant__ WeightGradient p) {                            \
        using Left = da_moe::RoutedRows<left>;                                                     \
        using Right = da_moe::RoutedRows<right>;                                                   \
        using Loop = da_moe::F32Loop<Left, Right>;                                                 \
        F32_SHARED(shared, Loop);                                                                  \
        da_moe::weight_gradient<storage, Loop, Left, Right>(p, shared);                            \
    }                                                                                              \
    GPU_KERNEL(grouped_gemm_##name)

F32_TN(float, float, float, f32_tn)
F32_TN(da_moe::bf16, float, da_moe::bf16, f32_tn_bf16_rows)
F32_TN(da_moe::f16, float, da_moe::f16, f32_tn_f16_rows)

#define SUM(storage, name)                                                                         \
    extern "C" __global__ void __launch_bounds__(256)                                              \
        weight_gradient_sum_##name(const __grid_constant__ WeightGradientSum p) {                  \
        da_moe::sum_parts<storage>(p);                                                             \
    }                                                                                              \
    GPU_KERNEL(weight_gradient_sum_##name)

SUM(float, f32)
SUM(da_moe::bf16, bf16)
SUM(da_moe::f16, f16)
