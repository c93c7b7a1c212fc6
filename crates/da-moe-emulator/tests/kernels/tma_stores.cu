#include "gpu.cuh"

// Stores three tiles of 16 by 16 ints from one place in shared memory, one below the other, and reads them again.
extern "C" __global__ void __launch_bounds__(64)
    store_tiles(const __grid_constant__ CUtensorMap map, const int* in, const int* out, int* again) {
    DYN_SMEM(sm, 128);
    int* tile = reinterpret_cast<int*>(sm);
    const int t = threadIdx.x;
    for (int round = 0; round < 3; round++) {
        for (int i = t; i < 256; i += 64) {
            tile[i] = in[round * 256 + i];
        }
        emu::fence_proxy_async();  // of the writers
        __syncthreads();           // the tile is whole
        if (t == 0) {
            const int at[2] = {0, round * 16};
            gpu::tma_store(&map, gpu::smem(sm), 2, at);
            emu::bulk_commit();
            emu::bulk_wait(0, true);  // the tile has been read
        }
        __syncthreads();  // the tile may be overwritten
    }
    if (t == 0) {
        emu::bulk_wait(0, false);  // the tiles have been written
    }
    __syncthreads();  // all know it
    for (int i = t; i < 3 * 256; i += 64) {
        again[i] = out[i];
    }
}
GPU_KERNEL(store_tiles)
