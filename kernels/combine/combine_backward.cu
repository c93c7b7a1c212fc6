// SPEC §6 through the null experts: what their weights and their constants get of dy.
//
//   combine_backward_{f32,bf16,f16}[_wide]    d_weights[t, slot] = ⟨dy_t, null(x_t)⟩; 0 for every other slot
//   combine_constants_{f32,bf16,f16}[_wide]   d_constants[z] = Σ g·dy_t over the slots that name null expert z
//
// combine_backward: grid (T / 8), block 8 warps, one a token; no barriers. Bytes: 8·T·K, and 2·T·D·s where a token has a
// null slot; floor: that over the memory bandwidth, 0.1 ms for T 32768, D 2048 in bf16 when every token has one.
//
// combine_constants: grid (chunks of tokens, D / (256·VEC), Z), block 256; a thread has VEC columns of one row. A block goes
// through its chunk's slots 1024 at a time: those that name its expert are listed in their order, then every thread adds
// their rows of dy in that order. Two barriers and one more a step. The last block of a row to arrive adds the chunks in
// order. Bytes: D·s a slot that names a null expert, 8·Z·chunks·D and, from the L2 but once, 4·T·K; floor: as above.
//
// `_wide` kernels move 128 bits at once and need D, every stride and every address to be multiples of that.

#include "combine/slots.cuh"
#include "device/block.cuh"
#include "device/gradient.cuh"
#include "device/storage.cuh"

namespace da_moe {
namespace {

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * WARP;
// Slots that a thread looks at in one step of the constants' gradients, and all of them together.
constexpr int SLOTS = 4;
constexpr int STEP = THREADS * SLOTS;

// ⟨a, b⟩ over a warp: by lane in the order of its columns, then by the warp's tree. A lane has the same columns whatever VEC
// is, so that the bits do not depend on how rows are aligned.
template <class S, int VEC>
__device__ __forceinline__ float inner(const S* a, const S* b, int width) {
    constexpr int SPAN = 16 / static_cast<int>(sizeof(S));
    float sum = 0.0f;
#pragma unroll 2
    for (int first = lane_index() * SPAN; first < width; first += WARP * SPAN) {
#pragma unroll
        for (int column = first; column < first + SPAN; column += VEC) {
            if (VEC == SPAN || column < width) {
                const auto of_a = Vector<S, VEC>::load(a + column);
                const auto of_b = Vector<S, VEC>::load(b + column);
#pragma unroll
                for (int v = 0; v < VEC; v++) {
                    sum += to_float(of_a.elements[v]) * to_float(of_b.elements[v]);
                }
            }
        }
    }
    return warp_sum(sum);
}

template <class S, int VEC>
__device__ __forceinline__ void backward(const CombineBackward& p) {
    const int token = static_cast<int>(blockIdx.x) * WARPS + warp_index();
    if (token >= p.tokens) {
        return;
    }
    const S* dy = static_cast<const S*>(p.dy) + token * p.dy_stride;
    for (int first = 0; first < p.slots; first += WARP) {
        const int slot = first + lane_index();
        const int null = slot < p.slots ? null_of(p.experts[token * p.experts_stride + slot], p.routed) : -1;
        const bool gives = null >= 0 && null < p.nulls && p.null_kind != NULL_ZERO;
        unsigned rest = __ballot_sync(FULL_WARP, gives);
        float d_weight = 0.0f;
        if (p.null_kind == NULL_COPY && rest != 0) {
            // The same for every copy of the token.
            const float product = inner<S, VEC>(dy, static_cast<const S*>(p.x) + token * p.x_stride, p.width);
            d_weight = gives ? product : 0.0f;
        } else {
            for (; rest != 0; rest &= rest - 1) {
                const int lane = __ffs(static_cast<int>(rest)) - 1;
                const int index = __shfl_sync(FULL_WARP, null, lane);
                const S* constant = static_cast<const S*>(p.constants) + index * p.constants_stride;
                const float product = inner<S, VEC>(dy, constant, p.width);
                d_weight = lane_index() == lane ? product : d_weight;
            }
        }
        if (slot < p.slots) {
            p.d_weights[static_cast<int64_t>(token) * p.slots + slot] = d_weight;
        }
    }
}

// Slots of one step that name the block's null expert, in their order.
struct Listed {
    int* tokens;
    float* weights;
    int* scratch;

    // Lists the slots from entry `first` up to `end`, SLOTS a thread, and returns how many there are. The barriers of the
    // running sum keep the list from being overwritten while a slower thread still reads the step before.
    __device__ __forceinline__ int fill(const CombineBackward& p, int first, int end, int expert) const {
        const int from = first + static_cast<int>(threadIdx.x) * SLOTS;
        unsigned named = 0;
#pragma unroll
        for (int i = 0; i < SLOTS; i++) {
            const int64_t token = (from + i) / p.slots;
            const int slot = (from + i) % p.slots;
            named |= from + i < end && p.experts[token * p.experts_stride + slot] == expert ? 1u << i : 0u;
        }
        int count;
        int place = block_exclusive_sum(__popc(named), scratch, count);
        for (; named != 0; named &= named - 1) {
            const int entry = from + __ffs(static_cast<int>(named)) - 1;
            const int64_t token = entry / p.slots;
            tokens[place] = static_cast<int>(token);
            weights[place] = p.weights[token * p.weights_stride + entry % p.slots];
            place++;
        }
        __syncthreads();
        return count;
    }
};

template <class S, int VEC>
__device__ __forceinline__ void constants(const CombineBackward& p) {
    SHARED_ARRAY(int, tokens, STEP);
    SHARED_ARRAY(float, weights, STEP);
    SHARED_ARRAY(int, scratch, MAX_WARPS);
    const Listed listed = {tokens, weights, scratch};
    const int index = static_cast<int>(blockIdx.z);
    const int column = (static_cast<int>(blockIdx.y) * THREADS + static_cast<int>(threadIdx.x)) * VEC;
    const bool mine = column < p.width;
    const int chunk = static_cast<int>(blockIdx.x);
    const int end = min((chunk + 1) * p.chunk, p.tokens) * p.slots;
    Vector<float, VEC> sum = {};
    for (int first = chunk * p.chunk * p.slots; first < end; first += STEP) {
        const int count = listed.fill(p, first, end, p.routed + index);
#pragma unroll 4
        for (int i = 0; i < (mine ? count : 0); i++) {
            const float weight = weights[i];
            const auto dy = Vector<S, VEC>::load(static_cast<const S*>(p.dy) + tokens[i] * p.dy_stride + column);
#pragma unroll
            for (int v = 0; v < VEC; v++) {
                sum.elements[v] += weight * to_float(dy.elements[v]);
            }
        }
    }
    const int chunks = static_cast<int>(gridDim.x);
    float* parts = p.parts + static_cast<int64_t>(index) * chunks * p.width + column;
    if (mine) {
        sum.store(parts + static_cast<int64_t>(chunk) * p.width);
    }
    if (arrive_last(&p.tickets[index * static_cast<int>(gridDim.y) + static_cast<int>(blockIdx.y)]) && mine) {
        Vector<float, VEC> total = {};
#pragma unroll 4
        for (int part = 0; part < chunks; part++) {
            const auto of_part = Vector<float, VEC>::load(parts + static_cast<int64_t>(part) * p.width);
#pragma unroll
            for (int v = 0; v < VEC; v++) {
                total.elements[v] += of_part.elements[v];
            }
        }
        const int64_t at = static_cast<int64_t>(index) * p.width + column;
        write_gradient<S>(p.d_constants, p.gradients_f32, at, total, p.beta);
    }
}

}  // namespace
}  // namespace da_moe

// Five blocks a multiprocessor: for more the compiler would spill.
#define COMBINE_BACKWARD(storage, suffix, vec)                                         \
    extern "C" __global__ void __launch_bounds__(da_moe::THREADS)                      \
        combine_backward_##suffix(const __grid_constant__ CombineBackward p) {         \
        da_moe::backward<storage, vec>(p);                                             \
    }                                                                                  \
    GPU_KERNEL(combine_backward_##suffix)                                              \
    extern "C" __global__ void __launch_bounds__(da_moe::THREADS, 5)                   \
        combine_constants_##suffix(const __grid_constant__ CombineBackward p) {        \
        da_moe::constants<storage, vec>(p);                                            \
    }                                                                                  \
    GPU_KERNEL(combine_constants_##suffix)

COMBINE_BACKWARD(float, f32, 1)
COMBINE_BACKWARD(float, f32_wide, 4)
COMBINE_BACKWARD(da_moe::bf16, bf16, 1)
COMBINE_BACKWARD(da_moe::bf16, bf16_wide, 8)
COMBINE_BACKWARD(da_moe::f16, f16, 1)
COMBINE_BACKWARD(da_moe::f16, f16_wide, 8)
