// SPEC §6: dg → dz through the weights and scores, plus the gradients of the balance loss and the z-loss.
//
//   gate_backward_{32,64,128,256,512}   by the largest number of candidates; lane l of a warp holds candidates l, l + 32, …
//
// Grid (T / (8 · tokens_per_warp)), block 8 warps; a warp takes `tokens_per_warp` consecutive tokens one after another.
// The block first makes the balance loss's slopes from the load (three barriers); then warps go their own ways, and
// everything of a token stays in registers but for its slots, which the lanes scatter to their candidates in shared memory
// (two barriers of a warp, and one for every 32 slots), and its logits, which are read again from the cache. Masked tokens
// get zeros.
//
// Bytes: 4·T·(2·C + 2·K), and 4·T·K for `candidates`; floor: that over the memory bandwidth, 12 µs for T 32768, C 128, K 8.

#include "abi.h"
#include "device/block.cuh"
#include "gate/slopes.cuh"

namespace da_moe {
namespace {

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * WARP;

// A value and a flag for each candidate of a warp's token, in shared memory.
struct SlotScratch {
    float* d_weights;
    uint8_t* summed;
};

// Each candidate's gradient from the slot that names it, 0 without one; returns the candidates that the divisor sums.
template <int N>
__device__ __forceinline__ Members read_slots(const GateBackward& p, int token, SlotScratch scratch, float (&slopes)[N]) {
    const int* experts = p.experts + token * p.experts_stride;
    const int* ranked = p.ranked + token * p.ranked_stride;
    for (int e = lane_index(); e < p.candidates; e += WARP) {
        scratch.d_weights[e] = 0.0f;
        scratch.summed[e] = 0;
    }
    __syncwarp();
    for (int first = 0; first < p.slots; first += WARP) {
        const int slot = first + lane_index();
        const int expert = slot < p.slots ? experts[slot] : -1;
        const int member = p.divisor != DIVISOR_CANDIDATES ? expert : slot < p.slots ? ranked[slot] : -1;
        // That candidates are named once is no more than the caller's word.
        const bool first_named = is_first_with(expert);
        const bool first_member = p.divisor != DIVISOR_CANDIDATES ? first_named : is_first_with(member);
        if (first_named && expert >= 0 && expert < p.candidates) {
            scratch.d_weights[expert] = p.d_weights[token * p.d_weights_stride + slot];
        }
        if (first_member && member >= 0 && member < p.candidates) {
            scratch.summed[member] = 1;
        }
        __syncwarp();
    }
    Members summed = 0;
#pragma unroll
    for (int i = 0; i < N; i++) {
        const int e = candidate_of(i);
        slopes[i] = e < p.candidates ? scratch.d_weights[e] : 0.0f;
        summed |= e < p.candidates && scratch.summed[e] != 0 ? 1u << i : 0u;
    }
    // The next token must not overwrite what a slower lane still reads.
    __syncwarp();
    return summed;
}

// The gradient of the balance loss, whose slope in the shares `pull` is.
template <int N>
__device__ __forceinline__ void add_balance(float (&slopes)[N], const Scores<N>& scores, const float* pull, Members all,
                                            int scoring, const float* logits) {
    float pulls[N];
#pragma unroll
    for (int i = 0; i < N; i++) {
        pulls[i] = has(all, i) ? pull[candidate_of(i)] : 0.0f;
    }
    through_shares(pulls, shares_of(logits, all, scoring, scores.values), all, scoring, logits);
#pragma unroll
    for (int i = 0; i < N; i++) {
        slopes[i] += pulls[i];
    }
}

// The gradient of `z · mean_t (logsumexp z_t)²`, `scale` being `2 · z / unmasked`.
template <int N>
__device__ __forceinline__ void add_z(const GateBackward& p, const float* logits, float log_sum_exp, float scale,
                                      float (&slopes)[N]) {
    if (scale == 0.0f) {
        return;
    }
    const float factor = scale * log_sum_exp;
    const Powers<N> powers = powers_of<N>(logits, p.candidates);
#pragma unroll
    for (int i = 0; i < N; i++) {
        slopes[i] += factor * (powers.values[i] / powers.sum);
    }
}

template <int N>
__device__ __forceinline__ void backward_token(const GateBackward& p, int token, const float* pull, float z_scale,
                                               SlotScratch scratch) {
    const float* logits = p.logits + token * p.logits_stride;
    float slopes[N] = {};
    if (p.mask == nullptr || p.mask[token] != 0) {
        const Members all = all_candidates<N>(p.candidates);
        const Members summed = read_slots(p, token, scratch, slopes);
        const Scores<N> scores = scores_of<N>(logits, p.candidates, p.scoring);
#pragma unroll
        for (int i = 0; i < N; i++) {
            slopes[i] *= p.routed_scaling;
        }
        if (p.divisor == DIVISOR_NONE && p.scoring != SCORING_SOFTMAX) {
            through_scores(slopes, scores, all, p.scoring, logits);
        } else {
            const Members members = p.divisor == DIVISOR_NONE ? all : summed;
            through_shares(slopes, shares_of(logits, members, p.scoring, scores.values), members, p.scoring, logits);
        }
        if (p.balance != 0.0) {
            add_balance(slopes, scores, pull, all, p.scoring, logits);
        }
        add_z(p, logits, scores.log_sum_exp, z_scale, slopes);
    }
    float* d_logits = p.d_logits + static_cast<int64_t>(token) * p.candidates;
#pragma unroll
    for (int i = 0; i < N; i++) {
        if (candidate_of(i) < p.candidates) {
            d_logits[candidate_of(i)] = slopes[i];
        }
    }
}

// `∂(balance · L) / ∂p[t, e] = balance · E · f_e / unmasked`: `f_e` carries no gradient.
__device__ __forceinline__ void balance_slopes(const GateBackward& p, double unmasked, int* scratch, float* pull) {
    int mine = 0;
    for (int e = static_cast<int>(threadIdx.x); e < p.candidates; e += THREADS) {
        mine += p.load[e];
    }
    const int selections = block_sum(mine, scratch);
    const double scale = selections == 0 ? 0.0 : p.balance / (selections * unmasked);
    for (int e = static_cast<int>(threadIdx.x); e < p.candidates; e += THREADS) {
        pull[e] = static_cast<float>(scale * p.load[e]);
    }
    __syncthreads();
}

template <int N>
__device__ __forceinline__ void gate_backward(const GateBackward& p) {
    SHARED_ARRAY(int, scratch, MAX_WARPS);
    SHARED_ARRAY(float, pull, N * WARP);
    SHARED_ARRAY(float, d_weights, WARPS * N * WARP);
    SHARED_ARRAY(uint8_t, summed, WARPS * N * WARP);
    const int unmasked = max(p.unmasked[0], 1);
    balance_slopes(p, unmasked, scratch, pull);
    const float z_scale = 2.0f * p.z / static_cast<float>(unmasked);
    const SlotScratch of_warp = {d_weights + warp_index() * N * WARP, summed + warp_index() * N * WARP};
    const int first = (static_cast<int>(blockIdx.x) * WARPS + warp_index()) * p.tokens_per_warp;
    const int end = min(first + p.tokens_per_warp, p.tokens);
    for (int token = first; token < end; token++) {
        backward_token<N>(p, token, pull, z_scale, of_warp);
    }
}

}  // namespace
}  // namespace da_moe

// `blocks` a multiprocessor leave each thread the registers that its candidates need.
#define GATE_BACKWARD(candidates, blocks)                                      \
    extern "C" __global__ void __launch_bounds__(da_moe::THREADS, blocks)      \
        gate_backward_##candidates(const __grid_constant__ GateBackward p) {   \
        da_moe::gate_backward<candidates / da_moe::WARP>(p);                   \
    }                                                                          \
    GPU_KERNEL(gate_backward_##candidates)

GATE_BACKWARD(32, 4)
GATE_BACKWARD(64, 4)
GATE_BACKWARD(128, 4)
GATE_BACKWARD(256, 3)
GATE_BACKWARD(512, 2)
