// SPEC §2, policy `budget`: of all pairs (token, level m) with key I_t / m, the N largest win, ties to lower m, then lower
// token. The price is the N-th largest key; keys are non-negative, so their bits order them, and the price is found 11,
// 11 and 10 bits at a time.
//
//   budget_digit    three launches: how many keys fall on each value of the next digit; the last block picks the digit
//   budget_ties     keys equal to the price, by level; the last block finds the level at which they run out
//   budget_assign   k_t, with the rank among equal keys of that level
//
// Grid (T / 256), block 256, a thread a token. Counts are integers: no order of addition can change them.
//
// Barriers of a block: budget_digit one when its bins are zero and two that add up its tokens, before which every key is in
// its bin; budget_ties one before counting and one after; budget_assign two of a running sum. Two more before a block is
// known to be the last; the last of budget_digit has four (what is searched for, a running sum), that of budget_ties two and
// two for every 256 blocks (a running sum).
//
// Bytes: 5·5·T read, 4·T written, and 4·blocks·levels twice; floor: five launches, since the 1 MB of T 32768, K 8 are
// 0.3 µs at 3 TB/s.

#include "abi.h"
#include "device/block.cuh"

namespace da_moe {
namespace {

constexpr int THREADS = 256;
// First bit of a digit of the price; before the first digit no bit is known.
__device__ __forceinline__ int digit_shift(int pass) { return pass < 0 ? 32 : pass == 0 ? 21 : pass == 1 ? 10 : 0; }

__device__ __forceinline__ int own_token() {
    return static_cast<int>(blockIdx.x) * THREADS + static_cast<int>(threadIdx.x);
}

__device__ __forceinline__ bool asks(const Budget& p, int token) {
    return token < p.tokens && (p.mask == nullptr || p.mask[token] != 0);
}

// The bits of the key of a level, in the order of the keys; NaN and negative importance count as 0.
__device__ __forceinline__ uint32_t key_bits(float importance, int level) {
    return importance > 0.0f ? __float_as_uint(importance / static_cast<float>(level)) : 0u;
}

// N, clamped to what fits.
__device__ __forceinline__ uint32_t levels_to_give(const Budget& p, uint32_t unmasked) {
    const double tokens = unmasked;
    const double wanted = round(p.mean_k * tokens) - p.k_min * tokens;
    return static_cast<uint32_t>(fmin(fmax(wanted, 0.0), p.levels * tokens));
}

// The last block: the largest digit at or above which `left` keys lie. Leaves the histogram zero for the next pass.
__device__ __forceinline__ void pick_digit(const Budget& p, uint32_t left) {
    SHARED_ARRAY(int, scratch, MAX_WARPS);
    constexpr int OWN = BUDGET_BINS / THREADS;
    // Thread 0 has the highest bins, so that a running sum counts the keys above.
    const int top = BUDGET_BINS - 1 - static_cast<int>(threadIdx.x) * OWN;
    uint32_t counts[OWN];
    uint32_t mine = 0;
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        counts[i] = p.histogram[top - i];
        p.histogram[top - i] = 0;
        mine += counts[i];
    }
    int total;
    uint32_t above = static_cast<uint32_t>(block_exclusive_sum(static_cast<int>(mine), scratch, total));
    const int shift = digit_shift(p.pass);
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        if (above < left && left <= above + counts[i]) {
            p.found[FOUND_PRICE] |= static_cast<uint32_t>(top - i) << shift;
            p.found[FOUND_LEFT] = left - above;
        }
        above += counts[i];
    }
}

}  // namespace
}  // namespace da_moe

extern "C" __global__ void __launch_bounds__(da_moe::THREADS) budget_digit(const __grid_constant__ Budget p) {
    using namespace da_moe;
    SHARED_ARRAY(uint32_t, bins, BUDGET_BINS);
    SHARED_ARRAY(int, scratch, MAX_WARPS);
    for (int i = static_cast<int>(threadIdx.x); i < BUDGET_BINS; i += THREADS) {
        bins[i] = 0;
    }
    __syncthreads();
    const int token = own_token();
    const bool asking = asks(p, token);
    const int shift = digit_shift(p.pass);
    // 64 bits, because none are known in the first pass and a shift by 32 must give 0.
    const int known_shift = digit_shift(p.pass - 1);
    const uint64_t known = p.pass == 0 ? 0 : static_cast<uint64_t>(p.found[FOUND_PRICE]) >> known_shift;
    if (asking && (p.pass == 0 || p.found[FOUND_LEFT] > 0)) {
        for (int level = 1; level <= p.levels; level++) {
            const uint64_t bits = key_bits(p.importance[token], level);
            if (bits >> known_shift == known) {
                atomicAdd(&bins[bits >> shift & (BUDGET_BINS - 1)], 1u);
            }
        }
    }
    const int unmasked = block_sum(asking ? 1 : 0, scratch);
    for (int i = static_cast<int>(threadIdx.x); i < BUDGET_BINS; i += THREADS) {
        if (bins[i] != 0) {
            atomicAdd(&p.histogram[i], bins[i]);
        }
    }
    if (threadIdx.x == 0 && p.pass == 0) {
        atomicAdd(&p.arrivals[ARRIVAL_UNMASKED], static_cast<uint32_t>(unmasked));
    }
    if (!arrive_last(&p.arrivals[ARRIVAL_TICKET])) {
        return;
    }
    const uint32_t left = p.pass == 0 ? levels_to_give(p, p.arrivals[ARRIVAL_UNMASKED]) : p.found[FOUND_LEFT];
    __syncthreads();
    if (threadIdx.x == 0 && p.pass == 0) {
        p.arrivals[ARRIVAL_UNMASKED] = 0;
        p.found[FOUND_PRICE] = 0;
        p.found[FOUND_LEFT] = left;
    }
    __syncthreads();
    pick_digit(p, left);
}
GPU_KERNEL(budget_digit)

extern "C" __global__ void __launch_bounds__(da_moe::THREADS) budget_ties(const __grid_constant__ Budget p) {
    using namespace da_moe;
    SHARED_ARRAY(int, of_level, MAX_CANDIDATES);
    SHARED_ARRAY(int, scratch, MAX_WARPS);
    for (int i = static_cast<int>(threadIdx.x); i < p.levels; i += THREADS) {
        of_level[i] = 0;
    }
    __syncthreads();
    const int token = own_token();
    if (asks(p, token)) {
        for (int level = 1; level <= p.levels; level++) {
            if (key_bits(p.importance[token], level) == p.found[FOUND_PRICE]) {
                atomicAdd(&of_level[level - 1], 1);
            }
        }
    }
    __syncthreads();
    const int64_t first = static_cast<int64_t>(blockIdx.x) * p.levels;
    for (int i = static_cast<int>(threadIdx.x); i < p.levels; i += THREADS) {
        p.ties[first + i] = of_level[i];
    }
    if (!arrive_last(&p.arrivals[ARRIVAL_TICKET])) {
        return;
    }
    const int blocks = static_cast<int>(gridDim.x);
    for (int i = static_cast<int>(threadIdx.x); i < p.levels; i += THREADS) {
        int sum = 0;
#pragma unroll 8
        for (int block = 0; block < blocks; block++) {
            sum += p.ties[static_cast<int64_t>(block) * p.levels + i];
        }
        of_level[i] = sum;
    }
    __syncthreads();
    // Levels are few; one thread walks them. At least one tie is left to give unless nothing is to be given at all.
    SHARED_ARRAY(int, exhausted, 1);
    if (threadIdx.x == 0) {
        int left = static_cast<int>(p.found[FOUND_LEFT]);
        int level = 0;
        while (level < p.levels && left > of_level[level]) {
            left -= of_level[level];
            level++;
        }
        exhausted[0] = level;
        p.found[FOUND_LEVEL] = static_cast<uint32_t>(level + 1);
        p.found[FOUND_LEFT_AT_LEVEL] = static_cast<uint32_t>(left);
    }
    __syncthreads();
    int carried = 0;
    for (int start = 0; start < blocks; start += THREADS) {
        const int block = start + static_cast<int>(threadIdx.x);
        const bool counts = block < blocks && exhausted[0] < p.levels;
        const int ties = counts ? p.ties[static_cast<int64_t>(block) * p.levels + exhausted[0]] : 0;
        int total;
        const int before = carried + block_exclusive_sum(ties, scratch, total);
        if (block < blocks) {
            p.ties_before[block] = before;
        }
        carried += total;
    }
}
GPU_KERNEL(budget_ties)

extern "C" __global__ void __launch_bounds__(da_moe::THREADS) budget_assign(const __grid_constant__ Budget p) {
    using namespace da_moe;
    SHARED_ARRAY(int, scratch, MAX_WARPS);
    const int token = own_token();
    const bool asking = asks(p, token);
    const bool giving = p.found[FOUND_LEFT] > 0;
    const uint32_t price = p.found[FOUND_PRICE];
    const int last_level = static_cast<int>(p.found[FOUND_LEVEL]);
    int won = 0;
    bool contested = false;
    for (int level = 1; asking && giving && level <= p.levels; level++) {
        const uint32_t bits = key_bits(p.importance[token], level);
        won += bits > price || (bits == price && level < last_level);
        contested |= bits == price && level == last_level;
    }
    int total;
    const int before = p.ties_before[blockIdx.x] + block_exclusive_sum(contested ? 1 : 0, scratch, total);
    won += contested && before < static_cast<int>(p.found[FOUND_LEFT_AT_LEVEL]);
    if (token < p.tokens) {
        p.k[token] = asking ? p.k_min + won : 0;
    }
}
GPU_KERNEL(budget_assign)
