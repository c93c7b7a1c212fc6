// Clusters of blocks: what they tell each other through mbarriers, and what registers and lanes agree about.
#include "gpu.cuh"

// Each block tells its neighbour of a value in global memory, and is told of one.
extern "C" __global__ void __launch_bounds__(64) ring(int* values, int* out) {
    SHARED_ARRAY(uint64_t, full, 1);
    const uint32_t mbarrier = gpu::smem(full), blocks = 4;
    const int t = threadIdx.x, me = blockIdx.x;
    if (t == 0) {
        emu::mbarrier_init(mbarrier, 2);
        emu::fence_mbarrier_init();
    }
    emu::cluster_arrive();
    emu::cluster_wait();
    values[64 * me + t] = 1000 * me + t;
    __syncwarp();
    if (t % 32 == 0) {
        const uint32_t next = (emu::cluster_rank() + 1) % blocks;
        emu::mbarrier_arrive_remote(emu::map_shared(mbarrier, next));
    }
    gpu::mbar_wait(mbarrier, 0);
    const int before = me / 4 * 4 + (me + 3) % 4;
    out[64 * me + t] = values[64 * before + 63 - t];
}
GPU_KERNEL(ring)

// After the cluster's barrier a block sees what the warps that have arrived had written: one of each block ends without a
// wait, and one never arrives.
extern "C" __global__ void __launch_bounds__(96) meeting(int* values, int* out, int size) {
    const int t = threadIdx.x, me = blockIdx.x, lane = t % 32;
    if (t >= 64) {
        return;
    }
    if (t < 32) {
        values[32 * me + lane] = 100 * me + lane;
        emu::cluster_arrive();  // the values
        return;
    }
    emu::cluster_arrive();  // nothing
    emu::cluster_wait();
    int sum = 0;
    for (int i = 0; i < size; i++) {
        sum += values[32 * (me / size * size + i) + lane];
    }
    out[32 * me + lane] = sum;
}
GPU_KERNEL(meeting)

static __device__ uint32_t three_words() {
    SHARED_ARRAY(int, three, 3);
    return gpu::smem(three);
}
static __device__ uint32_t five_words() {
    SHARED_ARRAY(int, five, 5);
    return gpu::smem(five);
}

// Every block has its arrays in the same place, whichever it comes to first.
extern "C" __global__ void places(uint32_t* out) {
    DYN_SMEM(dynamic, 16);
    const uint32_t first = blockIdx.x % 2 == 0 ? three_words() : five_words();
    const uint32_t second = blockIdx.x % 2 == 0 ? five_words() : three_words();
    out[3 * blockIdx.x] = gpu::smem(dynamic);
    out[3 * blockIdx.x + 1 + blockIdx.x % 2] = first;
    out[3 * blockIdx.x + 2 - blockIdx.x % 2] = second;
}
GPU_KERNEL(places)

// One warp gathers rows backwards with cp.async, another takes them: two stages, and mbarriers alone.
extern "C" __global__ void __launch_bounds__(64) gather(const int* in, int* out, int steps) {
    SHARED_ARRAY(int4, stages, 2 * 32);
    SHARED_ARRAY(uint64_t, mbarriers, 4);
    const uint32_t full = gpu::smem(mbarriers), empty = full + 16;
    const int lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        for (int s = 0; s < 2; s++) {
            emu::mbarrier_init(full + 8 * s, 32);
            emu::mbarrier_init(empty + 8 * s, 32);
        }
    }
    __syncthreads();
    for (int step = 0; step < steps; step++) {
        const int s = step % 2, phase = step / 2 % 2;
        if (threadIdx.x < 32) {
            gpu::mbar_wait(empty + 8 * s, phase ^ 1);  // the stage is empty
            const int row = 32 * step + 31 - lane;
            emu::cp_async(gpu::smem(&stages[32 * s + lane]), in + 4 * row, 16, 16);
            emu::cp_async_mbarrier_arrive_noinc(full + 8 * s);
        } else {
            gpu::mbar_wait(full + 8 * s, phase);  // the stage is full
            const int4 row = stages[32 * s + (lane + 1) % 32];
            reinterpret_cast<int4*>(out)[32 * step + lane] = row;
            emu::mbarrier_arrive(empty + 8 * s);
        }
    }
}
GPU_KERNEL(gather)

// One lane a warp, the same each time.
extern "C" __global__ void elections(int* out) {
    for (int i = 0; i < 8; i++) {
        if (emu::elect_sync()) {
            out[8 * (threadIdx.x / 32) + i] = threadIdx.x % 32;
        }
    }
}
GPU_KERNEL(elections)

// A warpgroup gives registers away that the two others take.
extern "C" __global__ void __launch_bounds__(384) registers(int* out) {
    if (threadIdx.x < 128) {
        emu::set_max_registers(40, false);  // given
    } else {
        emu::set_max_registers(232, true);  // taken
    }
    out[threadIdx.x] = 1;
}
GPU_KERNEL(registers)
