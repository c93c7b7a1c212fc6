// What a block does together: sums, running sums, and "the last block to arrive finishes the work".
//
// Every function is called by all threads of the block, whose number is a multiple of 32 and at most 1024. `scratch` is
// shared memory for one value a warp; a function leaves it free for the next one.
#pragma once

#include "device/warp.cuh"

namespace da_moe {

constexpr int MAX_WARPS = 32;

__device__ __forceinline__ int block_warps() { return static_cast<int>(blockDim.x) / WARP; }

// The warps' values combined in the order of the warps; every thread gets the result.
template <class T, class Combine>
__device__ __forceinline__ T block_fold(T of_warp, T* scratch, Combine combine) {
    if (lane_index() == 0) {
        scratch[warp_index()] = of_warp;
    }
    __syncthreads();
    T result = scratch[0];
    for (int warp = 1; warp < block_warps(); warp++) {
        result = combine(result, scratch[warp]);
    }
    __syncthreads();
    return result;
}

__device__ __forceinline__ float block_max(float value, float* scratch) {
    return block_fold(warp_max(value), scratch, [](float a, float b) { return fmaxf(a, b); });
}

__device__ __forceinline__ float block_min(float value, float* scratch) {
    return block_fold(warp_min(value), scratch, [](float a, float b) { return fminf(a, b); });
}

__device__ __forceinline__ int block_sum(int value, int* scratch) {
    return block_fold(__reduce_add_sync(FULL_WARP, value), scratch, [](int a, int b) { return a + b; });
}

// The sum of `value` over the threads before this one; `total` receives the sum over all.
__device__ __forceinline__ int block_exclusive_sum(int value, int* scratch, int& total) {
    int inclusive = value;
#pragma unroll
    for (int distance = 1; distance < WARP; distance *= 2) {
        const int before = __shfl_up_sync(FULL_WARP, inclusive, distance);
        inclusive += lane_index() >= distance ? before : 0;
    }
    if (lane_index() == WARP - 1) {
        scratch[warp_index()] = inclusive;
    }
    __syncthreads();
    int before = 0;
    total = 0;
    for (int warp = 0; warp < block_warps(); warp++) {
        before += warp < warp_index() ? scratch[warp] : 0;
        total += scratch[warp];
    }
    __syncthreads();
    return before + inclusive - value;
}

// True in every thread of exactly one block of the grid: the last to arrive, which sees everything that every block wrote
// before it arrived. The ticket counts from 0 and is 0 again afterwards, so that the next launch finds it so.
__device__ __forceinline__ bool arrive_last(uint32_t* ticket) {
    SHARED_ARRAY(uint32_t, last, 1);
    __syncthreads();
    if (threadIdx.x == 0) {
        // Releases this block's writes, which the barrier ordered before this thread's arrival.
        __threadfence();
        last[0] = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
        // Acquires the other blocks'.
        __threadfence();
    }
    __syncthreads();
    return last[0] != 0;
}

}  // namespace da_moe
