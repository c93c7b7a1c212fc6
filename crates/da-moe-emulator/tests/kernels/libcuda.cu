// Kernels for the driver's library: one that is right, and some that are not.
#include "gpu.cuh"

struct Sum {
    const int* a;
    const int* b;
    int* out;
    int count;
};

extern "C" __global__ void sum(const Sum p) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < p.count) {
        p.out[i] = p.a[i] + p.b[i];
    }
}
GPU_KERNEL(sum)

extern "C" __global__ void past_the_end(int* values, int count) {
    values[count + threadIdx.x] = 1;
}
GPU_KERNEL(past_the_end)

extern "C" __global__ void between_words(char* bytes) {
    *reinterpret_cast<int*>(bytes + 2) = 1;
}
GPU_KERNEL(between_words)

extern "C" __global__ void gives_up() {
    __trap();
}
GPU_KERNEL(gives_up)

// What number each block has in its cluster.
extern "C" __global__ void cluster_ranks(int* ranks) {
    if (threadIdx.x == 0) {
        ranks[blockIdx.x] = static_cast<int>(emu::cluster_rank());
    }
    emu::cluster_arrive();
    emu::cluster_wait();
}
GPU_KERNEL(cluster_ranks)

// A box of 8 rows of 32 numbers, the first of a tensor of three dimensions.
extern "C" __global__ void __launch_bounds__(32) first_box(const __grid_constant__ CUtensorMap map, int* out) {
    DYN_SMEM(box, 1024);
    SHARED_ARRAY(uint64_t, barrier, 1);
    const uint32_t full = gpu::smem(barrier);
    if (threadIdx.x == 0) {
        const int at[3] = {0, 0, 0};
        emu::mbarrier_init(full, 1);
        emu::mbarrier_arrive(full, 8 * 32 * sizeof(int));
        gpu::tma_load(gpu::smem(box), &map, full, 3, at);
    }
    __syncwarp();
    gpu::mbar_wait(full, 0);
    for (int row = 0; row < 8; row++) {
        out[32 * row + threadIdx.x] = reinterpret_cast<const int*>(box)[32 * row + threadIdx.x];
    }
}
GPU_KERNEL(first_box)
