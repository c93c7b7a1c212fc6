// SPEC §3: scores of one token, spread over a warp: lane l holds candidates l, l + 32, l + 64 …, N of them.
#pragma once

#include "../abi.h"
#include "../device/warp.cuh"

namespace da_moe {

__device__ __forceinline__ int candidate_of(int i) { return lane_index() + i * WARP; }

template <int N>
struct Scores {
    // s: softmax, sigmoid or relu of the logits.
    float values[N];
    // s over its row sum: the probabilities of `top-p` and of the balance loss.
    float shares[N];
    // The row sum of s; 1 for softmax.
    float total;
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

__device__ __forceinline__ float score(int scoring, float logit) {
    if (scoring == SCORING_SIGMOID) {
        return 1.0f / (1.0f + expf(-logit));
    }
    // Written so that NaN passes through.
    return logit <= 0.0f ? 0.0f : logit;
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
        scores.total = 1.0f;
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
    scores.total = candidate_sum(scores.values);
#pragma unroll
    for (int i = 0; i < N; i++) {
        scores.shares[i] = scores.total == 0.0f ? 0.0f : scores.values[i] / scores.total;
    }
    return scores;
}

}  // namespace da_moe
