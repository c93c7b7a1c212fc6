// C[M, N] = A[M, K] B[N, K]^T in f32 from bf16, K a multiple of 8: 64 x 64 x 32 tiles, cp.async in two stages,
// mma.sync.
#include "gpu.cuh"

constexpr int BM = 64, BN = 64, BK = 32, THREADS = 128;
constexpr int LD = BK + 8;  // rows of 80 bytes keep ldmatrix free of bank conflicts
constexpr int STAGE = (BM + BN) * LD;

extern "C" __global__ void __launch_bounds__(THREADS)
    gemm_sm80(const __nv_bfloat16* A, const __nv_bfloat16* B, float* C, int M, int N, int K) {
    DYN_SMEM(raw, 16);
    auto* sm = reinterpret_cast<__nv_bfloat16*>(raw);
    const int t = threadIdx.x, lane = t & 31, warp = t >> 5;
    const int m0 = blockIdx.y * BM, n0 = blockIdx.x * BN;
    const int wm = (warp & 1) * 32, wn = (warp >> 1) * 32;

    auto load = [&](int kt, int stage) {
        for (int i = t; i < (BM + BN) * BK / 8; i += THREADS) {
            const int r = i / (BK / 8), c = i % (BK / 8) * 8, k = kt * BK + c;
            const bool is_a = r < BM;
            const int row = is_a ? m0 + r : n0 + r - BM;
            const bool inside = k < K && row < (is_a ? M : N);
            const __nv_bfloat16* source = (is_a ? A : B) + (inside ? (size_t)row * K + k : 0);
            gpu::cp_async16(gpu::smem(sm + stage * STAGE + r * LD + c), source, inside ? 16 : 0);
        }
        gpu::cp_async_commit();
    };

    float acc[2][4][4] = {};
    const int steps = (K + BK - 1) / BK;
    load(0, 0);
    for (int kt = 0; kt < steps; kt++) {
        if (kt + 1 < steps) {
            load(kt + 1, (kt + 1) & 1);
            gpu::cp_async_wait<1>();
        } else {
            gpu::cp_async_wait<0>();
        }
        __syncthreads();  // the stage is complete
        const __nv_bfloat16* a_tile = sm + (kt & 1) * STAGE;
        const __nv_bfloat16* b_tile = a_tile + BM * LD;
        for (int kk = 0; kk < BK; kk += 16) {
            uint32_t a[2][4], b[4][2], r[4];
            for (int i = 0; i < 2; i++) {
                const int row = wm + i * 16 + (lane & 15), column = kk + (lane >> 4) * 8;
                gpu::ldmatrix_x4(a[i], gpu::smem(a_tile + row * LD + column));
            }
            for (int j = 0; j < 2; j++) {
                const int row = wn + j * 16 + (lane & 7) + (lane >> 4) * 8, column = kk + ((lane >> 3) & 1) * 8;
                gpu::ldmatrix_x4(r, gpu::smem(b_tile + row * LD + column));
                b[2 * j][0] = r[0];
                b[2 * j][1] = r[1];
                b[2 * j + 1][0] = r[2];
                b[2 * j + 1][1] = r[3];
            }
            for (int i = 0; i < 2; i++) {
                for (int j = 0; j < 4; j++) {
                    gpu::mma_bf16(acc[i][j], a[i], b[j], acc[i][j]);
                }
            }
        }
        __syncthreads();  // the stage may be overwritten
    }

    for (int i = 0; i < 2; i++) {
        for (int j = 0; j < 4; j++) {
            for (int q = 0; q < 4; q++) {
                const int m = m0 + wm + i * 16 + (lane >> 2) + (q >> 1) * 8;
                const int n = n0 + wn + j * 8 + (lane & 3) * 2 + (q & 1);
                if (m < M && n < N) {
                    C[(size_t)m * N + n] = acc[i][j][q];
                }
            }
        }
    }
}
GPU_KERNEL(gemm_sm80)
