// SPEC §3: the order of a token's candidates by selection key `s + b`, with the classes that come before it: reachable
// groups before the others and, for `score-threshold`, candidates above their threshold before those below.
#pragma once

#include "device/order.cuh"
#include "gate/scores.cuh"

namespace da_moe {

// Classes of a key: a candidate whose group was chosen may be selected; one above its threshold goes first.
constexpr uint32_t REACHABLE = 2;
constexpr uint32_t ABOVE = 1;

// Per-warp shared memory for group-limited selection.
struct GroupScratch {
    float* keys;
    uint8_t* chosen;
};

// The sum of a group's two largest keys, its one key when it has one; NaN counts as smallest.
__device__ __forceinline__ float group_score(const float* keys, int size) {
    float best = NAN;
    float second = NAN;
    for (int e = 0; e < size; e++) {
        if (ordered(keys[e]) > ordered(best)) {
            second = best;
            best = keys[e];
        } else if (ordered(keys[e]) > ordered(second)) {
            second = keys[e];
        }
    }
    return size == 1 ? best : best + second;
}

// Marks in `scratch.chosen` the groups of largest score, ties to the lower group.
template <int N>
__device__ __forceinline__ void choose_groups(const float (&keys)[N], const Gate& p, GroupScratch scratch) {
    const int size = p.candidates / p.groups;
#pragma unroll
    for (int i = 0; i < N; i++) {
        if (candidate_of(i) < p.candidates) {
            scratch.keys[candidate_of(i)] = keys[i];
        }
    }
    __syncwarp();
    Key groups[N];
#pragma unroll
    for (int i = 0; i < N; i++) {
        const int group = candidate_of(i);
        groups[i] = NO_KEY;
        if (group < p.groups) {
            groups[i] = make_key(0, group_score(scratch.keys + group * size, size), group);
            scratch.chosen[group] = 0;
        }
    }
    __syncwarp();
    for (int taken = 0; taken < p.chosen_groups; taken++) {
        const int group = key_index(take_largest(groups));
        if (lane_index() == 0) {
            scratch.chosen[group] = 1;
        }
    }
    __syncwarp();
}

// What is added to a candidate's score for selection; 0 past the last.
__device__ __forceinline__ float bias_of(const Gate& p, int e) {
    return p.bias != nullptr && e < p.candidates ? p.bias[e] : 0.0f;
}

// A number with a bias. Infinite ones count as the largest there are, so that an infinite bias is the sum; NaN passes through.
__device__ __forceinline__ float biased(float value, float bias) {
    const float below = value > LARGEST ? LARGEST : value;
    return (below < -LARGEST ? -LARGEST : below) + bias;
}

// Whether every bias only allows (0), forbids (-∞) or forces (+∞): then the logits have the order of the scores, and have it
// where scores are too small for f32. relu makes one score of many logits.
template <int N>
__device__ __forceinline__ bool ranked_by_logits(const Gate& p) {
    bool plain = p.scoring != SCORING_RELU;
#pragma unroll
    for (int i = 0; i < N; i++) {
        const float bias = bias_of(p, candidate_of(i));
        plain = plain && (bias == 0.0f || !(fabsf(bias) < INFINITY));
    }
    return __all_sync(FULL_WARP, plain);
}

// What a group's score is made of: `s + b`, or scores relative to the largest that is not forbidden.
template <int N>
__device__ __forceinline__ void group_keys(float (&keys)[N], const Scores<N>& scores, const float* logits, const Gate& p,
                                           bool by_logits) {
    Members allowed = all_candidates<N>(p.candidates);
#pragma unroll
    for (int i = 0; i < N; i++) {
        allowed &= bias_of(p, candidate_of(i)) == -INFINITY ? ~(1u << i) : ~0u;
    }
    const float origin = largest_logit<N>(logits, allowed);
#pragma unroll
    for (int i = 0; i < N; i++) {
        const int e = candidate_of(i);
        const float logit = e < p.candidates ? logits[e] : -INFINITY;
        keys[i] = biased(by_logits ? relative_score(p.scoring, logit, origin) : scores.values[i], bias_of(p, e));
    }
}

// One key for each candidate. `thresholds` is shared memory, read for `score-threshold` only.
template <int N>
__device__ __forceinline__ void selection_keys(Key (&keys)[N], const Scores<N>& scores, const float* logits, const Gate& p,
                                               const float* thresholds, GroupScratch scratch) {
    const bool by_logits = ranked_by_logits<N>(p);
    const bool limited = p.chosen_groups < p.groups;
    if (limited) {
        float values[N];
        group_keys(values, scores, logits, p, by_logits);
        choose_groups(values, p, scratch);
    }
#pragma unroll
    for (int i = 0; i < N; i++) {
        const int e = candidate_of(i);
        keys[i] = NO_KEY;
        if (e < p.candidates) {
            const float key = biased(scores.values[i], bias_of(p, e));
            const bool above = p.policy == POLICY_SCORE_THRESHOLD && key > thresholds[e];
            const bool reachable = !limited || scratch.chosen[e / (p.candidates / p.groups)] != 0;
            const float order = by_logits ? biased(logits[e], bias_of(p, e)) : key;
            keys[i] = make_key(reachable ? REACHABLE | (above ? ABOVE : 0u) : 0u, order, e);
        }
    }
    // The next token's groups must not overwrite what a slower lane still reads.
    __syncwarp();
}

// Reachable candidates above their threshold.
template <int N>
__device__ __forceinline__ int above_threshold(const Key (&keys)[N]) {
    int above = 0;
#pragma unroll
    for (int i = 0; i < N; i++) {
        above += keys[i] >> 48 == (REACHABLE | ABOVE);
    }
    return __reduce_add_sync(FULL_WARP, above);
}

// The smallest k whose k largest shares sum, in descending order, to at least p; k_max when none up to it does.
template <int N>
__device__ __forceinline__ int top_p(const float (&shares)[N], const Gate& p) {
    Key keys[N];
#pragma unroll
    for (int i = 0; i < N; i++) {
        keys[i] = candidate_of(i) < p.candidates ? make_key(0, shares[i], candidate_of(i)) : NO_KEY;
    }
    double sum = 0.0;
    for (int k = 1; k <= p.k_max; k++) {
        sum += static_cast<double>(take_largest(keys, shares).value);
        if (sum >= p.p) {
            return k;
        }
    }
    return p.k_max;
}

// Collects one value for each of up to K places from a warp, and writes 32 of them at a time.
template <class T>
struct WarpWriter {
    T* to;
    T mine;

    __device__ __forceinline__ void put(int place, T value, int count) {
        mine = lane_index() == place % WARP ? value : mine;
        const int first = place / WARP * WARP;
        if ((place % WARP == WARP - 1 || place == count - 1) && first + lane_index() <= place) {
            to[first + lane_index()] = mine;
        }
    }
};

}  // namespace da_moe
