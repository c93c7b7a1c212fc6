// C[M, N] = A[M, K] B[N, K]^T in f32 from bf16: 64 x 64 x 64 tiles, one warpgroup that loads with TMA, one with wgmma.
#include "gpu.cuh"

constexpr int BM = 64, BN = 64, BK = 64, STAGES = 3;
constexpr int A_BYTES = BM * BK * 2, STAGE_BYTES = A_BYTES + BN * BK * 2;

extern "C" __global__ void __launch_bounds__(256, 1)
    gemm_sm90(const __grid_constant__ CUtensorMap a_map, const __grid_constant__ CUtensorMap b_map, float* C, int M,
              int N, int K) {
    DYN_SMEM(sm, 1024);
    const uint32_t base = gpu::smem(sm);
    const uint32_t full = base + STAGES * STAGE_BYTES, empty = full + STAGES * 8;
    const int t = threadIdx.x, steps = (K + BK - 1) / BK, m0 = blockIdx.y * BM, n0 = blockIdx.x * BN;
    if (t == 0) {
        for (int s = 0; s < STAGES; s++) {
            emu::mbarrier_init(full + 8 * s, 1);
            emu::mbarrier_init(empty + 8 * s, 4);
        }
    }
    __syncthreads();  // after the initialisation

    if (t < 128) {
        if (t == 0) {
            for (int k = 0; k < steps; k++) {
                const int s = k % STAGES;
                const uint32_t phase = (k / STAGES) & 1, tile = base + s * STAGE_BYTES;
                gpu::mbar_wait(empty + 8 * s, phase ^ 1);
                emu::mbarrier_arrive(full + 8 * s, STAGE_BYTES);
                gpu::tma_load_2d(tile, &a_map, full + 8 * s, k * BK, m0);
                gpu::tma_load_2d(tile + A_BYTES, &b_map, full + 8 * s, k * BK, n0);
            }
        }
        return;
    }

    const int lane = t & 31, warp = (t >> 5) & 3;
    float d[32];
    for (int i = 0; i < 32; i++) {
        d[i] = 1e30f;  // the first product does not read it
    }
    for (int k = 0; k < steps; k++) {
        const int s = k % STAGES;
        const uint32_t phase = (k / STAGES) & 1, tile = base + s * STAGE_BYTES;
        gpu::mbar_wait(full + 8 * s, phase);
        const uint64_t a = gpu::descriptor(tile), b = gpu::descriptor(tile + A_BYTES);
        emu::wgmma_fence();
        for (int j = 0; j < BK / 16; j++) {
            gpu::wgmma_m64n64k16(d, a + j * 2, b + j * 2, (k | j) != 0);
        }
        emu::wgmma_commit();
        emu::wgmma_wait(0);
        if (lane == 0) {
            emu::mbarrier_arrive(empty + 8 * s);
        }
    }
    for (int i = 0; i < 32; i++) {
        const int m = m0 + 16 * warp + (lane >> 2) + 8 * ((i >> 1) & 1);
        const int n = n0 + 8 * (i >> 2) + 2 * (lane & 3) + (i & 1);
        if (m < M && n < N) {
            C[(size_t)m * N + n] = d[i];
        }
    }
}
GPU_KERNEL(gemm_sm90)
