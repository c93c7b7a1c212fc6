// Exact order of candidates: every comparison is one of integers, so ties and NaN are decided here and nowhere else.
//
// A key holds (class, value, lower index first) with the best largest: bits 48.. the class, 16..47 the value mapped to
// an integer of the same order, 0..15 the complement of the index. Keys of different candidates differ, and none is 0.
#pragma once

#include "device/warp.cuh"

namespace da_moe {

using Key = uint64_t;
constexpr Key NO_KEY = 0;

// Maps floats to integers of the same order; NaN below everything, -0 equal to 0.
__device__ __forceinline__ uint32_t ordered(float value) {
    if (value != value) {
        return 0;
    }
    const uint32_t bits = __float_as_uint(value + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ Key make_key(uint32_t order_class, float value, int index) {
    return static_cast<Key>(order_class) << 48 | static_cast<Key>(ordered(value)) << 16 |
           static_cast<Key>(0xffff - index);
}

// The value in a key, as an integer of its order.
__device__ __forceinline__ uint32_t key_order(Key key) { return static_cast<uint32_t>(key >> 16); }

__device__ __forceinline__ int key_index(Key key) { return 0xffff - static_cast<int>(key & 0xffff); }

// The largest key of a warp whose lanes hold N keys each; every lane gets it. Two integer reductions: keys that agree in
// the upper half are decided by the lower.
template <int N>
__device__ __forceinline__ Key warp_largest(const Key (&keys)[N]) {
    Key best = keys[0];
#pragma unroll
    for (int i = 1; i < N; i++) {
        best = keys[i] > best ? keys[i] : best;
    }
    const uint32_t upper = static_cast<uint32_t>(best >> 32);
    const uint32_t most = __reduce_max_sync(FULL_WARP, upper);
    const uint32_t lower = __reduce_max_sync(FULL_WARP, upper == most ? static_cast<uint32_t>(best) : 0u);
    return static_cast<Key>(most) << 32 | lower;
}

// Takes the largest key out of the warp's keys and returns it; NO_KEY when none is left.
template <int N>
__device__ __forceinline__ Key take_largest(Key (&keys)[N]) {
    const Key best = warp_largest(keys);
#pragma unroll
    for (int i = 0; i < N; i++) {
        keys[i] = keys[i] == best ? NO_KEY : keys[i];
    }
    return best;
}

struct Taken {
    Key key;
    float value;
};

// As above, with the value that belongs to the key, for keys whose index i is in lane i mod 32. Found by comparing keys:
// from a chain of comparisons with i / 32 the compiler would make an indexed access, and so local memory.
template <int N>
__device__ __forceinline__ Taken take_largest(Key (&keys)[N], const float (&values)[N]) {
    const Key best = warp_largest(keys);
    float mine = 0.0f;
#pragma unroll
    for (int i = 0; i < N; i++) {
        mine = keys[i] == best ? values[i] : mine;
        keys[i] = keys[i] == best ? NO_KEY : keys[i];
    }
    return {best, __shfl_sync(FULL_WARP, mine, key_index(best) % WARP)};
}

}  // namespace da_moe
