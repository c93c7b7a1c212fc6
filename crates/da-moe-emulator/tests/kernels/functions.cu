// What kernels compute with: conversions, functions of a thread, of a warp and of a block, atomics.
#include <emulator/cuda.h>

extern "C" __global__ void to_float(const unsigned short* bits, float* from_bf16, float* from_f16, int count) {
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        from_bf16[i] = __bfloat162float(__ushort_as_bfloat16(bits[i]));
        from_f16[i] = __half2float(__ushort_as_half(bits[i]));
    }
}
GPU_KERNEL(to_float)

extern "C" __global__ void from_float(const float* values, unsigned short* bf16, unsigned short* f16, int count) {
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        bf16[i] = __bfloat16_as_ushort(__float2bfloat16_rn(values[i]));
        f16[i] = __half_as_ushort(__float2half_rn(values[i]));
    }
}
GPU_KERNEL(from_float)

extern "C" __global__ void pairs(const float2* values, __nv_bfloat162* bf16, __half2* f16, float2* sums) {
    const int t = threadIdx.x;
    bf16[t] = __float22bfloat162_rn(values[t]);
    f16[t] = __float22half2_rn(values[t]);
    const float2 x = __bfloat1622float2(bf16[t]), y = __half22float2(f16[t]);
    sums[t] = make_float2(x.x + __low2float(f16[t]), y.y + __high2float(bf16[t]));
}
GPU_KERNEL(pairs)

// Eleven results a lane.
extern "C" __global__ void warp_functions(int* out) {
    const int lane = threadIdx.x;
    int* mine = out + 11 * lane;
    mine[0] = __shfl_sync(~0u, lane, 5);
    mine[1] = __shfl_sync(~0u, lane, lane + 1, 8);
    mine[2] = __shfl_up_sync(~0u, lane, 3);
    mine[3] = __shfl_down_sync(~0u, lane, 3, 16);
    mine[4] = __shfl_xor_sync(~0u, lane, 9);
    mine[5] = (int)__ballot_sync(~0u, lane % 3 == 0);
    mine[6] = __any_sync(~0u, lane == 40) + 2 * __all_sync(~0u, lane < 32);
    mine[7] = (int)__match_any_sync(~0u, lane / 5);
    mine[8] = __reduce_add_sync(~0u, lane) + 1000 * __reduce_max_sync(~0u, -lane);
    mine[9] = (int)(__reduce_or_sync(~0u, 1u << lane) ^ __reduce_min_sync(~0u, 7u + lane));
    // Half a warp does on its own what the other half leaves out.
    mine[10] = lane < 16 ? (int)__ballot_sync(0xffffu, lane % 2) : 0;
}
GPU_KERNEL(warp_functions)

extern "C" __global__ void block_votes(int* out) {
    const int t = threadIdx.x;
    const int some = __syncthreads_or(t == 77), every = __syncthreads_and(t != 77),
              count = __syncthreads_count(t % 3 == 0);
    out[t] = some + 2 * every + 10 * count;
}
GPU_KERNEL(block_votes)

// Every thread of every block applies every atomic.
extern "C" __global__ void atomics(int* ints, unsigned* words, unsigned long long* longs, float* floats) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(&ints[0], i);
    atomicSub(&ints[1], i);
    atomicMin(&ints[2], -i);
    atomicMax(&ints[3], i);
    atomicAnd(&words[0], ~(1u << (i % 32)));
    atomicOr(&words[1], 1u << (i % 32));
    atomicXor(&words[2], 1u << (i % 7));
    atomicInc(&words[3], 9);
    atomicDec(&words[4], 9);
    atomicAdd(&longs[0], 1ull << 33);
    atomicMax(&longs[1], (unsigned long long)i << 32);
    atomicAdd(&floats[0], 0.5f);
    unsigned expected = words[5];  // a plain read of a word that no atomic touches
    while (true) {                 // an increment by compare and swap
        const unsigned seen = atomicCAS(&words[6], expected, expected + 1);
        if (seen == expected) {
            break;
        }
        expected = seen;
    }
    atomicExch(&floats[1], 1.0f);
}
GPU_KERNEL(atomics)

extern "C" __global__ void bits(unsigned* out) {
    out[0] = __popc(0xf0f0u) + 100 * __popcll(~0ull);
    out[1] = __ffs(8) + 100 * __clz(1) + 10000 * __clzll(1ll) + 1000000 * __ffs(0);
    out[2] = __brev(1u) ^ (unsigned)(__brevll(1ull) >> 32);
    out[3] = __byte_perm(0x33221100u, 0x77665544u, 0x7160u);
    out[4] = __umulhi(0x80000000u, 6u) + __float_as_uint(1.0f);
    out[5] =
        (unsigned)__float2int_rn(2.5f) + 10u * (unsigned)__float2int_rz(-0.9f) + 100u * (unsigned)__float2int_ru(1.1f);
    out[6] = (unsigned)__float2int_rn(NAN) + (__float2int_rz(1e20f) == INT32_MAX);
    out[7] = (unsigned)(min(3, 5) + max(2u, 1u) + (int)fminf(1.0f, 2.0f) + (int)(__expf(0.0f) + rsqrtf(0.25f)));
}
GPU_KERNEL(bits)

// A parameter as large as CUDA allows, next to a small one.
struct Large {
    double values[500];
    int index;
};
extern "C" __global__ void large_parameter(const __grid_constant__ Large large, double* out) {
    out[threadIdx.x] = large.values[threadIdx.x] + large.index;
}
GPU_KERNEL(large_parameter)

// Threads, blocks and sizes in three dimensions.
extern "C" __global__ void indices(uint3* threads, uint3* blocks) {
    const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const unsigned i = block * (blockDim.x * blockDim.y * blockDim.z) + thread;
    threads[i] = threadIdx;
    blocks[i] = blockIdx;
}
GPU_KERNEL(indices)
