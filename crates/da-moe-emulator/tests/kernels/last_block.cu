// A sum over all blocks: each writes a partial sum, and the block that comes last adds them up.
#include <emulator/cuda.h>

constexpr int THREADS = 64;

extern "C" __global__ void __launch_bounds__(THREADS)
    sum(const float* values, float* partial, unsigned* ticket, float* total, int count) {
    SHARED_ARRAY(float, sums, THREADS);
    SHARED_ARRAY(int, last, 1);
    const int t = threadIdx.x;
    float mine = 0;
    for (int i = blockIdx.x * THREADS + t; i < count; i += gridDim.x * THREADS) {
        mine += values[i];
    }
    sums[t] = mine;
    __syncthreads();
    for (int step = THREADS / 2; step > 0; step /= 2) {
        if (t < step) {
            sums[t] += sums[t + step];
        }
        __syncthreads();  // of a step
    }
    if (t < 2) {
        partial[2 * blockIdx.x + t] = t == 0 ? sums[0] : 0.0f;
    }
    __syncthreads();  // before the ticket
    if (t == 0) {
        __threadfence();  // release
        last[0] = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
        __threadfence();  // acquire
    }
    __syncthreads();  // after the ticket
    if (last[0] && t < 32) {
        float all = 0;
        for (unsigned i = t; i < 2 * gridDim.x; i += 32) {
            all += partial[i];
        }
        for (int offset = 16; offset > 0; offset /= 2) {
            all += __shfl_xor_sync(~0u, all, offset);
        }
        if (t == 0) {
            *total = all;
        }
    }
}
GPU_KERNEL(sum)
