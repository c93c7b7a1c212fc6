// Boxes that two blocks load for each other, and operands of wgmma that a warp gathers.
#include "gpu.cuh"

// Sums up tiles of 16 rows of 16 ints in both blocks, each of which loads half of every tile for both.
extern "C" __global__ void __launch_bounds__(64)
    multicast(const __grid_constant__ CUtensorMap map, int* out, int steps) {
    DYN_SMEM(sm, 128);
    SHARED_ARRAY(uint64_t, mbarriers, 4);
    const uint32_t full = gpu::smem(mbarriers), empty = full + 16, rank = emu::cluster_rank();
    const int t = threadIdx.x, lane = t % 32;
    if (t == 0) {
        for (int s = 0; s < 2; s++) {
            emu::mbarrier_init(full + 8 * s, 1);
            emu::mbarrier_init(empty + 8 * s, 2);
        }
        emu::fence_mbarrier_init();
    }
    emu::cluster_arrive();  // the mbarriers
    emu::cluster_wait();    // the mbarriers
    int sum = 0;
    for (int step = 0; step < steps; step++) {
        const int s = step % 2, phase = step / 2 % 2;
        const unsigned char* tile = sm + s * 1024;
        if (t == 0) {
            gpu::mbar_wait(empty + 8 * s, phase ^ 1);  // both blocks have read the tile
            emu::mbarrier_arrive(full + 8 * s, 1024);
            const int at[2] = {0, step * 16 + (int)rank * 8};
            emu::tma_load(gpu::smem(tile) + rank * 512, &map, full + 8 * s, 2, at, 3);
        }
        if (t >= 32) {
            gpu::mbar_wait(full + 8 * s, phase);  // both halves have come
            for (int i = lane; i < 256; i += 32) {
                sum += reinterpret_cast<const int*>(tile)[i];
            }
            __syncwarp();
            if (lane < 2) {
                emu::mbarrier_arrive_remote(emu::map_shared(empty + 8 * s, lane));
            }
        }
    }
    if (t >= 32) {
        out[blockIdx.x * 32 + lane] = sum;
    }
    emu::cluster_arrive();  // the last arrivals
    emu::cluster_wait();    // the last arrivals
}
GPU_KERNEL(multicast)

// As wgmma_generic, but a fifth warp copies the operands.
extern "C" __global__ void __launch_bounds__(160)
    gathered(const __nv_bfloat16* A, const __nv_bfloat16* B, float* C) {
    constexpr int tile_bytes = 64 * 64 * 2;
    DYN_SMEM(sm, 1024);
    SHARED_ARRAY(uint64_t, mbarrier, 1);
    const uint32_t full = gpu::smem(mbarrier);
    const int t = threadIdx.x;
    if (t == 0) {
        emu::mbarrier_init(full, 32);
    }
    __syncthreads();
    if (t >= 128) {
        for (int i = t - 128; i < 64 * 8; i += 32) {
            const int r = i / 8, c = i % 8;
            const uint32_t at = gpu::smem(sm) + r * 128 + ((c ^ (r & 7)) << 4);
            gpu::cp_async16(at, A + r * 64 + c * 8, 16);
            gpu::cp_async16(at + tile_bytes, B + r * 64 + c * 8, 16);
        }
        emu::cp_async_mbarrier_arrive_noinc(full);  // the copies
        return;
    }
    gpu::mbar_wait(full, 0);
    emu::fence_proxy_async();  // of the readers
    float d[32];
    const uint64_t a = gpu::descriptor(gpu::smem(sm)), b = gpu::descriptor(gpu::smem(sm + tile_bytes));
    emu::wgmma_fence();
    for (int j = 0; j < 4; j++) {
        gpu::wgmma_m64n64k16(d, a + j * 2, b + j * 2, j != 0);
    }
    emu::wgmma_commit();
    emu::wgmma_wait(0);
    for (int i = 0; i < 32; i++) {
        const int row = 16 * (t >> 5) + ((t & 31) >> 2) + 8 * ((i >> 1) & 1);
        const int column = 8 * (i >> 2) + 2 * (t & 3) + (i & 1);
        C[row * 64 + column] = d[i];
    }
}
GPU_KERNEL(gathered)
