// SPEC §1: one value for each head and token from an attention matrix P[B, H, S, S] that the caller has anyway.
//
//   importance_received_{f32,bf16,f16}[_wide]   received-max, received-sum, received-mean: a reduction over queries
//   importance_given_{f32,bf16,f16}[_wide]      given-peak, given-entropy, given-self: a reduction over keys
//
// Block 8 warps. received: grid (n / (32·VEC), H, B), a lane has VEC keys and a warp every eighth query; one barrier, before
// the warps' results are combined in their order. given: grid (n / 8, H, B), a warp has one query and its lanes every 32nd
// vector of keys; no barriers.
//
// Both read every visible probability once (given-self only the diagonal) and write one f32 a head and token, which
// `importance_reduce` reads: H·T·(n·s + 4) bytes for storage of s bytes (half of it when causal); floor: that over the
// memory bandwidth, 1.4 ms at 3 TB/s for B 8, H 16, n 4096 in bf16. `_wide` kernels read 128 bits at once and need every
// stride to be a multiple of that.
//
// A masked token is neither key nor query; a probability that is NaN counts as 0. Values of masked tokens are 0.

#include "abi.h"
#include "device/storage.cuh"
#include "device/warp.cuh"

namespace da_moe {
namespace {

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * WARP;

struct Sequence {
    int first;
    int length;
};

__device__ __forceinline__ Sequence sequence_of(const ImportanceProbabilities& p, int index) {
    if (p.cu_seqlens == nullptr) {
        return {0, p.tokens};
    }
    return {p.cu_seqlens[index], p.cu_seqlens[index + 1] - p.cu_seqlens[index]};
}

__device__ __forceinline__ bool takes_part(const ImportanceProbabilities& p, int token) {
    return p.mask == nullptr || p.mask[token] != 0;
}

template <class S>
__device__ __forceinline__ const S* matrix_of(const ImportanceProbabilities& p) {
    return static_cast<const S*>(p.probabilities) + blockIdx.z * p.sequence_stride + blockIdx.y * p.head_stride;
}

__device__ __forceinline__ float probability(float value) { return value == value ? value : 0.0f; }

template <class S, int VEC>
__device__ __forceinline__ void received(const ImportanceProbabilities& p) {
    constexpr int TILE = WARP * VEC;
    SHARED_ARRAY(float, partial, WARPS * TILE);
    SHARED_ARRAY(int, partial_queries, WARPS * TILE);
    const Sequence sequence = sequence_of(p, static_cast<int>(blockIdx.z));
    const int tile = static_cast<int>(blockIdx.x) * TILE;
    if (tile >= sequence.length) {
        return;
    }
    const int key = tile + lane_index() * VEC;
    const bool largest = p.measure == MEASURE_RECEIVED_MAX;
    const S* matrix = matrix_of<S>(p);
    float value[VEC];
    int queries[VEC];
#pragma unroll
    for (int v = 0; v < VEC; v++) {
        value[v] = 0.0f;
        queries[v] = 0;
    }
    if (key < sequence.length) {
        // Under a causal mask no query before the tile's first key sees any of it.
#pragma unroll 4
        for (int query = (p.causal ? tile : 0) + warp_index(); query < sequence.length; query += WARPS) {
            const auto row = Vector<S, VEC>::load(matrix + query * p.row_stride + key);
            const bool asks = takes_part(p, sequence.first + query);
#pragma unroll
            for (int v = 0; v < VEC; v++) {
                const bool sees = asks && (!p.causal || key + v <= query);
                const float probable = sees ? probability(to_float(row.elements[v])) : 0.0f;
                value[v] = largest ? fmaxf(value[v], probable) : value[v] + probable;
                queries[v] += sees;
            }
        }
    }
#pragma unroll
    for (int v = 0; v < VEC; v++) {
        partial[warp_index() * TILE + lane_index() * VEC + v] = value[v];
        partial_queries[warp_index() * TILE + lane_index() * VEC + v] = queries[v];
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < TILE && tile + i < sequence.length; i += THREADS) {
        float result = 0.0f;
        int seen_by = 0;
        for (int warp = 0; warp < WARPS; warp++) {
            const float part = partial[warp * TILE + i];
            result = largest ? fmaxf(result, part) : result + part;
            seen_by += partial_queries[warp * TILE + i];
        }
        const int token = sequence.first + tile + i;
        if (p.measure == MEASURE_RECEIVED_MEAN) {
            result /= static_cast<float>(max(seen_by, 1));
        }
        p.values[static_cast<int64_t>(blockIdx.y) * p.tokens + token] = takes_part(p, token) ? result : 0.0f;
    }
}

// -P ln P, with 0 ln 0 = 0. The fast logarithm's error is absolute, and matters only where the logarithm is near 0: at
// most one probability of a row is above one half.
__device__ __forceinline__ float surprise(float probable) {
    if (!(probable > 0.0f)) {
        return 0.0f;
    }
    return -probable * (probable > 0.5f ? logf(probable) : __logf(probable));
}

template <class S, int VEC>
__device__ __forceinline__ void given(const ImportanceProbabilities& p) {
    const Sequence sequence = sequence_of(p, static_cast<int>(blockIdx.z));
    const int query = static_cast<int>(blockIdx.x) * WARPS + warp_index();
    if (query >= sequence.length) {
        return;
    }
    const int token = sequence.first + query;
    const S* row = matrix_of<S>(p) + query * p.row_stride;
    float* result = p.values + static_cast<int64_t>(blockIdx.y) * p.tokens + token;
    if (!takes_part(p, token) || p.measure == MEASURE_GIVEN_SELF) {
        if (lane_index() == 0) {
            *result = takes_part(p, token) ? probability(to_float(row[query])) : 0.0f;
        }
        return;
    }
    const int end = p.causal ? query + 1 : sequence.length;
    float peak = 0.0f;
    float entropy = 0.0f;
    int visible = 0;
#pragma unroll 2
    for (int key = lane_index() * VEC; key < end; key += WARP * VEC) {
        const auto keys = Vector<S, VEC>::load(row + key);
#pragma unroll
        for (int v = 0; v < VEC; v++) {
            const bool seen = key + v < end && takes_part(p, sequence.first + key + v);
            const float probable = seen ? probability(to_float(keys.elements[v])) : 0.0f;
            peak = fmaxf(peak, probable);
            entropy += p.measure == MEASURE_GIVEN_ENTROPY ? surprise(probable) : 0.0f;
            visible += seen;
        }
    }
    peak = warp_max(peak);
    entropy = warp_sum(entropy);
    visible = __reduce_add_sync(FULL_WARP, visible);
    if (lane_index() == 0) {
        const float share = visible > 1 ? entropy / logf(static_cast<float>(visible)) : 0.0f;
        *result = p.measure == MEASURE_GIVEN_PEAK ? peak : share;
    }
}

}  // namespace
}  // namespace da_moe

// Three blocks a multiprocessor leave a thread the registers for four rows in flight.
#define KERNELS(storage, suffix, vec)                                                     \
    extern "C" __global__ void __launch_bounds__(da_moe::THREADS, 3)                      \
        importance_received_##suffix(const __grid_constant__ ImportanceProbabilities p) { \
        da_moe::received<storage, vec>(p);                                                \
    }                                                                                     \
    GPU_KERNEL(importance_received_##suffix)                                              \
    extern "C" __global__ void __launch_bounds__(da_moe::THREADS, 4)                      \
        importance_given_##suffix(const __grid_constant__ ImportanceProbabilities p) {    \
        da_moe::given<storage, vec>(p);                                                   \
    }                                                                                     \
    GPU_KERNEL(importance_given_##suffix)

KERNELS(float, f32, 1)
KERNELS(float, f32_wide, 4)
KERNELS(da_moe::bf16, bf16, 1)
KERNELS(da_moe::bf16, bf16_wide, 8)
KERNELS(da_moe::f16, f16, 1)
KERNELS(da_moe::f16, f16_wide, 8)
