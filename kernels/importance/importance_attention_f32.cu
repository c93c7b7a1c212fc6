// SPEC §1: importance from queries and keys without tensor cores.
//
//   importance_query_key_f32              every measure but given-self, f32 throughout
//   importance_own_key_{f32,bf16,f16}     given-self: P[i, i], one product of a query with its own key
//
// `importance_query_key_f32` walks as its 16-bit relatives do (importance_attention.cu): grid (T / 128 + B, H), block 128
// threads with 8 × 8 scores each, chunks of 16 elements, 36 KiB of shared memory. Operations: 2·width·H·Σ n² (half of it
// when causal) on the ordinary units; 8.2 ms for n = 8192, H = 32, width 128 at 67 T/s. Bytes: T·(H + Hk)·width·4 + 8·H·T.

#include "importance/attention/simt.cuh"
#include "importance/attention/walk.cuh"

namespace da_moe {
namespace {

constexpr int OWN_KEY_WARPS = 8;

// The lanes' share of q·k: 128 bits at once while whole ones are left, then single elements.
template <class S>
__device__ __forceinline__ float product(const S* q, const S* k, int width, bool wide) {
    constexpr int VEC = PIECE_BYTES / static_cast<int>(sizeof(S));
    const int in_vectors = wide ? width / VEC * VEC : 0;
    float sum = 0.0f;
    for (int column = lane_index() * VEC; column < in_vectors; column += WARP * VEC) {
        const auto of_q = Vector<S, VEC>::load(q + column);
        const auto of_k = Vector<S, VEC>::load(k + column);
#pragma unroll
        for (int v = 0; v < VEC; v++) {
            sum += to_float(of_q.elements[v]) * to_float(of_k.elements[v]);
        }
    }
    for (int column = in_vectors + lane_index(); column < width; column += WARP) {
        sum += to_float(q[column]) * to_float(k[column]);
    }
    return sum;
}

// Grid (T / 8, H), block 8 warps: a warp has one token; no barriers. Bytes: 2·T·H·width·s + 8·H·T; floor: that over the
// memory bandwidth, 0.2 ms at 3 TB/s for T 32768, H 32, width 128 in bf16.
template <class S>
__device__ __forceinline__ void own_key(const ImportanceQueryKey& p) {
    const int token = static_cast<int>(blockIdx.x) * OWN_KEY_WARPS + warp_index();
    if (token >= p.tokens) {
        return;
    }
    const int head = static_cast<int>(blockIdx.y);
    float value = 0.0f;
    if (takes_part(p, token)) {
        const S* q = static_cast<const S*>(p.q) + token * p.q_token_stride + head * p.q_head_stride;
        const S* k = static_cast<const S*>(p.k) + token * p.k_token_stride + head / p.heads_per_key * p.k_head_stride;
        const float score = warp_sum(product(q, k, p.width, p.wide != 0));
        value = ptx::ex2(score * p.scale - lse_of(p, token));
    }
    if (lane_index() == 0) {
        p.values[static_cast<int64_t>(head) * p.tokens + token] = value;
    }
}

}  // namespace
}  // namespace da_moe

extern "C" __global__ void __launch_bounds__(da_moe::THREADS, 2)
    importance_query_key_f32(const __grid_constant__ ImportanceQueryKey p) {
    da_moe::measure<da_moe::Simt>(p);
}
GPU_KERNEL(importance_query_key_f32)

#define OWN_KEY(storage, suffix)                                                       \
    extern "C" __global__ void __launch_bounds__(da_moe::OWN_KEY_WARPS * da_moe::WARP) \
        importance_own_key_##suffix(const __grid_constant__ ImportanceQueryKey p) {    \
        da_moe::own_key<storage>(p);                                                   \
    }                                                                                  \
    GPU_KERNEL(importance_own_key_##suffix)

OWN_KEY(float, f32)
OWN_KEY(da_moe::bf16, bf16)
OWN_KEY(da_moe::f16, f16)
