// SPEC §6: gradients of one token from its weights down to its logits, spread over a warp as its scores are.
#pragma once

#include "gate/scores.cuh"

namespace da_moe {

// 1 - sigmoid(z) without the difference.
__device__ __forceinline__ float sigmoid_complement(float z) { return 1.0f / (1.0f + expf(z)); }

// `v_e - Σ_j p_j v_j` for the members of a set over which `p` sums to 1.
//
// Everything is first taken relative to a member of largest `p`: when that is nearly 1 its own result would otherwise be the
// difference of two nearly equal numbers.
template <int N>
__device__ __forceinline__ void centre(float (&v)[N], const float (&p)[N], Members members) {
    float largest = -INFINITY;
#pragma unroll
    for (int i = 0; i < N; i++) {
        largest = has(members, i) ? fmaxf(largest, p[i]) : largest;
    }
    largest = warp_max(largest);
    float origin = 0.0f;
    bool found = false;
#pragma unroll
    for (int i = 0; i < N; i++) {
        const bool heaviest = has(members, i) && p[i] == largest;
        origin = heaviest ? v[i] : origin;
        found = found || heaviest;
    }
    // Lane 0 where none is found, among NaN: what follows is NaN then.
    const int owner = max(__ffs(static_cast<int>(__ballot_sync(FULL_WARP, found))) - 1, 0);
    origin = __shfl_sync(FULL_WARP, origin, owner);
    float products[N];
#pragma unroll
    for (int i = 0; i < N; i++) {
        products[i] = has(members, i) ? p[i] * (v[i] - origin) : 0.0f;
    }
    const float mean = candidate_sum(products);
#pragma unroll
    for (int i = 0; i < N; i++) {
        v[i] = has(members, i) ? (v[i] - origin) - mean : v[i];
    }
}

// From the gradient in each member's share to that in its logit; 0 of other candidates.
template <int N>
__device__ __forceinline__ void through_shares(float (&v)[N], const Shares<N>& shares, Members members, int scoring,
                                               const float* logits) {
    centre(v, shares.values, members);
#pragma unroll
    for (int i = 0; i < N; i++) {
        if (!has(members, i)) {
            v[i] = 0.0f;
            continue;
        }
        const float logit = logits[candidate_of(i)];
        if (scoring == SCORING_RELU) {
            // 0 · v, because NaN is not to be lost.
            v[i] = logit > 0.0f ? v[i] / shares.origin / shares.sum : v[i] * 0.0f;
        } else {
            v[i] *= shares.values[i] * (scoring == SCORING_SIGMOID ? sigmoid_complement(logit) : 1.0f);
        }
    }
}

// From the gradient in each candidate's score to that in its logit, for scores that do not depend on each other.
template <int N>
__device__ __forceinline__ void through_scores(float (&slopes)[N], const Scores<N>& scores, Members all, int scoring,
                                               const float* logits) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        const float s = scores.values[i];
        const float of_relu = s > 0.0f ? slopes[i] : 0.0f;
        const float complement = has(all, i) ? sigmoid_complement(logits[candidate_of(i)]) : 0.0f;
        slopes[i] = scoring == SCORING_RELU ? of_relu : slopes[i] * s * complement;
    }
}

}  // namespace da_moe
