// SPEC §1: importance from values by head, by table or by router, and its normalisation. All vectors are f32[T].
//
//                               what                                  grid, block      barriers     bytes
//   importance_router_entropy   H(softmax z_t) / ln E                 (T / 8), 256     none         4·T·(C + 1)
//   importance_reduce           heads or table, `none` and `affine`   (T / 256), 256   none         T·(4·H + 9)
//   importance_normalize        `max`, `min-max` of a sequence        (B), 1024        four         14·T
//   importance_rank             average rank in a sequence            (T / 256), 256   two a tile   9·T; 5·T·n/256 of the L2
//   importance_running          min-max against carried statistics    (1), 1024        four         14·T
//
// A warp has a token of router_entropy; a thread has one of reduce and rank, and every 1024th of a sequence, or of all, in
// the others, whose barriers are those of a smallest and a largest value. rank's keep 256 values of others in shared memory.
//
// Floor: bytes over the memory bandwidth, for T 32768 at 3 TB/s 6 µs of router_entropy with C 128, and 0.8 µs of reduce with
// H 16, less than a launch. Of normalize and running, one block's share of the bandwidth; of rank, its n² comparisons.
//
// A sum over parts (`mix`) is built by `weight` and `accumulate`. Importance that is NaN or negative counts as 0 before
// every rule and after it; masked tokens take no part and get 0.

#include "abi.h"
#include "device/block.cuh"
#include "device/partition.cuh"

namespace da_moe {
namespace {

constexpr int THREADS = 256;
constexpr int SEQUENCE_THREADS = 1024;

__device__ __forceinline__ float sane(float value) { return value > 0.0f ? value : 0.0f; }

__device__ __forceinline__ bool takes_part(const uint8_t* mask, int token) {
    return mask == nullptr || mask[token] != 0;
}

template <class Params>
__device__ __forceinline__ void put(const Params& p, int token, float value) {
    const float weighted = p.weight * value;
    p.out[token] = p.accumulate ? p.out[token] + weighted : weighted;
}

// One head's value, or the table's; an id outside the table has importance 0.
__device__ __forceinline__ float measured(const ImportanceReduce& p, int token) {
    if (p.ids != nullptr) {
        const int id = p.ids[token];
        return id >= 0 && id < p.vocabulary ? sane(p.values[id]) : 0.0f;
    }
    float result = sane(p.values[token]);
    for (int head = 1; head < p.heads; head++) {
        const float value = sane(p.values[static_cast<int64_t>(head) * p.tokens + token]);
        result = p.heads_max ? fmaxf(result, value) : result + value;
    }
    return p.heads_max ? result : result / static_cast<float>(p.heads);
}

__device__ __forceinline__ Partition sequences_of(const ImportanceNormalize& p) {
    return {p.cu_seqlens, p.sequences, p.tokens};
}

struct Extremes {
    float low;
    float high;
};

// Smallest and largest sane value of the unmasked tokens in a range, over the whole block.
__device__ __forceinline__ Extremes extremes(const float* values, const uint8_t* mask, Range range, float* scratch) {
    Extremes found = {INFINITY, 0.0f};
    for (int t = range.first + static_cast<int>(threadIdx.x); t < range.end; t += static_cast<int>(blockDim.x)) {
        if (takes_part(mask, t)) {
            found.low = fminf(found.low, sane(values[t]));
            found.high = fmaxf(found.high, sane(values[t]));
        }
    }
    return {block_min(found.low, scratch), block_max(found.high, scratch)};
}

}  // namespace
}  // namespace da_moe

extern "C" __global__ void __launch_bounds__(da_moe::THREADS)
    importance_router_entropy(const __grid_constant__ ImportanceRouterEntropy p) {
    using namespace da_moe;
    const int token = static_cast<int>(blockIdx.x) * (THREADS / WARP) + warp_index();
    if (token >= p.tokens) {
        return;
    }
    const float* logits = p.logits + token * p.logits_stride;
    float largest = -INFINITY;
    for (int e = lane_index(); e < p.candidates; e += WARP) {
        largest = fmaxf(largest, logits[e]);
    }
    largest = warp_max(largest);
    float total = 0.0f;
    float weighted = 0.0f;
    for (int e = lane_index(); e < p.candidates; e += WARP) {
        const float below = logits[e] - largest;
        const float share = expf(below);
        total += share;
        // A candidate of no probability adds no entropy: 0 · -∞ is 0 here.
        weighted += share == 0.0f ? 0.0f : share * below;
    }
    total = warp_sum(total);
    weighted = warp_sum(weighted);
    if (lane_index() == 0) {
        p.values[token] = p.scale * (logf(total) - weighted / total);
    }
}
GPU_KERNEL(importance_router_entropy)

extern "C" __global__ void __launch_bounds__(da_moe::THREADS)
    importance_reduce(const __grid_constant__ ImportanceReduce p) {
    using namespace da_moe;
    const int token = static_cast<int>(blockIdx.x) * THREADS + static_cast<int>(threadIdx.x);
    if (token >= p.tokens) {
        return;
    }
    float value = 0.0f;
    if (takes_part(p.mask, token)) {
        value = sane(measured(p, token));
        if (p.rule == RULE_AFFINE) {
            value = fminf(sane(p.a * value + p.b), 1.0f);
        }
    }
    put(p, token, value);
}
GPU_KERNEL(importance_reduce)

// One pass for the extremes, one for the quotients.
extern "C" __global__ void __launch_bounds__(da_moe::SEQUENCE_THREADS)
    importance_normalize(const __grid_constant__ ImportanceNormalize p) {
    using namespace da_moe;
    SHARED_ARRAY(float, scratch, MAX_WARPS);
    const Partition sequences = sequences_of(p);
    const int sequence = static_cast<int>(blockIdx.x);
    const Range range = sequences.range(sequence);
    const Extremes found = extremes(p.values, p.mask, range, scratch);
    const float low = p.rule == RULE_MIN_MAX ? found.low : 0.0f;
    for (int t = range.first + static_cast<int>(threadIdx.x); t < range.end; t += SEQUENCE_THREADS) {
        // A quotient 0/0 is NaN, which is not sane: 0.
        const float value = takes_part(p.mask, t) ? sane((sane(p.values[t]) - low) / (found.high - low)) : 0.0f;
        if (sequences.of(t) == sequence) {
            put(p, t, value);
        }
    }
}
GPU_KERNEL(importance_normalize)

// Every thread compares its value with its whole sequence, 256 values at a time from shared memory. n² comparisons, below
// 40 µs for 32k tokens of one sequence on a device of 30 T comparisons/s.
extern "C" __global__ void __launch_bounds__(da_moe::THREADS)
    importance_rank(const __grid_constant__ ImportanceNormalize p) {
    using namespace da_moe;
    SHARED_ARRAY(float, others, THREADS);
    const int first = static_cast<int>(blockIdx.x) * THREADS;
    const int last = min(first + THREADS, p.tokens) - 1;
    const int token = min(first + static_cast<int>(threadIdx.x), last);
    const Partition sequences = sequences_of(p);
    const Range own = sequences.range(sequences.of(token));
    const float value = sane(p.values[token]);
    int below = 0;
    int equal = 0;
    int unmasked = 0;
    const int end = sequences.range(sequences.of(last)).end;
    for (int tile = sequences.range(sequences.of(first)).first; tile < end; tile += THREADS) {
        const int other = tile + static_cast<int>(threadIdx.x);
        // Masked tokens are NaN, which is neither below nor equal to anything.
        others[threadIdx.x] = other < end && takes_part(p.mask, other) ? sane(p.values[other]) : NAN;
        __syncthreads();
        const int stop = min(own.end - tile, THREADS);
        for (int i = max(own.first - tile, 0); i < stop; i++) {
            below += others[i] < value;
            equal += others[i] == value;
            unmasked += others[i] == others[i];
        }
        __syncthreads();
    }
    if (first + static_cast<int>(threadIdx.x) <= last) {
        // The mean of the ranks below + 1 ..= below + equal.
        const float average = static_cast<float>(below + 1 + below + equal) / 2.0f;
        put(p, token, takes_part(p.mask, token) ? average / static_cast<float>(unmasked) : 0.0f);
    }
}
GPU_KERNEL(importance_rank)

// The statistics used are those of earlier steps; this step's move them afterwards.
extern "C" __global__ void __launch_bounds__(da_moe::SEQUENCE_THREADS)
    importance_running(const __grid_constant__ ImportanceRunning p) {
    using namespace da_moe;
    SHARED_ARRAY(float, scratch, MAX_WARPS);
    const bool fresh = p.state[STATE_STEPS] == 0.0f;
    const float low = fresh ? 0.0f : p.state[STATE_MINIMUM];
    const float high = fresh ? 1.0f : p.state[STATE_MAXIMUM];
    const Extremes found = extremes(p.values, p.mask, {0, p.tokens}, scratch);
    for (int t = static_cast<int>(threadIdx.x); t < p.tokens; t += SEQUENCE_THREADS) {
        const float value = sane((sane(p.values[t]) - low) / (high - low));
        p.out[t] = takes_part(p.mask, t) ? fminf(value, 1.0f) : 0.0f;
    }
    // A batch without an unmasked token is no step; it alone leaves the minimum infinite above the maximum.
    if (threadIdx.x == 0 && p.training && found.low <= found.high) {
        const float keep = fresh ? 0.0f : p.momentum;
        p.state[STATE_MINIMUM] = keep * low + (1.0f - keep) * found.low;
        p.state[STATE_MAXIMUM] = keep * high + (1.0f - keep) * found.high;
        p.state[STATE_STEPS] += 1.0f;
    }
}
GPU_KERNEL(importance_running)
