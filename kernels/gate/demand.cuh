// SPEC §2: how many experts a token asks for. Comparisons are f32 as the specification says, so that integers are exact.
#pragma once

#include "abi.h"
#include "gate/select.cuh"

namespace da_moe {

__device__ __forceinline__ float sane_importance(float value) { return value > 0.0f ? value : 0.0f; }

// A count as a float, which may be infinite or NaN (then `low`), held in [low, high].
__device__ __forceinline__ int clamp_count(float count, int low, int high) {
    if (count >= static_cast<float>(high)) {
        return high;
    }
    return count > static_cast<float>(low) ? static_cast<int>(count) : low;
}

// The price of one level under `budget-running`, before this step moves it.
__device__ __forceinline__ float running_price(const Gate& p) {
    const float price = p.state[STATE_PRICE];
    return price > 0.0f && price < INFINITY ? price : p.first_price;
}

// Thresholds at or below a token's importance; `thresholds` is shared memory.
__device__ __forceinline__ int thresholds_reached(float importance, const float* thresholds, int count) {
    int reached = 0;
    for (int i = lane_index(); i < count; i += WARP) {
        reached += importance >= thresholds[i];
    }
    return __reduce_add_sync(FULL_WARP, reached);
}

// k_t of an unmasked token, in [k_min, k_max]; the same in every lane.
template <int N>
__device__ __forceinline__ int experts_per_token(const Gate& p, int token, const Scores<N>& scores, const Key (&keys)[N],
                                                 const float* thresholds) {
    const int levels = p.k_max - p.k_min;
    switch (p.policy) {
        case POLICY_FIXED:
            return min(max(p.fixed, p.k_min), p.k_max);
        case POLICY_PROPORTIONAL:
            return clamp_count(ceilf(sane_importance(p.importance[token]) * p.scale), p.k_min, p.k_max);
        case POLICY_THRESHOLDS:
            return p.k_min + min(thresholds_reached(sane_importance(p.importance[token]), thresholds,
                                                    p.threshold_count), levels);
        case POLICY_BUDGET:
            return p.k[token];
        case POLICY_BUDGET_RUNNING:
            return p.k_min +
                   clamp_count(floorf(sane_importance(p.importance[token]) / running_price(p)), 0, levels);
        case POLICY_TOP_P:
            return max(top_p(scores.shares, p), p.k_min);
        case POLICY_SCORE_THRESHOLD:
            return min(max(above_threshold(keys), p.k_min), p.k_max);
        default:
            return min(max(p.k_given[token], p.k_min), p.k_max);
    }
}

// `λ ← λ · ((Σ (k_t − k_min) + 1) / (N + 1))^(1 − momentum)`, kept positive and finite: neither 0, which means "never set",
// nor infinity, which it could never leave.
__device__ __forceinline__ void move_price(const Gate& p, int selected, int unmasked) {
    const double tokens = unmasked;
    const double wanted = round(p.mean_k * tokens) - p.k_min * tokens;
    const double levels = fmin(fmax(wanted, 0.0), (p.k_max - p.k_min) * tokens);
    const double used = static_cast<double>(selected) - p.k_min * tokens;
    const double next = running_price(p) * pow((used + 1.0) / (levels + 1.0), 1.0 - p.momentum);
    p.state[STATE_PRICE] = static_cast<float>(fmin(fmax(next, 1.17549435e-38), static_cast<double>(LARGEST)));
}

}  // namespace da_moe
