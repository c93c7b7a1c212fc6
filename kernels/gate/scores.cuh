// SPEC §3: scores of one token, spread over a warp: lane l holds candidates l, l + 32, l + 64 …, N of them.
#pragma once

#include "abi.h"
#include "device/warp.cuh"

namespace da_moe {

__device__ __forceinline__ int candidate_of(int i) { return lane_index() + i * WARP; }

// Some of a lane's candidates: bit i for `candidate_of(i)`.
using Members = unsigned;

template <int N>
__device__ __forceinline__ Members all_candidates(int candidates) {
    Members members = 0;
#pragma unroll
    for (int i = 0; i < N; i++) {
        members |= candidate_of(i) < candidates ? 1u << i : 0u;
    }
    return members;
}

__device__ __forceinline__ bool has(Members members, int i) { return (members >> i & 1u) != 0; }

template <int N>
struct Scores {
    // s: softmax, sigmoid or relu of the logits.
    float values[N];
    // s over its row sum: the probabilities of `top-p` and of the balance loss.
    float shares[N];
    float log_sum_exp;
};

// Sum of one value a candidate: by lane in order, then by the warp's tree.
template <int N>
__device__ __forceinline__ float candidate_sum(const float (&values)[N]) {
    float sum = values[0];
#pragma unroll
    for (int i = 1; i < N; i++) {
        sum += values[i];
    }
    return warp_sum(sum);
}

// The largest logit of some candidates, -∞ of none; NaN counts as none.
template <int N>
__device__ __forceinline__ float largest_logit(const float* logits, Members members) {
    float largest = -INFINITY;
#pragma unroll
    for (int i = 0; i < N; i++) {
        largest = has(members, i) ? fmaxf(largest, logits[candidate_of(i)]) : largest;
    }
    return warp_max(largest);
}

// max(z, 0) and min(z, 0), written so that NaN passes through.
__device__ __forceinline__ float positive(float z) { return z <= 0.0f ? 0.0f : z; }
__device__ __forceinline__ float negative(float z) { return z > 0.0f ? 0.0f : z; }

__device__ __forceinline__ float score(int scoring, float logit) {
    return scoring == SCORING_SIGMOID ? 1.0f / (1.0f + expf(-logit)) : positive(logit);
}

// A score over one that is within a factor of two of the largest, `origin` being that one's logit: at most about 1, and at
// least 1/2 for the largest itself. Scores far below zero have no f32, but their ratios do.
__device__ __forceinline__ float relative_score(int scoring, float logit, float origin) {
    if (scoring == SCORING_RELU) {
        return positive(logit) / origin;
    }
    if (scoring == SCORING_SOFTMAX) {
        return expf(logit - origin);
    }
    // s = e^min(z, 0) / (1 + e^-|z|).
    return expf(negative(logit) - negative(origin)) / (1.0f + expf(-fabsf(logit)));
}

// What part of some candidates' scores each of them has.
template <int N>
struct Shares {
    // 0 where every score is 0, NaN where the score is; 0 of other candidates.
    float values[N];
    // The largest logit, and the sum of the scores relative to that one's.
    float origin;
    float sum;
};

template <int N>
__device__ __forceinline__ Shares<N> shares_of(const float* logits, Members members, int scoring, const float (&scores)[N]) {
    Shares<N> shares;
    shares.origin = largest_logit<N>(logits, members);
    const bool nothing = scoring == SCORING_RELU ? shares.origin <= 0.0f : shares.origin == -INFINITY;
#pragma unroll
    for (int i = 0; i < N; i++) {
        const bool counts = has(members, i) && !nothing;
        shares.values[i] = counts ? relative_score(scoring, logits[candidate_of(i)], shares.origin) : 0.0f;
    }
    shares.sum = candidate_sum(shares.values);
#pragma unroll
    for (int i = 0; i < N; i++) {
        // Divided, not multiplied by the reciprocal: the bits of a sum of one share are 1.
        const float share = shares.sum == 0.0f ? 0.0f : shares.values[i] / shares.sum;
        shares.values[i] = has(members, i) && scores[i] != scores[i] ? scores[i] : share;
    }
    return shares;
}

// softmax of a row before it is divided: `e^(z - largest)`, 0 past the last candidate, and the sum.
template <int N>
struct Powers {
    float values[N];
    float largest;
    float sum;
};

template <int N>
__device__ __forceinline__ Powers<N> powers_of(const float* logits, int candidates) {
    Powers<N> powers;
    powers.largest = -INFINITY;
#pragma unroll
    for (int i = 0; i < N; i++) {
        powers.values[i] = candidate_of(i) < candidates ? logits[candidate_of(i)] : -INFINITY;
        powers.largest = fmaxf(powers.largest, powers.values[i]);
    }
    powers.largest = warp_max(powers.largest);
#pragma unroll
    for (int i = 0; i < N; i++) {
        powers.values[i] = candidate_of(i) < candidates ? expf(powers.values[i] - powers.largest) : 0.0f;
    }
    powers.sum = candidate_sum(powers.values);
    return powers;
}

template <int N>
__device__ __forceinline__ Scores<N> scores_of(const float* logits, int candidates, int scoring) {
    const Powers<N> powers = powers_of<N>(logits, candidates);
    Scores<N> scores;
    scores.log_sum_exp = powers.largest + logf(powers.sum);
    if (scoring == SCORING_SOFTMAX) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            scores.values[i] = powers.values[i] / powers.sum;
            scores.shares[i] = scores.values[i];
        }
        return scores;
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        scores.values[i] = candidate_of(i) < candidates ? score(scoring, logits[candidate_of(i)]) : 0.0f;
    }
    const Shares<N> shares = shares_of(logits, all_candidates<N>(candidates), scoring, scores.values);
#pragma unroll
    for (int i = 0; i < N; i++) {
        scores.shares[i] = shares.values[i];
    }
    return scores;
}

}  // namespace da_moe
