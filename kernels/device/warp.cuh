// Reductions of one warp, always by the same tree: the same bits every run.
#pragma once

#include "device/platform.cuh"

namespace da_moe {

__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x) & (WARP - 1); }
__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x) / WARP; }

// Lanes below this one, as a mask.
__device__ __forceinline__ unsigned lanes_below() { return (1u << lane_index()) - 1u; }

// Whether no lane below this one has the same value: of lanes that would write one place, one.
__device__ __forceinline__ bool is_first_with(int value) {
    return (__match_any_sync(FULL_WARP, value) & lanes_below()) == 0;
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(FULL_WARP, value, distance);
    }
    return value;
}

// NaN loses against any number, here and in `warp_min`.
__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        value = fmaxf(value, __shfl_xor_sync(FULL_WARP, value, distance));
    }
    return value;
}

__device__ __forceinline__ float warp_min(float value) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        value = fminf(value, __shfl_xor_sync(FULL_WARP, value, distance));
    }
    return value;
}

}  // namespace da_moe
