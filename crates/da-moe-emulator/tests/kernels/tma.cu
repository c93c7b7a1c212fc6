// Boxes of tensors, into shared memory and out of it.
#include "gpu.cuh"

struct Place {
    int at[5];
};

// Takes a box from one tensor to another, through `bytes` of shared memory.
extern "C" __global__ void __launch_bounds__(32)
    copy_box(const __grid_constant__ CUtensorMap from, const __grid_constant__ CUtensorMap to, Place from_place,
             Place to_place, unsigned rank, unsigned bytes) {
    DYN_SMEM(sm, 1024);
    SHARED_ARRAY(uint64_t, barrier, 1);
    const uint32_t full = gpu::smem(barrier), tile = gpu::smem(sm);
    if (threadIdx.x == 0) {
        emu::prefetch_tensor_map(&from);
        emu::mbarrier_init(full, 1);
        emu::mbarrier_arrive(full, bytes);
        gpu::tma_load(tile, &from, full, rank, from_place.at);
        gpu::mbar_wait(full, 0);
        gpu::tma_store(&to, tile, rank, to_place.at);
        emu::bulk_commit();
        emu::bulk_wait(0, true);
    }
}
GPU_KERNEL(copy_box)

// Two boxes of 512 bytes, of 8 rows each, one beside the other; then the sum of all.
extern "C" __global__ void __launch_bounds__(32) load_two(const __grid_constant__ CUtensorMap map, int* source, int* sum) {
    DYN_SMEM(sm, 128);
    SHARED_ARRAY(uint64_t, barrier, 1);
    const uint32_t full = gpu::smem(barrier), tile = gpu::smem(sm);
    const int t = threadIdx.x;
    if (t == 0) {
        emu::mbarrier_init(full, 1);
        source[8] = 8;
    }
    __syncwarp();
    if (t == 0) {
        emu::mbarrier_arrive(full, 1024);
        const int first[2] = {0, 0}, second[2] = {0, 8};
        gpu::tma_load(tile, &map, full, 2, first);
        gpu::tma_load(tile + 512, &map, full, 2, second);
    }
    gpu::mbar_wait(full, 0);
    int total = 0;
    for (int i = t; i < 256; i += 32) {
        total += reinterpret_cast<const int*>(sm)[i];
    }
    sum[t] = total;
}
GPU_KERNEL(load_two)
