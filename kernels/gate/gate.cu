// SPEC §2, §3: scores, k_t, selection, weights, losses and load of every token in one launch over the logits.
//
//   gate_{32,64,128,256,512}   by the largest number of candidates; lane l of a warp holds candidates l, l + 32, …
//   gate_bias                  the selection bias follows the load
//
// gate: grid (T / (8 · tokens_per_warp)), block 8 warps; a warp takes `tokens_per_warp` consecutive tokens, one by one.
// Everything of a token stays in registers but its logits, which are read again from the cache where a ratio of scores is
// formed, for there is no score far below zero to form it from. Its candidates are ordered by taking the largest integer key out of the warp,
// k_max times, so ties and NaN are decided as the specification says. Load, shares and squared log-sum-exps are added per
// block in the order of the tokens, and by the last block to arrive in the order of the blocks: the same bits every run.
//
// Barriers: one when thresholds and zeros are in shared memory, one after the block's last token, one before its warps are
// added up, two before it is known to be the last; the last has two for every 256 columns of each of four sums. A warp has
// one of its own a token, and three more where groups are limited.
// Bytes: 4·T·C read, 4·T·(3·K + 1) + 8·blocks·C written; floor: that over the memory bandwidth, 7 µs at 3 TB/s for T 32768,
// C 128, K 8, and after it the last block alone with 8·blocks·C bytes of the L2: C / 4 round trips of 16 loads a thread
// where there are 512 blocks, about 8 µs for C 128 at 0.25 µs each.
//
// gate_bias: grid (1), block 256, a thread every 256th candidate; the two barriers of one sum. Bytes: 12·C; floor: a launch.

#include "abi.h"
#include "gate/demand.cuh"
#include "gate/totals.cuh"

namespace da_moe {
namespace {

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * WARP;

// What one warp adds to the sums over tokens.
template <int N>
struct Part {
    float shares[N];
    float z;
    int unmasked;
};

// Writes a token's experts and weights in slot order: descending weight, ties to the lower expert, NaN last (SPEC §4).
template <int N>
__device__ __forceinline__ void write_slots(const Gate& p, int token, const float (&weights)[N], Key (&slots)[N], int k) {
    const int64_t first = static_cast<int64_t>(token) * p.k_max;
    WarpWriter<int> experts = {p.experts + first, -1};
    WarpWriter<float> values = {p.weights + first, 0.0f};
    for (int slot = 0; slot < k; slot++) {
        const Taken taken = take_largest(slots, weights);
        experts.put(slot, key_index(taken.key), k);
        values.put(slot, taken.value, k);
    }
    for (int slot = k + lane_index(); slot < p.k_max; slot += WARP) {
        p.experts[first + slot] = -1;
        p.weights[first + slot] = 0.0f;
    }
}

// Weights of a lane's candidates: `routed_scaling` times the score, or times its share of what the divisor sums.
template <int N>
__device__ __forceinline__ void weights_of(float (&weights)[N], const Gate& p, const Scores<N>& scores, const float* logits,
                                           Members summed) {
    if (p.divisor == DIVISOR_NONE) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            weights[i] = p.routed_scaling * scores.values[i];
        }
        return;
    }
    const Shares<N> shares = shares_of(logits, summed, p.scoring, scores.values);
#pragma unroll
    for (int i = 0; i < N; i++) {
        weights[i] = p.routed_scaling * shares.values[i];
    }
}

// One token: reads its logits, writes everything about it, adds to the warp's part and the block's load.
template <int N>
__device__ __forceinline__ void gate_token(const Gate& p, int token, const float* thresholds, GroupScratch scratch,
                                           Part<N>& part, int* load) {
    const float* logits = p.logits + token * p.logits_stride;
    const Scores<N> scores = scores_of<N>(logits, p.candidates, p.scoring);
    Key keys[N];
    selection_keys(keys, scores, logits, p, thresholds, scratch);
    const bool masked = p.mask != nullptr && p.mask[token] == 0;
    const int k = masked ? 0 : experts_per_token(p, token, scores, keys, thresholds);

    // The first k_max candidates by selection key; the first k of them are selected.
    WarpWriter<int> ranked = {p.ranked + static_cast<int64_t>(token) * p.k_max, 0};
    Members selected = 0;
    Members summed = 0;
    const int sum_places = p.divisor == DIVISOR_SELECTED ? k : p.k_max;
    for (int place = 0; place < p.k_max; place++) {
        const Key key = take_largest(keys);
        const int candidate = key_index(key);
        // A forbidden candidate that is not selected is in no divisor either. Only a bias makes a key that small.
        const bool counts = place < k || key_order(key) != ordered(-INFINITY);
        ranked.put(place, counts ? candidate : -1, p.k_max);
        if (candidate % WARP == lane_index()) {
            selected |= place < k ? 1u << (candidate / WARP) : 0u;
            summed |= counts && place < sum_places ? 1u << (candidate / WARP) : 0u;
        }
    }

    float weights[N];
    weights_of(weights, p, scores, logits, summed);
    Key slots[N];
#pragma unroll
    for (int i = 0; i < N; i++) {
        slots[i] = NO_KEY;
        if (has(selected, i)) {
            slots[i] = make_key(0, weights[i], candidate_of(i));
            atomicAdd(&load[candidate_of(i)], 1);
        }
    }
    write_slots(p, token, weights, slots, k);
    // Under `budget` every lane has read k from there, and nothing orders a write after that.
    if (lane_index() == 0 && p.policy != POLICY_BUDGET) {
        p.k[token] = k;
    }
    if (!masked) {
        part.z += scores.log_sum_exp * scores.log_sum_exp;
        part.unmasked += 1;
#pragma unroll
        for (int i = 0; i < N; i++) {
            part.shares[i] += scores.shares[i];
        }
    }
}

// The block's part of the load, the shares, z and the unmasked tokens, from its warps in order.
template <int N>
__device__ __forceinline__ void write_part(const Gate& p, const Part<N>& part, const int* load, float* shares) {
    SHARED_ARRAY(float, warp_z, WARPS);
    SHARED_ARRAY(int, warp_unmasked, WARPS);
    const int64_t first = static_cast<int64_t>(blockIdx.x) * p.candidates;
#pragma unroll
    for (int i = 0; i < N; i++) {
        if (candidate_of(i) < p.candidates) {
            shares[warp_index() * p.candidates + candidate_of(i)] = part.shares[i];
        }
    }
    if (lane_index() == 0) {
        warp_z[warp_index()] = part.z;
        warp_unmasked[warp_index()] = part.unmasked;
    }
    __syncthreads();
    for (int e = static_cast<int>(threadIdx.x); e < p.candidates; e += THREADS) {
        float sum = shares[e];
        for (int warp = 1; warp < WARPS; warp++) {
            sum += shares[warp * p.candidates + e];
        }
        p.block_shares[first + e] = sum;
        p.block_load[first + e] = load[e];
    }
    if (threadIdx.x == 0) {
        float z = 0.0f;
        int unmasked = 0;
        for (int warp = 0; warp < WARPS; warp++) {
            z += warp_z[warp];
            unmasked += warp_unmasked[warp];
        }
        p.block_z[blockIdx.x] = z;
        p.block_unmasked[blockIdx.x] = unmasked;
    }
}

// The last block: load, unmasked tokens, losses, and the price of `budget-running`.
__device__ __forceinline__ void finish(const Gate& p, int* load) {
    SHARED_ARRAY(double, sums, THREADS);
    SHARED_ARRAY(double, shares, MAX_CANDIDATES);
    SHARED_ARRAY(double, z, 1);
    SHARED_ARRAY(int, counts, THREADS);
    SHARED_ARRAY(int, unmasked, 1);
    column_sums(p.block_load, p.candidates, counts, [&](int e, int sum) { p.load[e] = load[e] = sum; });
    column_sums(p.block_shares, p.candidates, sums, [&](int e, double sum) { shares[e] = sum; });
    column_sums(p.block_z, 1, sums, [&](int, double sum) { z[0] = sum; });
    column_sums(p.block_unmasked, 1, counts, [&](int, int sum) { unmasked[0] = sum; });
    if (threadIdx.x != 0) {
        return;
    }
    int selections = 0;
    double balance = 0.0;
    for (int e = 0; e < p.candidates; e++) {
        selections += load[e];
        balance += load[e] * shares[e];
    }
    const double tokens = unmasked[0];
    const bool nothing = selections == 0 || unmasked[0] == 0;
    p.unmasked[0] = unmasked[0];
    p.losses[0] = nothing ? 0.0f : static_cast<float>(p.routed * balance / (selections * tokens));
    p.losses[1] = unmasked[0] == 0 ? 0.0f : static_cast<float>(z[0] / tokens);
    if (p.policy == POLICY_BUDGET_RUNNING && p.training && unmasked[0] > 0) {
        move_price(p, selections, unmasked[0]);
    }
}

template <int N>
__device__ __forceinline__ void gate(const Gate& p) {
    SHARED_ARRAY(float, thresholds, N * WARP);
    SHARED_ARRAY(int, load, N * WARP);
    // The groups' keys while tokens are gated, the warps' shares afterwards.
    SHARED_ARRAY(float, of_warps, WARPS * N * WARP);
    SHARED_ARRAY(uint8_t, chosen, WARPS * N * WARP);
    for (int e = static_cast<int>(threadIdx.x); e < p.candidates; e += THREADS) {
        load[e] = 0;
        thresholds[e] = p.thresholds[e];
    }
    __syncthreads();
    Part<N> part = {};
    const GroupScratch scratch = {of_warps + warp_index() * N * WARP, chosen + warp_index() * N * WARP};
    const int first = (static_cast<int>(blockIdx.x) * WARPS + warp_index()) * p.tokens_per_warp;
    const int end = min(first + p.tokens_per_warp, p.tokens);
    for (int token = first; token < end; token++) {
        gate_token(p, token, thresholds, scratch, part, load);
    }
    __syncthreads();
    write_part(p, part, load, of_warps);
    if (arrive_last(p.ticket)) {
        finish(p, load);
    }
}

}  // namespace
}  // namespace da_moe

// `blocks` a multiprocessor leave each thread the registers that its candidates need.
#define GATE(candidates, blocks)                                               \
    extern "C" __global__ void __launch_bounds__(da_moe::THREADS, blocks)      \
        gate_##candidates(const __grid_constant__ Gate p) {                    \
        da_moe::gate<candidates / da_moe::WARP>(p);                            \
    }                                                                          \
    GPU_KERNEL(gate_##candidates)

GATE(32, 4)
GATE(64, 4)
GATE(128, 3)
GATE(256, 2)
GATE(512, 1)

// A load of zero moves nothing.
extern "C" __global__ void __launch_bounds__(da_moe::THREADS) gate_bias(const __grid_constant__ GateBias p) {
    using namespace da_moe;
    SHARED_ARRAY(int, scratch, MAX_WARPS);
    int mine = 0;
    for (int e = static_cast<int>(threadIdx.x); e < p.candidates; e += THREADS) {
        mine += p.load[e];
    }
    const int total = block_sum(mine, scratch);
    if (total == 0) {
        return;
    }
    const double mean = static_cast<double>(total) / p.candidates;
    for (int e = static_cast<int>(threadIdx.x); e < p.candidates; e += THREADS) {
        const double lack = mean - p.load[e];
        const float sign = lack > 0.0 ? 1.0f : lack < 0.0 ? -1.0f : 0.0f;
        p.bias[e] += p.rate * (p.proportional ? static_cast<float>(lack / mean) : sign);
    }
}
GPU_KERNEL(gate_bias)
