// Single PTX services: fragments of f16 matrices, small copies, named barriers.
#include "gpu.cuh"

// C[16, 16] = A[16, 16] B[16, 16] in f32 from f16, all row-major: one warp.
extern "C" __global__ void __launch_bounds__(32) product_f16(const __half* A, const __half* B, float* C) {
    SHARED_ARRAY(uint4, tiles, 2 * 32);
    const int lane = threadIdx.x;
    tiles[lane] = reinterpret_cast<const uint4*>(A)[lane];
    tiles[32 + lane] = reinterpret_cast<const uint4*>(B)[lane];
    __syncwarp();
    const auto* a_tile = reinterpret_cast<const __half*>(tiles);
    const auto* b_tile = a_tile + 16 * 16;
    uint32_t a[4], b[4];
    gpu::ldmatrix_x4(a, gpu::smem(a_tile + (lane & 15) * 16 + (lane >> 4) * 8));
    gpu::ldmatrix_x4_trans(b, gpu::smem(b_tile + (lane & 15) * 16 + (lane >> 4) * 8));
    for (int half = 0; half < 2; half++) {
        const uint32_t columns[2] = {b[2 * half], b[2 * half + 1]};
        float d[4] = {0, 0, 0, 0};
        gpu::mma_f16(d, a, columns, d);
        for (int i = 0; i < 4; i++) {
            C[((lane >> 2) + 8 * (i >> 1)) * 16 + 8 * half + 2 * (lane & 3) + (i & 1)] = d[i];
        }
    }
}
GPU_KERNEL(product_f16)

// Copies of 4 and 8 bytes, with zeros past the source.
extern "C" __global__ void small_copies(const int* in, int* out) {
    SHARED_ARRAY(int2, pairs, 32);
    const int t = threadIdx.x;
    const uint32_t target = gpu::smem(&pairs[t]);
    if (t % 2 == 0) {
        emu::cp_async(target, in + 2 * t, 8, t == 0 ? 4 : 8);
    } else {
        emu::cp_async(target, in + 2 * t, 4, 4);
        emu::cp_async(target + 4, in, 4, 0);
    }
    emu::cp_async_commit();
    emu::cp_async_wait(0);
    out[2 * t] = pairs[t].x;
    out[2 * t + 1] = pairs[t].y;
}
GPU_KERNEL(small_copies)

// One warp fills a buffer, another empties it: two named barriers, arrived at by one and waited for by the other.
extern "C" __global__ void __launch_bounds__(64) pipeline(const int* in, int* out) {
    SHARED_ARRAY(int, buffer, 32);
    const int lane = threadIdx.x % 32;
    constexpr int full = 1, empty = 2;
    for (int step = 0; step < 4; step++) {
        if (threadIdx.x < 32) {
            if (step > 0) {
                emu::named_barrier(empty, 64, true);  // wait for empty
            }
            buffer[lane] = in[32 * step + lane];
            emu::named_barrier(full, 64, false);  // arrive at full
        } else {
            emu::named_barrier(full, 64, true);
            out[32 * step + lane] = buffer[31 - lane];
            if (step < 3) {
                emu::named_barrier(empty, 64, false);  // arrive at empty
            }
        }
    }
}
GPU_KERNEL(pipeline)

extern "C" __global__ void reciprocals(const float* in, float* out) {
    out[threadIdx.x] = emu::rcp(in[threadIdx.x]);
}
GPU_KERNEL(reciprocals)
