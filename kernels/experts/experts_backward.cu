// SPEC §6: what of the experts' gradients is no product of matrices.
//
//   row_weight_gradient_{f32,bf16,f16}  dg = ⟨a, da⟩ + ⟨dy_t, b_out⟩ of every row; storage of dy and b_out.
//       Grid (rows / 8), block 8 warps: a warp has one row; no barriers. Parts are added in the order of the columns they
//       are from, products with the bias by a lane in their order, lanes by one tree. Bytes: 4·parts + D·s a row with a bias.
//   bias_gradient_{f32,bf16,f16}, bias_gradient_f32_to_f16   db[e] = Σ (g·)row over the expert's rows; storage of the rows.
//       Grid (columns / 256, E), block 8 warps: a lane has eight columns, neighbours where rows can be read 128 bits at
//       once, and a warp every eighth row, of which its lanes look up 32 at a time; then the warps' sums are added in
//       their order. One barrier, before that. Bytes: every row once, every bias once.
//
// Floor of both: bytes over bandwidth, or a launch. At 3 TB/s for marin (16384 rows, D 2048, F 3072) in bf16: dg a launch
// without biases and 22 µs with them, db_in 67 µs, db_out 22 µs.

#include "abi.h"
#include "device/gradient.cuh"
#include "device/storage.cuh"
#include "device/warp.cuh"
#include "experts/scheduler.cuh"

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

// A lane's columns of a block's: neighbours where rows can be read 128 bits at once, else one of every 32.
template <bool WIDE>
struct BiasColumns {
    static constexpr int COUNT = 8;
    int first;

    __device__ __forceinline__ BiasColumns()
        : first(static_cast<int>(blockIdx.x) * WARP * COUNT + lane_index() * (WIDE ? COUNT : 1)) {}

    // Of a block's columns, the number of the v-th.
    __device__ __forceinline__ static int place(int v) {
        return WIDE ? lane_index() * COUNT + v : v * WARP + lane_index();
    }

    // Of one row; what is past the last column is zero.
    template <class Row>
    __device__ __forceinline__ Vector<Row, COUNT> read(const Row* row, int columns) const {
        Vector<Row, COUNT> values;
        if constexpr (WIDE) {
            return Vector<Row, COUNT>::load(row + (first < columns ? first : 0));
        } else {
#pragma unroll
            for (int v = 0; v < COUNT; v++) {
                values.elements[v] = first + v * WARP < columns ? row[first + v * WARP] : from_float<Row>(0.0f);
            }
            return values;
        }
    }
};

// A warp's rows: every eighth of the expert's, 32 at a time, of which each lane looks up one.
struct WarpRows {
    static constexpr int STEP = WARP * WARPS;
    // Where a row is; negative where there is none.
    int source;
    float weight;

    __device__ __forceinline__ WarpRows(const BiasGradient& p, const Segment& rows, int start) {
        const int i = start + lane_index() * WARPS;
        const int row = rows.first + i;
        const bool there = i < rows.count;
        source = !there ? -1 : p.from.row_token == nullptr ? row : p.from.row_token[row];
        source = source < p.from.sources ? source : -1;
        weight = there && source >= 0 && p.row_weight != nullptr ? p.row_weight[row] : 1.0f;
    }
};

template <class Row, bool WIDE>
__device__ __forceinline__ void sum_rows(const BiasGradient& p, const Segment& rows, float* sums) {
    using Columns = BiasColumns<WIDE>;
    // Rows that are asked for before the first is added.
    constexpr int BATCH = WIDE ? 16 / static_cast<int>(sizeof(Row)) : 1;
    const Columns columns;
    float sum[Columns::COUNT] = {};
    for (int start = warp_index(); start < rows.count; start += WarpRows::STEP) {
        const WarpRows mine(p, rows, start);
        const int count = min((rows.count - start + WARPS - 1) / WARPS, WARP);
#pragma unroll 1
        for (int first = 0; first < count; first += BATCH) {
            int sources[BATCH];
            float weights[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                sources[i] = __shfl_sync(FULL_WARP, mine.source, first + i);
                weights[i] = __shfl_sync(FULL_WARP, mine.weight, first + i);
            }
            Vector<Row, Columns::COUNT> values[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                const Row* from = static_cast<const Row*>(p.from.rows) + max(sources[i], 0) * p.from.stride;
                values[i] = columns.read(from, p.from.columns);
            }
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                values[i].keep_if(sources[i] >= 0);
#pragma unroll
                for (int v = 0; v < Columns::COUNT; v++) {
                    sum[v] += weights[i] * to_float(values[i].elements[v]);
                }
            }
        }
    }
#pragma unroll
    for (int v = 0; v < Columns::COUNT; v++) {
        sums[warp_index() * WARP * Columns::COUNT + Columns::place(v)] = sum[v];
    }
}

// S is the type of the gradient where that is not f32.
template <class Row, class S>
__device__ __forceinline__ void bias_gradient(const BiasGradient& p) {
    constexpr int COLUMNS = WARP * BiasColumns<true>::COUNT;
    static_assert(COLUMNS == WARPS * WARP, "a thread writes one column");
    SHARED_ARRAY(float, sums, WARPS * COLUMNS);
    const int expert = static_cast<int>(blockIdx.y);
    const Segment rows = segment(p.offsets, p.rows, expert);
    constexpr int PIECE = 16 / static_cast<int>(sizeof(Row));
    const bool aligned = reinterpret_cast<uintptr_t>(p.from.rows) % 16 == 0 && p.from.stride % PIECE == 0;
    if (aligned && p.from.columns % BiasColumns<true>::COUNT == 0) {
        sum_rows<Row, true>(p, rows, sums);
    } else {
        sum_rows<Row, false>(p, rows, sums);
    }
    __syncthreads();
    const int column = static_cast<int>(blockIdx.x) * COLUMNS + static_cast<int>(threadIdx.x);
    if (column >= p.from.columns) {
        return;
    }
    float sum = 0.0f;
    for (int warp = 0; warp < WARPS; warp++) {
        sum += sums[warp * COLUMNS + static_cast<int>(threadIdx.x)];
    }
    write_gradient<S>(p.out, p.out_f32, expert * p.out_stride + column, Vector<float, 1>{{sum}}, p.beta);
}

}  // namespace
}  // namespace da_moe

// Three blocks of a bias's gradient a multiprocessor leave a thread the registers for eight rows in flight.
#define BIAS_GRADIENT(row, storage, name)                                        \
    extern "C" __global__ void __launch_bounds__(da_moe::WARPS * da_moe::WARP, 3) \
        bias_gradient_##name(const __grid_constant__ BiasGradient p) {           \
        da_moe::bias_gradient<row, storage>(p);                                  \
    }                                                                            \
    GPU_KERNEL(bias_gradient_##name)
#define EXPERTS_BACKWARD(storage, name)                                          \
    extern "C" __global__ void __launch_bounds__(da_moe::WARPS * da_moe::WARP)    \
        row_weight_gradient_##name(const __grid_constant__ RowWeightGradient p) { \
        da_moe::row_weight_gradient<storage>(p);                                 \
    }                                                                            \
    GPU_KERNEL(row_weight_gradient_##name)                                       \
    BIAS_GRADIENT(storage, storage, name)

EXPERTS_BACKWARD(float, f32)
EXPERTS_BACKWARD(da_moe::bf16, bf16)
EXPERTS_BACKWARD(da_moe::f16, f16)

BIAS_GRADIENT(float, da_moe::f16, f32_to_f16)
