// SPEC §6: gradients of one token from its weights down to its logits, spread over a warp as its scores are.
#pragma once

#include "scores.cuh"

namespace da_moe {

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

// dg → ds through the scaling and the divisor, which sums the scores of `summed`. In: dg of the selected, 0 of the others.
template <int N>
__device__ __forceinline__ void through_weights(float (&slopes)[N], const Scores<N>& scores, Members summed, int divisor,
                                                float scaling) {
    if (divisor == DIVISOR_NONE) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            slopes[i] *= scaling;
        }
        return;
    }
    float shares[N];
#pragma unroll
    for (int i = 0; i < N; i++) {
        shares[i] = has(summed, i) ? scores.values[i] : 0.0f;
    }
    const float sum = candidate_sum(shares);
#pragma unroll
    for (int i = 0; i < N; i++) {
        shares[i] /= sum;
    }
    // g = c·s / Σs, so every score in the sum also lowers every weight.
    centre(slopes, shares, summed);
#pragma unroll
    for (int i = 0; i < N; i++) {
        slopes[i] = sum == 0.0f || !has(summed, i) ? 0.0f : slopes[i] * scaling / sum;
    }
}

// Adds the balance loss's ds. `pull` is its slope in the shares, which softmax scores are already, and softmax's own gradient
// centres what it gets.
template <int N>
__device__ __forceinline__ void add_balance(float (&slopes)[N], const Scores<N>& scores, const float* pull, Members all,
                                            int scoring) {
    if (scores.total == 0.0f) {
        return;
    }
    float pulls[N];
#pragma unroll
    for (int i = 0; i < N; i++) {
        pulls[i] = has(all, i) ? pull[candidate_of(i)] : 0.0f;
    }
    if (scoring != SCORING_SOFTMAX) {
        centre(pulls, scores.shares, all);
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        slopes[i] += pulls[i] / scores.total;
    }
}

// ds → dz.
template <int N>
__device__ __forceinline__ void through_scores(float (&slopes)[N], const Scores<N>& scores, Members all, int scoring) {
    if (scoring == SCORING_SOFTMAX) {
        centre(slopes, scores.values, all);
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        const float s = scores.values[i];
        const float of_relu = s > 0.0f ? slopes[i] : 0.0f;
        const float of_exp = slopes[i] * s * (scoring == SCORING_SIGMOID ? 1.0f - s : 1.0f);
        slopes[i] = scoring == SCORING_RELU ? of_relu : of_exp;
    }
}

}  // namespace da_moe
