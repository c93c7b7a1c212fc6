// Races and barriers inside one block. Kernels whose faults are planted by replacement, and some that are faulty.
#include <emulator/cuda.h>
#include <emulator/ptx.h>

// Reverses 64 values in shared memory.
extern "C" __global__ void reverse(const int* in, int* out) {
    SHARED_ARRAY(int, values, 64);
    values[threadIdx.x] = in[threadIdx.x];
    __syncthreads();  // reverse
    out[threadIdx.x] = values[63 - threadIdx.x];
}
GPU_KERNEL(reverse)

// Each warp adds up its values through shared memory.
extern "C" __global__ void warp_sums(const int* in, int* out) {
    SHARED_ARRAY(int, values, 64);
    const int t = threadIdx.x, lane = t % 32;
    values[t] = in[t];
    for (int step = 16; step > 0; step /= 2) {
        __syncwarp();  // before a step
        if (lane < step) {
            values[t] += values[t + step];
        }
    }
    if (lane == 0) {
        out[t / 32] = values[t];
    }
}
GPU_KERNEL(warp_sums)

// Neighbours write the bytes of one word.
extern "C" __global__ void bytes(const int* in, int* out) {
    SHARED_ARRAY(unsigned char, values, 64);
    values[threadIdx.x] = (unsigned char)in[threadIdx.x];
    __syncthreads();
    if (threadIdx.x < 16) {
        const uchar4 four = reinterpret_cast<const uchar4*>(values)[threadIdx.x];
        out[threadIdx.x] = four.x + four.y + four.z + four.w;
    }
}
GPU_KERNEL(bytes)

// A histogram with shared atomics.
extern "C" __global__ void histogram(const int* in, int* out) {
    SHARED_ARRAY(int, bins, 4);
    if (threadIdx.x < 4) {
        bins[threadIdx.x] = 0;
    }
    __syncthreads();  // bins are zero
    atomicAdd(&bins[in[threadIdx.x] & 3], 1);
    __syncthreads();  // bins are complete
    if (threadIdx.x < 4) {
        out[threadIdx.x] = bins[threadIdx.x];
    }
}
GPU_KERNEL(histogram)

// One thread hands a value to another warp through a flag in shared memory.
extern "C" __global__ void hand_over(const int* in, int* out) {
    SHARED_ARRAY(int, flag, 1);
    SHARED_ARRAY(int, value, 1);
    if (threadIdx.x == 0) {
        flag[0] = 0;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        value[0] = in[5];
        __threadfence_block();  // hand over
        atomicExch(flag, 1);
    }
    if (threadIdx.x == 32) {
        while (atomicAdd(flag, 0) == 0) {}
        __threadfence_block();  // take over
        out[0] = value[0];
    }
}
GPU_KERNEL(hand_over)

extern "C" __global__ void everybody_writes(const int* in, int* out) {
    out[0] = in[threadIdx.x];  // fault: everybody_writes
}
GPU_KERNEL(everybody_writes)

extern "C" __global__ void barrier_in_a_branch(const int*, int* out) {
    if (threadIdx.x < 32) {
        __syncthreads();  // fault: barrier_in_a_branch
    } else {
        __syncthreads();  // fault: barrier_in_a_branch
    }
    out[threadIdx.x] = 0;
}
GPU_KERNEL(barrier_in_a_branch)

extern "C" __global__ void barrier_after_exit(const int*, int* out) {
    if (threadIdx.x == 40) {
        return;
    }
    __syncthreads();  // fault: barrier_after_exit
    out[threadIdx.x] = 0;
}
GPU_KERNEL(barrier_after_exit)

extern "C" __global__ void two_collectives(const int*, int* out) {
    const int lane = threadIdx.x % 32;
    if (lane < 16) {
        out[threadIdx.x] = __shfl_sync(~0u, lane, 0);  // fault: two_collectives
    } else {
        out[threadIdx.x] = __shfl_sync(~0u, lane, 31);  // fault: two_collectives
    }
}
GPU_KERNEL(two_collectives)

extern "C" __global__ void wrong_mask(const int*, int* out) {
    if (threadIdx.x % 32 < 16) {
        out[threadIdx.x] = __any_sync(0xffff0000u, 1);  // fault: wrong_mask
    }
}
GPU_KERNEL(wrong_mask)

extern "C" __global__ void named_barrier_without_partners(const int*, int* out) {
    if (threadIdx.x < 32) {
        emu::named_barrier(1, 64, true);  // fault: named_barrier_without_partners
    }
    out[threadIdx.x] = 0;
}
GPU_KERNEL(named_barrier_without_partners)

extern "C" __global__ void spin_on_a_flag(const int* in, int* out) {
    while (*const_cast<const volatile int*>(in + 3) == 3) {  // fault: spin_on_a_flag
    }
    out[threadIdx.x] = 0;
}
GPU_KERNEL(spin_on_a_flag)

extern "C" __global__ void spin_on_an_atomic(const int*, int* out) {
    SHARED_ARRAY(int, flag, 1);
    if (threadIdx.x == 0) {
        flag[0] = 0;
    }
    __syncthreads();
    while (atomicCAS(flag, 1, 1) == 0) {  // fault: spin_on_an_atomic
        __nanosleep(20);                  // fault: spin_on_an_atomic
    }
    out[threadIdx.x] = 0;
}
GPU_KERNEL(spin_on_an_atomic)
