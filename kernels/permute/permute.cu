// SPEC §3 capacity and §4: the dispatch plan, a stable counting sort of (token, slot) by expert.
//
//   permute_count     how often each block's entries name each candidate; the last block to arrive makes offsets of it
//   permute_scatter   every entry's row: rows before its expert, before its block, before its warp, before its lane
//   permute_drop      with a capacity only: a block an expert keeps what fits, of rows sorted into workspace
//   permute_unmasked  for a shared expert beside a mask only: the unmasked tokens, in order
//
// An entry is one slot of one token, in the order of tokens, then slots. Rows past R are not written.
//
// permute_count, permute_scatter: grid (T·K / 2048), block 8 warps; a warp has 256 consecutive entries, 32 a round.
// Barriers of count: one when the block's counts are zero, one when they are complete, two before it is known to be the
// last; the last has two, and four for every 256 candidates (running sums). Of scatter: one when every warp's counts are
// complete, one when they have become rows; one of a warp, and two more a round of counting. Bytes: 4·T·K read for counting, 8·T·K read and 12·T·K written for
// scattering, a thread's eight entries at once; floor: 24·T·K over the memory bandwidth, 2 µs at 3 TB/s for T 32768, K 8,
// and what waits for one another: four accesses of a block, and one for every 2^15 entries in the last block of count.
//
// permute_drop: grid (E), block 512, a thread every 512th row of its expert. Barriers: two for every 512 rows (a running
// sum); by weight two more, and six for each of the four digits of the weight that is cut at. Bytes: 8 read and 12 written
// an entry, by weight 4 read five times, four of them from the L2; floor: 20·T·K over the memory bandwidth, 2 µs as above,
// or the largest expert's rows through one multiprocessor.
//
// permute_unmasked: one block of 1024 threads, a thread eight consecutive tokens of every
// 8192. Barriers: two for every 8192 tokens (a running sum). Bytes: T read, 8·T written; floor: what one multiprocessor waits
// for, a load and a running sum for every 8192 tokens: some 5 µs for T 32768.

#include "abi.h"
#include "device/block.cuh"
#include "device/order.cuh"

namespace da_moe {
namespace {

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * WARP;
constexpr int ROUNDS = 8;
constexpr int WARP_ENTRIES = ROUNDS * WARP;
constexpr int BLOCK_ENTRIES = WARPS * WARP_ENTRIES;
constexpr int DROP_THREADS = 512;
constexpr int UNMASKED_THREADS = 1024;
constexpr int UNMASKED_TOKENS = 8;
constexpr int NOBODY = -1;

__device__ __forceinline__ int entry_count(const Permute& p) { return p.tokens * p.slots; }

// A lane's entries, one of each round of its warp.
struct Entries {
    // Of the first round. The last block's may go past the last that there is, and past what is an int.
    unsigned first;
    int tokens[ROUNDS];
    int slots[ROUNDS];

    // A round further on is WARP entries: so many tokens and slots of one, by one division.
    __device__ __forceinline__ explicit Entries(const Permute& p)
        : first(blockIdx.x * BLOCK_ENTRIES + static_cast<unsigned>(warp_index() * WARP_ENTRIES + lane_index())) {
        // Without slots there are no entries.
        const int width = max(p.slots, 1);
        const int tokens_further = WARP / width;
        const int slots_further = WARP % width;
        tokens[0] = static_cast<int>(first / static_cast<unsigned>(width));
        slots[0] = static_cast<int>(first % static_cast<unsigned>(width));
#pragma unroll
        for (int round = 1; round < ROUNDS; round++) {
            const int slot = slots[round - 1] + slots_further;
            const bool next = slot >= width;
            slots[round] = next ? slot - width : slot;
            tokens[round] = tokens[round - 1] + tokens_further + (next ? 1 : 0);
        }
    }

    __device__ __forceinline__ bool exists(const Permute& p, int round) const {
        return first + round * WARP < static_cast<unsigned>(entry_count(p));
    }

    __device__ __forceinline__ int entry(int round) const { return static_cast<int>(first + round * WARP); }

    // The candidates that the entries name; NOBODY for an empty slot and past the last entry.
    __device__ __forceinline__ void read_candidates(const Permute& p, int (&candidates)[ROUNDS]) const {
#pragma unroll
        for (int round = 0; round < ROUNDS; round++) {
            const int64_t place = tokens[round] * p.experts_stride + slots[round];
            candidates[round] = exists(p, round) ? p.experts[place] : NOBODY;
        }
#pragma unroll
        for (int round = 0; round < ROUNDS; round++) {
            const bool is_one = candidates[round] >= 0 && candidates[round] < p.candidates;
            candidates[round] = is_one ? candidates[round] : NOBODY;
        }
    }

    __device__ __forceinline__ void read_weights(const Permute& p, float (&weights)[ROUNDS]) const {
#pragma unroll
        for (int round = 0; round < ROUNDS; round++) {
            const int64_t place = tokens[round] * p.weights_stride + slots[round];
            weights[round] = exists(p, round) ? p.weights[place] : 0.0f;
        }
    }
};

__device__ __forceinline__ bool has_capacity(const Permute& p) { return p.capacity_factor >= 0.0; }

// Rows that an expert may keep.
__device__ __forceinline__ int capacity(const Permute& p, int selections) {
    if (!has_capacity(p)) {
        return 0x7fffffff;
    }
    return static_cast<int>(fmin(ceil(p.capacity_factor * selections / p.routed), 2147483647.0));
}

// Replaces each block's count of a candidate by the count in the blocks before, and returns the count in all. Sixteen
// blocks are read before any is written, so that their loads overlap.
__device__ __forceinline__ int scan_blocks(const Permute& p, int candidate) {
    constexpr int BATCH = 16;
    const int blocks = static_cast<int>(gridDim.x);
    int before = 0;
    for (int first = 0; first < blocks; first += BATCH) {
        int counts[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const int64_t place = static_cast<int64_t>(first + i) * p.candidates + candidate;
            counts[i] = first + i < blocks ? p.block_counts[place] : 0;
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            if (first + i < blocks) {
                p.block_counts[static_cast<int64_t>(first + i) * p.candidates + candidate] = before;
            }
            before += counts[i];
        }
    }
    return before;
}

// The last block: counts, offsets and drops of the whole plan.
__device__ __forceinline__ void make_offsets(const Permute& p, int* totals) {
    SHARED_ARRAY(int, scratch, MAX_WARPS);
    int mine = 0;
    for (int e = static_cast<int>(threadIdx.x); e < p.candidates; e += THREADS) {
        totals[e] = scan_blocks(p, e);
        mine += totals[e];
    }
    const int limit = capacity(p, block_sum(mine, scratch));
    int kept_before = 0;
    int all_before = 0;
    for (int first = 0; first < p.candidates; first += THREADS) {
        const int e = first + static_cast<int>(threadIdx.x);
        const bool routed = e < p.routed;
        const int all = routed ? totals[e] : 0;
        const int kept = min(all, limit);
        int kept_total;
        int all_total;
        const int kept_offset = kept_before + block_exclusive_sum(kept, scratch, kept_total);
        const int all_offset = all_before + block_exclusive_sum(all, scratch, all_total);
        if (e < p.candidates) {
            p.counts[e] = routed ? kept : totals[e];
        }
        if (routed) {
            p.offsets[e] = kept_offset;
            if (has_capacity(p)) {
                p.sorted_offsets[e] = all_offset;
            }
        }
        kept_before += kept_total;
        all_before += all_total;
    }
    if (threadIdx.x == 0) {
        p.dropped[0] = all_before - kept_before;
        p.offsets[p.routed] = kept_before;
        if (has_capacity(p)) {
            p.sorted_offsets[p.routed] = all_before;
        }
    }
}

// Adds one round of a warp's entries to its counts; returns how many equal ones came before each lane's.
__device__ __forceinline__ int count_round(int* counts, int candidate) {
    const unsigned equal = __match_any_sync(FULL_WARP, candidate);
    const int before = candidate == NOBODY ? 0 : counts[candidate];
    __syncwarp();
    if (candidate != NOBODY && (equal & lanes_below()) == 0) {
        counts[candidate] = before + __popc(equal);
    }
    __syncwarp();
    return before + __popc(equal & lanes_below());
}

// Over all threads: the running count of what a block has found, from one tile to the next.
struct RunningCount {
    int before;

    __device__ __forceinline__ int add(int found, int* scratch) {
        int total;
        const int place = before + block_exclusive_sum(found, scratch, total);
        before += total;
        return place;
    }
};

// The integer order of the weight of which `limit` of the block's expert are as large or larger, and how many of equal
// weight still fit: four passes over the segment, eight bits each.
struct Cut {
    uint32_t order;
    int equal;
};

__device__ __forceinline__ Cut find_cut(const float* weights, int count, int limit) {
    constexpr int BINS = 256;
    SHARED_ARRAY(int, bins, BINS);
    SHARED_ARRAY(int, scratch, MAX_WARPS);
    SHARED_ARRAY(uint32_t, found, 1);
    SHARED_ARRAY(int, found_left, 1);
    uint32_t known = 0;
    int left = limit;
    for (int shift = 24; shift >= 0; shift -= 8) {
        if (threadIdx.x < BINS) {
            bins[threadIdx.x] = 0;
        }
        __syncthreads();
        for (int i = static_cast<int>(threadIdx.x); i < count; i += DROP_THREADS) {
            const uint64_t order = ordered(weights[i]);
            if (order >> (shift + 8) == static_cast<uint64_t>(known) >> (shift + 8)) {
                atomicAdd(&bins[order >> shift & (BINS - 1)], 1);
            }
        }
        __syncthreads();
        // Thread 0 has the highest bin, so that a running sum counts the weights above.
        const int bin = BINS - 1 - static_cast<int>(threadIdx.x);
        const int mine = bin >= 0 ? bins[bin] : 0;
        int total;
        const int above = block_exclusive_sum(mine, scratch, total);
        if (above < left && left <= above + mine) {
            found[0] = known | static_cast<uint32_t>(bin) << shift;
            found_left[0] = left - above;
        }
        __syncthreads();
        known = found[0];
        left = found_left[0];
        __syncthreads();
    }
    return {known, left};
}

}  // namespace
}  // namespace da_moe

extern "C" __global__ void __launch_bounds__(da_moe::THREADS) permute_count(const __grid_constant__ Permute p) {
    using namespace da_moe;
    SHARED_ARRAY(int, counts, MAX_CANDIDATES);
    for (int e = static_cast<int>(threadIdx.x); e < p.candidates; e += THREADS) {
        counts[e] = 0;
    }
    int candidates[ROUNDS];
    Entries(p).read_candidates(p, candidates);
    __syncthreads();
#pragma unroll
    for (int round = 0; round < ROUNDS; round++) {
        if (candidates[round] != NOBODY) {
            atomicAdd(&counts[candidates[round]], 1);
        }
    }
    __syncthreads();
    for (int e = static_cast<int>(threadIdx.x); e < p.candidates; e += THREADS) {
        p.block_counts[static_cast<int64_t>(blockIdx.x) * p.candidates + e] = counts[e];
    }
    if (arrive_last(p.ticket)) {
        make_offsets(p, counts);
    }
}
GPU_KERNEL(permute_count)

// With a capacity rows go to the workspace, where `permute_drop` finds them.
extern "C" __global__ void __launch_bounds__(da_moe::THREADS) permute_scatter(const __grid_constant__ Permute p) {
    using namespace da_moe;
    // First each warp's counts, then the first row of each warp's entries of a candidate.
    SHARED_ARRAY(int, of_warps, WARPS * MAX_CANDIDATES);
    int* own = of_warps + warp_index() * MAX_CANDIDATES;
    const Entries entries(p);
    int candidates[ROUNDS];
    float weights[ROUNDS];
    entries.read_candidates(p, candidates);
    entries.read_weights(p, weights);
    for (int e = lane_index(); e < p.routed; e += WARP) {
        own[e] = 0;
    }
    __syncwarp();
    // How many entries of the warp name an entry's expert before it.
    int before[ROUNDS];
#pragma unroll
    for (int round = 0; round < ROUNDS; round++) {
        // Null experts have no rows.
        candidates[round] = candidates[round] < p.routed ? candidates[round] : NOBODY;
        before[round] = count_round(own, candidates[round]);
    }
    __syncthreads();
    const int32_t* offsets = has_capacity(p) ? p.sorted_offsets : p.offsets;
    for (int e = static_cast<int>(threadIdx.x); e < p.routed; e += THREADS) {
        int row = offsets[e] + p.block_counts[static_cast<int64_t>(blockIdx.x) * p.candidates + e];
        for (int warp = 0; warp < WARPS; warp++) {
            const int count = of_warps[warp * MAX_CANDIDATES + e];
            of_warps[warp * MAX_CANDIDATES + e] = row;
            row += count;
        }
    }
    __syncthreads();
#pragma unroll
    for (int round = 0; round < ROUNDS; round++) {
        if (!entries.exists(p, round)) {
            continue;
        }
        const int entry = entries.entry(round);
        if (candidates[round] == NOBODY) {
            p.token_row[entry] = -1;
            continue;
        }
        const int row = own[candidates[round]] + before[round];
        if (has_capacity(p)) {
            p.sorted_entry[row] = entry;
            p.sorted_weight[row] = weights[round];
        } else {
            p.token_row[entry] = row;
            p.row_token[row] = entries.tokens[round];
            p.row_weight[row] = weights[round];
        }
    }
}
GPU_KERNEL(permute_scatter)

// An expert within its capacity keeps every row. One over it keeps its earliest rows, or those of largest weight, equal ones
// in order: the rows kept stay in the order of their tokens.
extern "C" __global__ void __launch_bounds__(da_moe::DROP_THREADS) permute_drop(const __grid_constant__ Permute p) {
    using namespace da_moe;
    SHARED_ARRAY(int, scratch, MAX_WARPS);
    const int expert = static_cast<int>(blockIdx.x);
    const int first = p.sorted_offsets[expert];
    const int count = p.sorted_offsets[expert + 1] - first;
    const int limit = p.counts[expert];
    const float* weights = p.sorted_weight + first;
    const bool by_weight = p.by_weight && limit < count && limit > 0;
    const Cut cut = by_weight ? find_cut(weights, count, limit) : Cut{0, 0};
    RunningCount equals = {0};
    RunningCount keeps = {0};
    for (int tile = 0; tile < count; tile += DROP_THREADS) {
        const int i = tile + static_cast<int>(threadIdx.x);
        bool keep = i < min(count, limit);
        if (by_weight) {
            const uint32_t order = i < count ? ordered(weights[i]) : 0u;
            const bool equal = i < count && order == cut.order;
            const int rank = equals.add(equal ? 1 : 0, scratch);
            keep = i < count && (order > cut.order || (equal && rank < cut.equal));
        }
        const int row = p.offsets[expert] + keeps.add(keep ? 1 : 0, scratch);
        if (i < count) {
            const int entry = p.sorted_entry[first + i];
            p.token_row[entry] = keep ? row : -1;
            if (keep) {
                p.row_token[row] = entry / p.slots;
                p.row_weight[row] = weights[i];
            }
        }
    }
}
GPU_KERNEL(permute_drop)

extern "C" __global__ void __launch_bounds__(da_moe::UNMASKED_THREADS)
    permute_unmasked(const __grid_constant__ PermuteUnmasked p) {
    using namespace da_moe;
    SHARED_ARRAY(int, scratch, MAX_WARPS);
    RunningCount rows = {0};
    // Counted from what is left, so that no sum passes the largest int.
    for (int left = p.tokens; left > 0; left -= UNMASKED_THREADS * UNMASKED_TOKENS) {
        const int first = p.tokens - left + static_cast<int>(threadIdx.x) * UNMASKED_TOKENS;
        const int mine = min(left - static_cast<int>(threadIdx.x) * UNMASKED_TOKENS, UNMASKED_TOKENS);
        int found = 0;
        unsigned there = 0;
#pragma unroll
        for (int i = 0; i < UNMASKED_TOKENS; i++) {
            const bool is_there = i < mine && p.mask[first + i] != 0;
            there |= is_there ? 1u << i : 0u;
            found += is_there ? 1 : 0;
        }
        int row = rows.add(found, scratch);
#pragma unroll
        for (int i = 0; i < UNMASKED_TOKENS; i++) {
            const bool is_there = (there >> i & 1u) != 0;
            if (is_there) {
                p.row_token[row] = first + i;
            }
            if (i < mine) {
                p.token_row[first + i] = is_there ? row : -1;
            }
            row += is_there ? 1 : 0;
        }
    }
    if (threadIdx.x == 0) {
        p.offsets[0] = 0;
        p.offsets[1] = rows.before;
    }
}
GPU_KERNEL(permute_unmasked)
