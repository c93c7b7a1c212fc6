// SPEC §2 `given`, §4: a finished routing from the caller, padded or compressed, put into slot order: descending weight, NaN
// last, ties to the lower expert and then to the earlier entry. An id that is no expert is no entry.
//
//   routing_{32,64,128,256,512}   by the largest k_max; lane l of a warp holds entries l, l + 32, … of a token
//
// Grid (T / (8 · tokens_per_warp)), block 8 warps; a warp takes `tokens_per_warp` consecutive tokens one after another, in
// registers. Barriers: one when the block's load is zero, two of a sum, after which it is complete, two before the block is
// known to be the last; the last has two for every 256 columns of each of two sums. Bytes: 8 an entry read, 4·T·(3·K + 1)
// written; floor: that over the memory bandwidth, 2 µs at 3 TB/s for T 32768, K 8.

#include "abi.h"
#include "device/order.cuh"
#include "gate/entries.cuh"
#include "gate/select.cuh"
#include "gate/totals.cuh"

namespace da_moe {
namespace {

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * WARP;

struct Entries {
    const int32_t* experts;
    const float* weights;
    int count;
};

// A token's entries, of which more than K count as none.
__device__ __forceinline__ Entries entries_of(const GivenRouting& p, int token) {
    if (p.offsets == nullptr) {
        return {p.given_experts + token * p.experts_stride, p.given_weights + token * p.weights_stride,
                min(p.columns, p.k_max)};
    }
    const EntryRange range = compressed_range(p.offsets, token, p.entries);
    return {p.given_experts + range.first, p.given_weights + range.first, min(range.count, p.k_max)};
}

// Weight, then lower expert, then earlier entry: all of a key's 64 bits.
__device__ __forceinline__ Key entry_key(float weight, int expert, int place) {
    return static_cast<Key>(ordered(weight)) << 32 | static_cast<Key>(0xffff - expert) << 16 |
           static_cast<Key>(0xffff - place);
}

template <int N>
__device__ __forceinline__ int route_token(const GivenRouting& p, int token, int* load) {
    const Entries entries = entries_of(p, token);
    const bool masked = p.mask != nullptr && p.mask[token] == 0;
    Key keys[N];
    float weights[N];
    int named = 0;
#pragma unroll
    for (int i = 0; i < N; i++) {
        const int place = candidate_of(i);
        keys[i] = NO_KEY;
        weights[i] = 0.0f;
        if (!masked && place < entries.count) {
            const int expert = entries.experts[place];
            if (expert >= 0 && expert < p.candidates) {
                weights[i] = entries.weights[place];
                keys[i] = entry_key(weights[i], expert, place);
                named += 1;
                atomicAdd(&load[expert], 1);
            }
        }
    }
    const int k = __reduce_add_sync(FULL_WARP, named);
    const int64_t first = static_cast<int64_t>(token) * p.k_max;
    WarpWriter<int> experts = {p.experts + first, -1};
    WarpWriter<float> values = {p.weights + first, 0.0f};
    WarpWriter<int> places = {p.ranked + first, -1};
    for (int slot = 0; slot < k; slot++) {
        const Taken taken = take_largest(keys, weights);
        experts.put(slot, 0xffff - static_cast<int>(taken.key >> 16 & 0xffff), k);
        values.put(slot, taken.value, k);
        places.put(slot, key_index(taken.key), k);
    }
    for (int slot = k + lane_index(); slot < p.k_max; slot += WARP) {
        p.experts[first + slot] = -1;
        p.weights[first + slot] = 0.0f;
        p.ranked[first + slot] = -1;
    }
    if (lane_index() == 0) {
        p.k[token] = k;
    }
    return masked ? 0 : 1;
}

template <int N>
__device__ __forceinline__ void route(const GivenRouting& p) {
    SHARED_ARRAY(int, load, MAX_CANDIDATES);
    SHARED_ARRAY(int, scratch, THREADS);
    for (int e = static_cast<int>(threadIdx.x); e < p.candidates; e += THREADS) {
        load[e] = 0;
    }
    __syncthreads();
    const int first = (static_cast<int>(blockIdx.x) * WARPS + warp_index()) * p.tokens_per_warp;
    const int end = min(first + p.tokens_per_warp, p.tokens);
    int unmasked = 0;
    for (int token = first; token < end; token++) {
        unmasked += route_token<N>(p, token, load);
    }
    const int of_block = block_sum(lane_index() == 0 ? unmasked : 0, scratch);
    if (threadIdx.x == 0) {
        p.block_unmasked[blockIdx.x] = of_block;
    }
    for (int e = static_cast<int>(threadIdx.x); e < p.candidates; e += THREADS) {
        p.block_load[static_cast<int64_t>(blockIdx.x) * p.candidates + e] = load[e];
    }
    if (arrive_last(p.ticket)) {
        column_sums(p.block_load, p.candidates, scratch, [&](int e, int sum) { p.load[e] = sum; });
        column_sums(p.block_unmasked, 1, scratch, [&](int, int sum) { p.unmasked[0] = sum; });
        if (threadIdx.x < 2) {
            p.losses[threadIdx.x] = 0.0f;
        }
    }
}

}  // namespace
}  // namespace da_moe

// `blocks` a multiprocessor leave each thread the registers that its entries need.
#define ROUTING(slots, blocks)                                                 \
    extern "C" __global__ void __launch_bounds__(da_moe::THREADS, blocks)      \
        routing_##slots(const __grid_constant__ GivenRouting p) {              \
        da_moe::route<slots / da_moe::WARP>(p);                                \
    }                                                                          \
    GPU_KERNEL(routing_##slots)

ROUTING(32, 4)
ROUTING(64, 4)
ROUTING(128, 4)
ROUTING(256, 3)
ROUTING(512, 2)
