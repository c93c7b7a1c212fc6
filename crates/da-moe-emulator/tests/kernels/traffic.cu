// Accesses whose addresses the test chooses, for tests/emulator/traffic.rs.
#include "gpu.cuh"

namespace {

// As much as an instruction of that width moves.
template <class T>
__device__ void read(const unsigned char* from, uint32_t* out) {
    const T value = *reinterpret_cast<const T*>(from);
    *out = reinterpret_cast<const unsigned char&>(value);
}

}  // namespace

// A warp fills its shared memory, and reads `bytes` a lane at the lane's offset, if that is not negative.
extern "C" __global__ void __launch_bounds__(32) shared_reads(const int* offsets, int bytes, uint32_t* out) {
    DYN_SMEM(sm, 128);
    const int lane = threadIdx.x;
    for (int i = lane; i < 1024; i += 32) {
        reinterpret_cast<uint32_t*>(sm)[i] = i;
    }
    __syncwarp();
    const int offset = offsets[lane];
    out[lane] = 0;
    if (offset < 0) {
        return;
    }
    const unsigned char* from = sm + offset;
    switch (bytes) {
        case 2:
            read<uint16_t>(from, out + lane);
            break;
        case 4:
            read<uint32_t>(from, out + lane);
            break;
        case 8:
            read<uint2>(from, out + lane);
            break;
        default:
            read<uint4>(from, out + lane);
    }
}
GPU_KERNEL(shared_reads)

// A warp writes 16 bytes a lane, by a store or by cp.async, and reads them by ldmatrix.
extern "C" __global__ void __launch_bounds__(32)
    matrices(const uint4* in, const int* offsets, int in_background, uint32_t* out) {
    DYN_SMEM(sm, 128);
    const int lane = threadIdx.x;
    unsigned char* own = sm + offsets[lane];
    if (in_background != 0) {
        gpu::cp_async16(gpu::smem(own), in + lane, 16);
        gpu::cp_async_commit();
        gpu::cp_async_wait<0>();
    } else {
        *reinterpret_cast<uint4*>(own) = in[lane];
    }
    __syncwarp();
    uint32_t words[4];
    gpu::ldmatrix_x4(words, gpu::smem(own));
    out[lane] = words[0] + words[1] + words[2] + words[3];
}
GPU_KERNEL(matrices)

// Lane l reads l + 1 words, twice, `stride` apart from the next lane's.
extern "C" __global__ void __launch_bounds__(32) uneven_loops(int stride, int* out) {
    DYN_SMEM(sm, 128);
    int* words = reinterpret_cast<int*>(sm);
    const int lane = threadIdx.x;
    int sum = 0;
    for (int i = lane; i < 1024; i += 32) {
        words[i] = i;
    }
    __syncwarp();
    for (int turn = 0; turn < 2; turn++) {
        for (int i = 0; i <= lane; i++) {
            sum += words[(lane * stride + i * 32) % 1024];  // one lane less each time
        }
        __syncwarp();
    }
    out[lane] = sum;
}
GPU_KERNEL(uneven_loops)

// Lane l of each warp reads the word l * stride of `in`, and adds to the only word of `sum`.
extern "C" __global__ void __launch_bounds__(64) global_words(const int* in, int stride, int* sum) {
    atomicAdd(sum, in[threadIdx.x * stride]);
}
GPU_KERNEL(global_words)
