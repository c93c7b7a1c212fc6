// One instruction or function of the hardware a kernel, on words made to tell its meaning from similar ones. No layer
// runs these: tests/kernels/conformance holds the emulator, a GPU and vectors recorded on one against each other with them,
// because a wrong operand in inline PTX is invisible wherever only its twin on the host is run.
//
// Every kernel takes (in, out). Grids, blocks and words of a thread: src/cuda/conformance.rs. Floor: a launch.

#include "device/ptx.cuh"
#include "device/storage.cuh"
#include "device/warp.cuh"

namespace da_moe {
namespace {

// First of the `words` words of this thread.
__device__ __forceinline__ int first_word(int words) {
    return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) * words;
}

// Rows are handed over in another order than they are in: an address that came from the wrong lane shows.
template <bool TRANSPOSED>
__device__ __forceinline__ void ldmatrix(const uint4* in, uint32_t* out) {
    SHARED_ARRAY(uint4, rows, WARP);
    rows[lane_index()] = in[lane_index()];
    __syncwarp();
    const uint32_t row = ptx::shared_address(rows) + static_cast<uint32_t>(lane_index() * 7 % WARP * 16);
    uint32_t fragments[4];
    if constexpr (TRANSPOSED) {
        ptx::ldmatrix_x4_trans(fragments, row);
    } else {
        ptx::ldmatrix_x4(fragments, row);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out[first_word(4) + i] = fragments[i];
    }
}

// A lane's words are four of A, two of B and four of the accumulators.
template <class Multiply>
__device__ __forceinline__ void mma(const uint32_t* in, float* out, Multiply multiply) {
    const uint32_t* own = in + first_word(10);
    const uint32_t a[4] = {own[0], own[1], own[2], own[3]};
    const uint32_t b[2] = {own[4], own[5]};
    float d[4] = {__uint_as_float(own[6]), __uint_as_float(own[7]), __uint_as_float(own[8]), __uint_as_float(own[9])};
    multiply(d, a, b);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        out[first_word(4) + i] = d[i];
    }
}

}  // namespace
}  // namespace da_moe

using namespace da_moe;

// Every number of source bytes, in two groups that are waited for one by one. A lane reads what its neighbour copied.
extern "C" __global__ void __launch_bounds__(32) conformance_cp_async(const uint4* in, uint4* out) {
    SHARED_ARRAY(uint4, pieces, 2 * WARP);
    const int lane = lane_index();
    const uint32_t target = ptx::shared_address(pieces + lane);
    // What the copy has to make zero is not zero before it.
    pieces[lane] = make_uint4(~0u, ~0u, ~0u, ~0u);
    pieces[WARP + lane] = make_uint4(~0u, ~0u, ~0u, ~0u);
    __syncwarp();
    ptx::cp_async_16(target, in + lane, lane % 17);
    ptx::cp_async_commit();
    ptx::cp_async_16(target + WARP * 16, in + lane, 16 - lane % 17);
    ptx::cp_async_commit();
    ptx::cp_async_wait<1>();
    __syncwarp();
    out[lane] = pieces[lane ^ 1];
    ptx::cp_async_wait<0>();
    __syncwarp();
    out[WARP + lane] = pieces[WARP + (lane ^ 1)];
}
GPU_KERNEL(conformance_cp_async)

// Two of three lanes copy their piece, one has zeros. A lane reads what its neighbour copied.
extern "C" __global__ void __launch_bounds__(32) conformance_cp_async_if(const uint4* in, uint4* out) {
    SHARED_ARRAY(uint4, pieces, WARP);
    const int lane = lane_index();
    pieces[lane] = make_uint4(~0u, ~0u, ~0u, ~0u);
    __syncwarp();
    ptx::cp_async_16_if(ptx::shared_address(pieces + lane), in + lane, lane % 3 != 0);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncwarp();
    out[lane] = pieces[lane ^ 1];
}
GPU_KERNEL(conformance_cp_async_if)

extern "C" __global__ void __launch_bounds__(32) conformance_ldmatrix(const uint4* in, uint32_t* out) {
    ldmatrix<false>(in, out);
}
GPU_KERNEL(conformance_ldmatrix)

extern "C" __global__ void __launch_bounds__(32) conformance_ldmatrix_trans(const uint4* in, uint32_t* out) {
    ldmatrix<true>(in, out);
}
GPU_KERNEL(conformance_ldmatrix_trans)

extern "C" __global__ void __launch_bounds__(32) conformance_mma_bf16(const uint32_t* in, float* out) {
    mma(in, out, [](float(&d)[4], const uint32_t(&a)[4], const uint32_t(&b)[2]) { ptx::mma_bf16(d, a, b); });
}
GPU_KERNEL(conformance_mma_bf16)

extern "C" __global__ void __launch_bounds__(32) conformance_mma_f16(const uint32_t* in, float* out) {
    mma(in, out, [](float(&d)[4], const uint32_t(&a)[4], const uint32_t(&b)[2]) { ptx::mma_f16(d, a, b); });
}
GPU_KERNEL(conformance_mma_f16)

extern "C" __global__ void __launch_bounds__(32) conformance_mma_tf32(const uint32_t* in, float* out) {
    mma(in, out, [](float(&d)[4], const uint32_t(&a)[4], const uint32_t(&b)[2]) { ptx::mma_tf32(d, a, b); });
}
GPU_KERNEL(conformance_mma_tf32)

// The lower 13 bits of the result mean nothing.
extern "C" __global__ void conformance_round_tf32(const uint32_t* in, uint32_t* out) {
    out[first_word(1)] = ptx::round_tf32(in[first_word(1)]) & 0xffffe000u;
}
GPU_KERNEL(conformance_round_tf32)

extern "C" __global__ void conformance_ex2(const float* in, float* out) {
    out[first_word(1)] = ptx::ex2(in[first_word(1)]);
}
GPU_KERNEL(conformance_ex2)

// The largest as unsigned and as signed numbers, and the sum.
extern "C" __global__ void __launch_bounds__(32) conformance_reduce(const uint32_t* in, uint32_t* out) {
    const uint32_t value = in[first_word(1)];
    uint32_t* own = out + first_word(3);
    own[0] = __reduce_max_sync(FULL_WARP, value);
    own[1] = static_cast<uint32_t>(__reduce_max_sync(FULL_WARP, static_cast<int>(value)));
    own[2] = static_cast<uint32_t>(__reduce_add_sync(FULL_WARP, static_cast<int>(value)));
}
GPU_KERNEL(conformance_reduce)

extern "C" __global__ void __launch_bounds__(32) conformance_match_any(const uint32_t* in, uint32_t* out) {
    out[first_word(1)] = __match_any_sync(FULL_WARP, static_cast<int>(in[first_word(1)]));
}
GPU_KERNEL(conformance_match_any)

extern "C" __global__ void __launch_bounds__(32) conformance_vote(const uint32_t* in, uint32_t* out) {
    const uint32_t holds = __ballot_sync(FULL_WARP, in[first_word(1)] != 0);
    uint32_t* own = out + first_word(3);
    own[0] = holds;
    own[1] = static_cast<uint32_t>(__ffs(static_cast<int>(holds)));
    own[2] = static_cast<uint32_t>(__popc(holds));
}
GPU_KERNEL(conformance_vote)

// From below, from the lane across, and from the lane that the second word names: 1, 2, 4, 8 and 16 lanes, then any.
extern "C" __global__ void __launch_bounds__(32) conformance_shuffle(const uint32_t* in, uint32_t* out) {
    const uint32_t value = in[first_word(2)];
    const int source = static_cast<int>(in[first_word(2) + 1]);
    uint32_t* own = out + first_word(11);
#pragma unroll
    for (int i = 0; i < 5; i++) {
        own[i] = __shfl_up_sync(FULL_WARP, value, 1u << i);
        own[5 + i] = __shfl_xor_sync(FULL_WARP, value, 1 << i);
    }
    own[10] = __shfl_sync(FULL_WARP, value, source);
}
GPU_KERNEL(conformance_shuffle)

// A block's threads, four warps, all increment one counter, from the block's first word on and round at its second.
// Out: where the counter ends, and how often each old value was seen, 15 and more in one place.
extern "C" __global__ void __launch_bounds__(128) conformance_atomic_inc(const uint32_t* in, uint32_t* out) {
    constexpr int SEEN = 16;
    uint32_t* counter = out + blockIdx.x * (1 + SEEN);
    if (threadIdx.x <= SEEN) {
        counter[threadIdx.x] = threadIdx.x == 0 ? in[2 * blockIdx.x] : 0;
    }
    __syncthreads();
    const uint32_t old = atomicInc(counter, in[2 * blockIdx.x + 1]);
    atomicAdd(counter + 1 + min(old, SEEN - 1u), 1u);
}
GPU_KERNEL(conformance_atomic_inc)

// bf16 in the lower half of the word, f16 in the upper one.
extern "C" __global__ void conformance_from_float(const float* in, uint32_t* out) {
    const float value = in[first_word(1)];
    const uint32_t upper = __half_as_ushort(from_float<f16>(value));
    out[first_word(1)] = upper << 16 | __bfloat16_as_ushort(from_float<bf16>(value));
}
GPU_KERNEL(conformance_from_float)

extern "C" __global__ void conformance_to_float(const uint32_t* in, float* out) {
    const uint32_t halves = in[first_word(1)];
    out[first_word(2)] = to_float(__ushort_as_bfloat16(static_cast<unsigned short>(halves)));
    out[first_word(2) + 1] = to_float(__ushort_as_half(static_cast<unsigned short>(halves >> 16)));
}
GPU_KERNEL(conformance_to_float)

extern "C" __global__ void conformance_extremes(const float* in, float* out) {
    const float* own = in + first_word(2);
    out[first_word(2)] = fmaxf(own[0], own[1]);
    out[first_word(2) + 1] = fminf(own[0], own[1]);
}
GPU_KERNEL(conformance_extremes)

// The first word's power of e, the second word's logarithms.
extern "C" __global__ void conformance_exp_log(const float* in, float* out) {
    const float x = in[first_word(2)];
    const float y = in[first_word(2) + 1];
    float* own = out + first_word(4);
    own[0] = expf(x);
    own[1] = logf(y);
    own[2] = __logf(y);
    own[3] = log2f(y);
}
GPU_KERNEL(conformance_exp_log)
