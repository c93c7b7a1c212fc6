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

template <int N>
__device__ __forceinline__ Scores<N> scores_of(const float* logits, int candidates, int scoring) {
    float z[N];
    float largest = -INFINITY;
#pragma unroll
    for (int i = 0; i < N; i++) {
        z[i] = candidate_of(i) < candidates ? logits[candidate_of(i)] : -INFINITY;
        largest = fmaxf(largest, z[i]);
    }
    largest = warp_max(largest);
    Scores<N> scores;
#pragma unroll
    for (int i = 0; i < N; i++) {
        scores.values[i] = candidate_of(i) < candidates ? expf(z[i] - largest) : 0.0f;
    }
    const float sum = candidate_sum(scores.values);
    scores.log_sum_exp = largest + logf(sum);
    if (scoring == SCORING_SOFTMAX) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            scores.values[i] /= sum;
            scores.shares[i] = scores.values[i];
        }
        return scores;
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        scores.values[i] = candidate_of(i) < candidates ? score(scoring, z[i]) : 0.0f;
    }
    const float total = candidate_sum(scores.values);
#pragma unroll
    for (int i = 0; i < N; i++) {
        scores.shares[i] = total == 0.0f ? 0.0f : scores.values[i] / total;
    }
    return scores;
}

}  // namespace da_moe
