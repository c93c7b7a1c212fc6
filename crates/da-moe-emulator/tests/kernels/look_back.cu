// Prefix sums over blocks: each block waits for the sum of the blocks before it, in the order of their tickets.
#include <emulator/cuda.h>

constexpr int THREADS = 64;

extern "C" __global__ void __launch_bounds__(THREADS)
    prefix_sums(const int* values, int* results, int* sums, unsigned* ready, unsigned* next_ticket) {
    SHARED_ARRAY(int, scan, THREADS);
    SHARED_ARRAY(int, before, 1);
    SHARED_ARRAY(unsigned, ticket, 1);
    const int t = threadIdx.x;
    if (t == 0) {
        ticket[0] = atomicAdd(next_ticket, 1);
    }
    __syncthreads();
    const int block = ticket[0];
    const int mine = values[block * THREADS + t];
    scan[t] = mine;
    __syncthreads();
    for (int step = 1; step < THREADS; step *= 2) {
        const int other = t >= step ? scan[t - step] : 0;
        __syncthreads();
        scan[t] += other;
        __syncthreads();
    }
    if (t == THREADS - 1) {
        if (block == 0) {
            before[0] = 0;
        } else {
            while (atomicAdd(&ready[block - 1], 0) == 0) {
                __nanosleep(50);
            }
            __threadfence();  // acquire
            before[0] = sums[block - 1];
        }
        sums[block] = before[0] + scan[t];
        __threadfence();  // release
        atomicExch(&ready[block], 1);
    }
    __syncthreads();
    results[block * THREADS + t] = before[0] + scan[t];
}
GPU_KERNEL(prefix_sums)
