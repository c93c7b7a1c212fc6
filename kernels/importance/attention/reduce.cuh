// What becomes of scores: each thread reduces the columns it holds of R rows, tile by tile, in exponents of two.
//
// A score's exponent is q·k · scale + shift, with a shift for each column: −∞ hides it, −lse makes it a probability's.
// The maximum drops NaN as SPEC §1 wants; e^s itself is only taken where a sum needs it.
#pragma once

#include "importance/attention/sequence_tile.cuh"
#include "device/ptx.cuh"

namespace da_moe {

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;
// An exponent whose power is 0, and which times 0 is 0, as −∞ is not.
constexpr float NOTHING = -300.0f;

enum class Reduction {
    // The largest exponent.
    Largest,
    // Σ 2^x; NaN counts as 0.
    Sum,
    // The largest exponent m, and Σ 2^(x−m) against it, rescaled when a larger one comes; NaN makes the sum NaN.
    Online,
    // Also Σ 2^(x−m) (x−m).
    Weighted,
};

__device__ __forceinline__ Reduction reduction_of(const ImportanceQueryKey& p) {
    switch (p.measure) {
        case MEASURE_RECEIVED_MAX:
            return Reduction::Largest;
        case MEASURE_RECEIVED_SUM:
        case MEASURE_RECEIVED_MEAN:
            return Reduction::Sum;
        case MEASURE_GIVEN_ENTROPY:
            return Reduction::Weighted;
        case MEASURE_GIVEN_PEAK:
            return p.lse == nullptr ? Reduction::Online : Reduction::Largest;
        default:
            return Reduction::Online;
    }
}

// What is known of a row after some columns.
struct Seen {
    float largest;
    float sum;
    float weighted;

    // Sums alone are against 2^0 from the start.
    __device__ __forceinline__ static Seen nothing(Reduction reduction) {
        return {reduction == Reduction::Sum ? 0.0f : -INFINITY, 0.0f, 0.0f};
    }

    // What powers are taken against: where every score so far is −∞, anything finite gives them the power 0.
    __device__ __forceinline__ float base() const { return largest == -INFINITY ? 0.0f : largest; }

    // Takes the sums over to a base that is at least as large.
    __device__ __forceinline__ void rebase(float base) {
        const float factor = ptx::ex2(largest - base);
        weighted = (weighted + sum * fmaxf(largest - base, NOTHING)) * factor;
        sum *= factor;
    }

    // Both sides rebased: the same for any order of the two.
    __device__ __forceinline__ void merge(Seen other) {
        const Seen both = {fmaxf(largest, other.largest), 0.0f, 0.0f};
        rebase(both.base());
        other.rebase(both.base());
        *this = {both.largest, sum + other.sum, weighted + other.weighted};
    }
};

template <int R, int C>
__device__ __forceinline__ void absorb_largest(Seen (&seen)[R], const float (&x)[R][C]) {
#pragma unroll
    for (int r = 0; r < R; r++) {
#pragma unroll
        for (int c = 0; c < C; c++) {
            seen[r].largest = fmaxf(seen[r].largest, x[r][c]);
        }
    }
}

template <int R, int C>
__device__ __forceinline__ void absorb_sum(Seen (&seen)[R], const float (&x)[R][C]) {
#pragma unroll
    for (int r = 0; r < R; r++) {
#pragma unroll
        for (int c = 0; c < C; c++) {
            seen[r].sum += fmaxf(ptx::ex2(x[r][c]), 0.0f);
        }
    }
}

template <bool WEIGHTED, int R, int C>
__device__ __forceinline__ void absorb_online(Seen (&seen)[R], const float (&x)[R][C]) {
#pragma unroll
    for (int r = 0; r < R; r++) {
        float largest = seen[r].largest;
#pragma unroll
        for (int c = 0; c < C; c++) {
            largest = fmaxf(largest, x[r][c]);
        }
        const float base = Seen{largest, 0.0f, 0.0f}.base();
        seen[r].rebase(base);
        seen[r].largest = largest;
#pragma unroll
        for (int c = 0; c < C; c++) {
            const float below = x[r][c] - base;
            const float power = ptx::ex2(below);
            seen[r].sum += power;
            if constexpr (WEIGHTED) {
                seen[r].weighted += power * fmaxf(below, NOTHING);
            }
        }
    }
}

template <int R, int C>
__device__ __forceinline__ void absorb(Reduction reduction, Seen (&seen)[R], const float (&x)[R][C]) {
    switch (reduction) {
        case Reduction::Largest:
            return absorb_largest(seen, x);
        case Reduction::Sum:
            return absorb_sum(seen, x);
        case Reduction::Online:
            return absorb_online<false>(seen, x);
        case Reduction::Weighted:
            return absorb_online<true>(seen, x);
    }
}

// Entropy over ln of the visible keys. With the row's own log-sum-exp, log2 Σ − Σ·(x−m)/Σ; with the caller's `lse`,
// lse − Σ P x, where P is against that.
__device__ __forceinline__ float entropy(const Seen& seen, bool known, float lse, int visible) {
    float bits = log2f(seen.sum) - seen.weighted / seen.sum;
    if (known) {
        const float base = seen.base();
        bits = lse - ptx::ex2(base - lse) * (seen.weighted + base * seen.sum);
    }
    // Mathematically not negative; rounding of a peaked row must not make it so. NaN becomes 0.
    return visible > 1 ? fmaxf(bits / log2f(static_cast<float>(visible)), 0.0f) : 0.0f;
}

// The value of a row that takes part. `lse` is the row's own, in exponents of two, where the rows are queries and it is
// known; `visible` what `count_visible` says, where the measure asks.
__device__ __forceinline__ float value_of(const ImportanceQueryKey& p, const Seen& seen, float lse, int visible) {
    switch (p.measure) {
        case MEASURE_RECEIVED_MAX:
            return ptx::ex2(seen.largest);
        case MEASURE_RECEIVED_MEAN:
            return seen.sum / static_cast<float>(max(visible, 1));
        case MEASURE_GIVEN_ENTROPY:
            return entropy(seen, p.lse != nullptr, lse, visible);
        case MEASURE_GIVEN_PEAK:
            if (p.lse != nullptr) {
                return ptx::ex2(seen.largest - lse);
            }
            // 2^m over itself times the sum; a row without a finite score has no peak.
            return seen.largest == -INFINITY ? 0.0f : 1.0f / seen.sum;
        case MEASURE_LOG_SUM_EXP:
            return (seen.largest + log2f(seen.sum)) * LN_2;
        default:
            return seen.sum;
    }
}

}  // namespace da_moe
