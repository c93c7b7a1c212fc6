// C[64, 64] = A[64, 64] B[64, 64]^T with wgmma, from operands that ordinary stores put into shared memory.
#include "gpu.cuh"

constexpr int TILE_BYTES = 64 * 64 * 2;

extern "C" __global__ void __launch_bounds__(128)
    wgmma_generic(const __nv_bfloat16* A, const __nv_bfloat16* B, float* C) {
    DYN_SMEM(sm, 1024);
    const int t = threadIdx.x;
    for (int i = t; i < 64 * 8; i += 128) {
        const int r = i / 8, c = i % 8;
        const int at = r * 128 + ((c ^ (r & 7)) << 4);  // the 128-byte swizzle
        *reinterpret_cast<uint4*>(sm + at) = *reinterpret_cast<const uint4*>(A + r * 64 + c * 8);
        *reinterpret_cast<uint4*>(sm + TILE_BYTES + at) = *reinterpret_cast<const uint4*>(B + r * 64 + c * 8);
    }
    emu::fence_proxy_async();
    __syncthreads();
    float d[32];
    const uint64_t a = gpu::descriptor(gpu::smem(sm)), b = gpu::descriptor(gpu::smem(sm + TILE_BYTES));
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
GPU_KERNEL(wgmma_generic)
