// SPEC §6: what of the experts' gradients is no product of matrices.
//
//   row_weight_gradient_{f32,bf16,f16}  dg = ⟨a, da⟩ + ⟨dy_t, b_out⟩ of every row; storage of dy and b_out.
//       Grid (rows / 8), block 8 warps: a warp has one row; no barriers. Parts are added in the order of the columns they
//       are from, products with the bias by a lane in their order, lanes by one tree. Bytes: 4·parts + D·s a row with a bias.
//   bias_gradient_{f32,bf16,f16}, bias_gradient_f32_to_f16   db[e] = Σ (g·)row over the expert's rows; storage of the rows.
//       Grid (columns / 32, E), block 8 warps: a lane has one column, a warp every eighth row; then the warps' sums are
//       added in their order. One barrier, before that. Bytes: every row once, every bias once.
//
// Floor of both: bytes over bandwidth, or a launch. At 3 TB/s for marin (16384 rows, D 2048, F 3072) in bf16: dg a launch
// without biases and 22 µs with them, db_in 67 µs, db_out 22 µs.

#include "abi.h"
#include "device/gradient.cuh"
#include "device/storage.cuh"
#include "device/warp.cuh"
#include "gemm/scheduler.cuh"

namespace da_moe {
namespace {

constexpr int WARPS = 8;

// The expert whose segment holds a row, if any: the last that starts at or before it.
__device__ __forceinline__ int expert_of(const int32_t* offsets, int experts, int row) {
    int first = 0;
    int last = experts;
    while (last - first > 1) {
        const int middle = (first + last) / 2;
        (offsets[middle] <= row ? first : last) = middle;
    }
    return first;
}

template <class S>
__device__ __forceinline__ float bias_product(const RowWeightGradient& p, int row) {
    const int token = p.row_token == nullptr ? row : p.row_token[row];
    if (token < 0 || token >= p.tokens) {
        return 0.0f;
    }
    const int expert = p.offsets == nullptr ? 0 : expert_of(p.offsets, p.experts, row);
    const S* dy = static_cast<const S*>(p.dy) + token * p.dy_stride;
    const S* bias = static_cast<const S*>(p.bias) + expert * p.bias_stride;
    float sum = 0.0f;
    for (int column = lane_index(); column < p.width; column += WARP) {
        sum += to_float(dy[column]) * to_float(bias[column]);
    }
    return warp_sum(sum);
}

template <class S>
__device__ __forceinline__ void row_weight_gradient(const RowWeightGradient& p) {
    const int row = static_cast<int>(blockIdx.x) * WARPS + warp_index();
    const int rows = p.offsets == nullptr ? p.rows : min(p.offsets[p.experts], p.rows);
    if (row >= rows) {
        return;
    }
    float sum = p.bias == nullptr ? 0.0f : bias_product<S>(p, row);
    for (int part = 0; part < p.part_count; part++) {
        sum += p.parts[static_cast<int64_t>(row) * p.part_count + part];
    }
    if (lane_index() == 0) {
        p.out[row] = sum;
    }
}

// S is the type of the gradient where that is not f32.
template <class Row, class S>
__device__ __forceinline__ void bias_gradient(const BiasGradient& p) {
    SHARED_ARRAY(float, sums, WARPS * WARP);
    const int column = static_cast<int>(blockIdx.x) * WARP + lane_index();
    const int expert = static_cast<int>(blockIdx.y);
    const Segment rows = segment(p.offsets, p.rows, expert);
    float sum = 0.0f;
    if (column < p.from.columns) {
        for (int i = warp_index(); i < rows.count; i += WARPS) {
            const int row = rows.first + i;
            const int source = p.from.row_token == nullptr ? row : p.from.row_token[row];
            if (source >= 0 && source < p.from.sources) {
                const float value = to_float(static_cast<const Row*>(p.from.rows)[source * p.from.stride + column]);
                sum += p.row_weight == nullptr ? value : p.row_weight[row] * value;
            }
        }
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp_index() != 0 || column >= p.from.columns) {
        return;
    }
    sum = 0.0f;
    for (int warp = 0; warp < WARPS; warp++) {
        sum += sums[warp * WARP + lane_index()];
    }
    write_gradient<S>(p.out, p.out_f32, expert * p.out_stride + column, Vector<float, 1>{{sum}}, p.beta);
}

}  // namespace
}  // namespace da_moe

#define EXPERTS_BACKWARD(storage, name)                                                           \
    extern "C" __global__ void __launch_bounds__(da_moe::WARPS * da_moe::WARP)                    \
        row_weight_gradient_##name(const __grid_constant__ RowWeightGradient p) {                 \
        da_moe::row_weight_gradient<storage>(p);                                                  \
    }                                                                                             \
    GPU_KERNEL(row_weight_gradient_##name)                                                        \
    extern "C" __global__ void __launch_bounds__(da_moe::WARPS * da_moe::WARP)                    \
        bias_gradient_##name(const __grid_constant__ BiasGradient p) {                            \
        da_moe::bias_gradient<storage, storage>(p);                                                        \
    }                                                                                             \
    GPU_KERNEL(bias_gradient_##name)

EXPERTS_BACKWARD(float, f32)
EXPERTS_BACKWARD(da_moe::bf16, bf16)
EXPERTS_BACKWARD(da_moe::f16, f16)

extern "C" __global__ void __launch_bounds__(da_moe::WARPS * da_moe::WARP)
    bias_gradient_f32_to_f16(const __grid_constant__ BiasGradient p) {
    da_moe::bias_gradient<float, da_moe::f16>(p);
}
GPU_KERNEL(bias_gradient_f32_to_f16)
