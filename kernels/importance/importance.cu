// SPEC §1: importance from values by head, by table or by router, and its normalisation. All vectors are f32[T].
//
//                               what                                  grid, block      barriers     bytes
//   importance_router_entropy   H(softmax z_t) / ln E                 (T / 8), 256     none         4·T·(C + 1)
//   importance_reduce           heads or table, `none` and `affine`   (T / 256), 256   none         T·(4·H + 9)
//   importance_normalize        `max`, `min-max` of a sequence        (B), 1024        four         14·T
//   importance_rank             average rank in a sequence            (T / 64), 256    two a tile   9·T; 5·T·n/64 of the L2
//   importance_running          min-max against carried statistics    (1), 1024        four         14·T
//
// A warp has a token of router_entropy; a thread has one of reduce, and every 1024th of a sequence, or of all, in normalize
// and running, whose barriers are those of a smallest and a largest value. In rank sixteen threads share four tokens, and a
// tile is 1024 values of others in shared memory.
//
// Floor: bytes over the memory bandwidth, for T 32768 at 3 TB/s 6 µs of router_entropy with C 128, and 0.8 µs of reduce with
// H 16, less than a launch. Of normalize and running, one block's share of the bandwidth; of rank, its n² comparisons of
// five instructions, 0.18 ms for T 32768 in one sequence at an instruction a clock of each of 528 schedulers at 1.75 GHz.
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
// Tokens of a block that ranks them, values of a thread, threads that share the comparisons of one, and values of others
// that are in shared memory at once.
constexpr int RANK_TOKENS = 64;
constexpr int RANK_VALUES = 4;
constexpr int RANK_SHARERS = THREADS * RANK_VALUES / RANK_TOKENS;
constexpr int RANK_TILE = 1024;
static_assert(RANK_SHARERS <= WARP, "who shares comparisons adds them up by a warp's shuffles");

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

// Calls `visit(token, value, part)` for the tokens of a range with their sane values and whether they take part, among the
// threads of a block of SEQUENCE_THREADS. What a thread reads for BATCH of them is on its way at once.
template <class Visit>
__device__ __forceinline__ void each_token(const float* values, const uint8_t* mask, Range range, Visit visit) {
    constexpr int BATCH = 4;
    for (int start = range.first + static_cast<int>(threadIdx.x); start < range.end;
         start += BATCH * SEQUENCE_THREADS) {
        float read[BATCH];
        bool parts[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const int token = start + i * SEQUENCE_THREADS;
            read[i] = token < range.end ? values[token] : 0.0f;
            parts[i] = token < range.end && takes_part(mask, token);
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const int token = start + i * SEQUENCE_THREADS;
            if (token < range.end) {
                visit(token, sane(read[i]), parts[i]);
            }
        }
    }
}

// Smallest and largest sane value of at most `limit` of the unmasked tokens in a range, over the whole block; of none, a
// smallest above the largest.
__device__ __forceinline__ Extremes extremes(const float* values, const uint8_t* mask, Range range, float limit,
                                             float* scratch) {
    Extremes found = {INFINITY, 0.0f};
    each_token(values, mask, range, [&](int, float value, bool unmasked) {
        const bool part = unmasked && value <= limit;
        found.low = part ? fminf(found.low, value) : found.low;
        found.high = part ? fmaxf(found.high, value) : found.high;
    });
    return {block_min(found.low, scratch), block_max(found.high, scratch)};
}

// What stands for a masked token among the bits of sane values, which are in the order of the values: above them all.
constexpr int NOBODY = 0x7fffffff;

// 1 where a < b, else 0, for two that are not negative: the sign of the difference, which costs one instruction less to
// add to a count than a predicate does.
__device__ __forceinline__ unsigned is_below(int a, int b) { return static_cast<unsigned>(a - b) >> 31; }

// What some others say of VALUES values: twice the others below one and once those equal to it; and how many there are.
template <int VALUES>
struct Standing {
    unsigned ranks[VALUES];
    unsigned others;

    __device__ __forceinline__ void compare(const int (&values)[VALUES], int other) {
        others += is_below(other, NOBODY);
#pragma unroll
        for (int v = 0; v < VALUES; v++) {
            ranks[v] += is_below(other, values[v]);
            ranks[v] += is_below(other, values[v] + 1);
        }
    }

    // With every so-manieth of the others from `first` to before `end`, which are numbered as a tile's.
    __device__ __forceinline__ void compare_all(const int (&values)[VALUES], const int* others_of_tile, int first,
                                                int end) {
        const int own = static_cast<int>(threadIdx.x) % RANK_SHARERS;
#pragma unroll 4
        for (int i = max(first, 0) + own; i < min(end, RANK_TILE); i += RANK_SHARERS) {
            compare(values, others_of_tile[i]);
        }
    }
};

__device__ __forceinline__ unsigned sum_of_sharers(unsigned value) {
#pragma unroll
    for (int distance = RANK_SHARERS / 2; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(FULL_WARP, value, distance);
    }
    return value;
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
    const Extremes found = extremes(p.values, p.mask, range, INFINITY, scratch);
    const float low = p.rule == RULE_MIN_MAX ? found.low : 0.0f;
    each_token(p.values, p.mask, range, [&](int token, float value, bool part) {
        if (sequences.of(token) == sequence) {
            // A quotient 0/0 is NaN, which is not sane: 0.
            put(p, token, part ? sane((value - low) / (found.high - low)) : 0.0f);
        }
    });
}
GPU_KERNEL(importance_normalize)

// Sixteen threads share the comparisons of four tokens with their whole sequence, 1024 values at a time from shared memory.
extern "C" __global__ void __launch_bounds__(da_moe::THREADS)
    importance_rank(const __grid_constant__ ImportanceNormalize p) {
    using namespace da_moe;
    SHARED_ARRAY(int, others, RANK_TILE);
    const Partition sequences = sequences_of(p);
    const int block_first = static_cast<int>(blockIdx.x) * RANK_TOKENS;
    const int block_last = min(block_first + RANK_TOKENS, p.tokens) - 1;
    const int first = block_first + static_cast<int>(threadIdx.x) / RANK_SHARERS * RANK_VALUES;
    int values[RANK_VALUES];
    Range own[RANK_VALUES];
#pragma unroll
    for (int v = 0; v < RANK_VALUES; v++) {
        const int token = min(first + v, block_last);
        values[v] = __float_as_int(sane(p.values[token]));
        own[v] = sequences.range(sequences.of(token));
    }
    const bool alike = own[0].first == own[RANK_VALUES - 1].first && own[0].end == own[RANK_VALUES - 1].end;
    Standing<RANK_VALUES> together = {};
    Standing<1> alone[RANK_VALUES] = {};
    const int end = sequences.range(sequences.of(block_last)).end;
    for (int tile = sequences.range(sequences.of(block_first)).first; tile < end; tile += RANK_TILE) {
        float read[RANK_TILE / THREADS];
        bool parts[RANK_TILE / THREADS];
#pragma unroll
        for (int i = 0; i < RANK_TILE / THREADS; i++) {
            const int other = tile + i * THREADS + static_cast<int>(threadIdx.x);
            read[i] = other < end ? p.values[other] : 0.0f;
            parts[i] = other < end && takes_part(p.mask, other);
        }
#pragma unroll
        for (int i = 0; i < RANK_TILE / THREADS; i++) {
            others[i * THREADS + static_cast<int>(threadIdx.x)] = parts[i] ? __float_as_int(sane(read[i])) : NOBODY;
        }
        __syncthreads();
        if (alike) {
            together.compare_all(values, others, own[0].first - tile, own[0].end - tile);
        } else {
#pragma unroll
            for (int v = 0; v < RANK_VALUES; v++) {
                alone[v].compare_all({values[v]}, others, own[v].first - tile, own[v].end - tile);
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int v = 0; v < RANK_VALUES; v++) {
        const unsigned ranks = sum_of_sharers(alike ? together.ranks[v] : alone[v].ranks[0]);
        const unsigned unmasked = sum_of_sharers(alike ? together.others : alone[v].others);
        const int token = first + v;
        if (token <= block_last && static_cast<int>(threadIdx.x) % RANK_SHARERS == v) {
            // The mean of the ranks below + 1 ..= below + equal.
            const float average = static_cast<float>(ranks + 1) / 2.0f;
            put(p, token, takes_part(p.mask, token) ? average / static_cast<float>(unmasked) : 0.0f);
        }
    }
}
GPU_KERNEL(importance_rank)

// The statistics used are those of earlier steps; this step's move them afterwards.
extern "C" __global__ void __launch_bounds__(da_moe::SEQUENCE_THREADS)
    importance_running(const __grid_constant__ ImportanceRunning p) {
    using namespace da_moe;
    SHARED_ARRAY(float, scratch, MAX_WARPS);
    const float steps = p.state[STATE_STEPS];
    const float least = p.state[STATE_MINIMUM];
    const float most = p.state[STATE_MAXIMUM];
    // What no step leaves counts as none.
    const bool fresh = !(steps > 0.0f && steps < INFINITY && least >= 0.0f && least <= most && most < INFINITY);
    const float low = fresh ? 0.0f : least;
    const float high = fresh ? 1.0f : most;
    // An average would never leave infinity again.
    const Extremes found = extremes(p.values, p.mask, {0, p.tokens}, LARGEST, scratch);
    each_token(p.values, p.mask, {0, p.tokens}, [&](int token, float value, bool part) {
        p.out[token] = part ? fminf(sane((value - low) / (high - low)), 1.0f) : 0.0f;
    });
    // A batch without an unmasked token of finite importance is no step.
    if (threadIdx.x == 0 && p.training && found.low <= found.high) {
        const float keep = fresh ? 0.0f : p.momentum;
        p.state[STATE_MINIMUM] = fminf(keep * low + (1.0f - keep) * found.low, LARGEST);
        p.state[STATE_MAXIMUM] = fminf(keep * high + (1.0f - keep) * found.high, LARGEST);
        p.state[STATE_STEPS] = fresh ? 1.0f : steps + 1.0f;
    }
}
GPU_KERNEL(importance_running)
