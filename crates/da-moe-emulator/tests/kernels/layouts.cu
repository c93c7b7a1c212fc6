// Single instructions on words that tell where they come from, for tests/emulator/layouts.
#include "gpu.cuh"

// One product a block. A lane's words are four of A, two of B and four of the accumulators.
extern "C" __global__ void __launch_bounds__(32) layout_mma(const uint32_t* in, float* out, int tf32) {
    const uint32_t* own = in + (blockIdx.x * 32 + threadIdx.x) * 10;
    const uint32_t a[4] = {own[0], own[1], own[2], own[3]}, b[2] = {own[4], own[5]};
    float d[4];
    for (int i = 0; i < 4; i++) {
        d[i] = __uint_as_float(own[6 + i]);
    }
    if (tf32 != 0) {
        emu::mma_m16n8k8_tf32(d, a, b, d);
    } else {
        emu::mma_m16n8k16(emu::Element::Bf16, d, a, b, d);
    }
    for (int i = 0; i < 4; i++) {
        out[(blockIdx.x * 32 + threadIdx.x) * 4 + i] = d[i];
    }
}
GPU_KERNEL(layout_mma)

// Lane l gives the address of row 7 l mod 32.
extern "C" __global__ void __launch_bounds__(32)
    layout_ldmatrix(const uint4* rows, uint32_t* out, int matrices, int transposed) {
    SHARED_ARRAY(uint4, shared, 32);
    const int lane = threadIdx.x;
    shared[lane] = rows[lane];
    __syncwarp();
    uint32_t loaded[4] = {};
    emu::ldmatrix(matrices, transposed != 0, gpu::smem(shared + lane * 7 % 32), loaded);
    for (int i = 0; i < 4; i++) {
        out[lane * 4 + i] = loaded[i];
    }
}
GPU_KERNEL(layout_ldmatrix)

// The same the other way round, into rows that hold zeros. Four words a lane.
extern "C" __global__ void __launch_bounds__(32)
    layout_stmatrix(const uint32_t* words, uint4* out, int matrices, int transposed) {
    SHARED_ARRAY(uint4, shared, 32);
    const int lane = threadIdx.x;
    const uint32_t stored[4] = {words[lane * 4], words[lane * 4 + 1], words[lane * 4 + 2], words[lane * 4 + 3]};
    shared[lane] = make_uint4(0, 0, 0, 0);
    __syncwarp();
    emu::stmatrix(matrices, transposed == 1, gpu::smem(shared + lane * 7 % 32), stored);
    __syncwarp();
    out[lane] = shared[lane];
}
GPU_KERNEL(layout_stmatrix)

// D = A B of a warpgroup, of operands that lie in shared memory as they lie in `image`; the descriptors count from its
// start. If there are words of A, four a thread, these are A.
extern "C" __global__ void __launch_bounds__(128)
    layout_wgmma(const uint4* image, int pieces, const uint32_t* words, uint64_t a, uint64_t b, int n, int transposed_a,
                 int transposed_b, int tf32, float* out) {
    DYN_SMEM(sm, 1024);
    const int t = threadIdx.x;
    for (int i = t; i < pieces; i += 128) {
        reinterpret_cast<uint4*>(sm)[i] = image[i];
    }
    emu::fence_proxy_async();
    __syncthreads();
    const uint64_t start = gpu::smem(sm) >> 4;
    const emu::Element element = tf32 != 0 ? emu::Element::Tf32 : emu::Element::F16;
    float d[128];
    uint32_t own[4] = {};
    emu::wgmma_fence();
    if (words != nullptr) {
        for (int i = 0; i < 4; i++) {
            own[i] = words[t * 4 + i];
        }
        emu::wgmma(d, {element, n, 0, b + start, false, false, transposed_b != 0, own});
    } else {
        emu::wgmma(d, {element, n, a + start, b + start, false, transposed_a != 0, transposed_b != 0});
    }
    emu::wgmma_commit();
    emu::wgmma_wait(0);
    for (int i = 0; i < n / 2; i++) {
        out[t * (n / 2) + i] = d[i];
    }
}
GPU_KERNEL(layout_wgmma)

// One box, to `target` bytes after the start of shared memory.
extern "C" __global__ void __launch_bounds__(32) layout_tma(const __grid_constant__ CUtensorMap map, int x, int y,
                                                            unsigned target, unsigned bytes, uint16_t* out) {
    DYN_SMEM(sm, 1024);
    SHARED_ARRAY(uint64_t, barrier, 1);
    const uint32_t full = gpu::smem(barrier);
    const unsigned t = threadIdx.x;
    if (t == 0) {
        emu::mbarrier_init(full, 1);
    }
    __syncthreads();
    if (t == 0) {
        emu::mbarrier_arrive(full, bytes);
        gpu::tma_load_2d(gpu::smem(sm) + target, &map, full, x, y);
    }
    gpu::mbar_wait(full, 0);
    const auto* box = reinterpret_cast<const uint16_t*>(sm + target);
    for (unsigned i = t; i < bytes / 2; i += 32) {
        out[i] = box[i];
    }
}
GPU_KERNEL(layout_tma)

// Two boxes of rank 4 after one another, of `bytes` each: a tile. `second` is where the other one is.
struct Place {
    int at[4];
};
extern "C" __global__ void __launch_bounds__(32)
    layout_tiles(const __grid_constant__ CUtensorMap map, Place second, unsigned bytes, uint16_t* out) {
    DYN_SMEM(sm, 1024);
    SHARED_ARRAY(uint64_t, barrier, 1);
    const uint32_t full = gpu::smem(barrier), tile = gpu::smem(sm);
    const unsigned t = threadIdx.x;
    if (t == 0) {
        const int first[4] = {0, 0, 0, 0};
        emu::mbarrier_init(full, 1);
        emu::mbarrier_arrive(full, 2 * bytes);
        gpu::tma_load(tile, &map, full, 4, first);
        gpu::tma_load(tile + bytes, &map, full, 4, second.at);
    }
    __syncthreads();
    gpu::mbar_wait(full, 0);
    for (unsigned i = t; i < bytes; i += 32) {
        out[i] = reinterpret_cast<const uint16_t*>(sm)[i];
    }
}
GPU_KERNEL(layout_tiles)
