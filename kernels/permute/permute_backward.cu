// SPEC §6: dx_t = Σ_slots dx_row (+ g·dy_t for copies) (+ shared), added in slot order in f32; and the gradient of each
// row's weight put back to its slot. Null slots' gradients are there already, those of dropped slots stay 0.
//
//   permute_backward_{f32,bf16,f16}[_wide]   storage of dy; rows, shared and dx are f32
//
// Grid (T / 8, D / (64·VEC)), block 8 warps: a warp has one token and 2·32·VEC of its columns; no barriers. The first
// share of a token's columns also writes its weights. Bytes: 4·(R + T)·D + 16·T·K (+ 4·T·D for shared, T·D·s for each
// copy used); floor: that over the memory bandwidth, 0.8 ms for T 32768, K 8, D 2048 with every slot used. `_wide` kernels
// move 128 bits at once and need D, every stride and every address to be multiples of that.

#include "combine/slots.cuh"
#include "device/columns.cuh"

namespace da_moe {
namespace {

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * WARP;

__device__ __forceinline__ void write_weights(const PermuteBackward& p, int token) {
    for (int slot = lane_index(); slot < p.slots; slot += WARP) {
        const int row = p.token_row[token * p.token_row_stride + slot];
        if (row >= 0 && row < p.row_count) {
            p.d_weights[static_cast<int64_t>(token) * p.slots + slot] = p.d_row_weight[row];
        }
    }
}

template <class S, int VEC>
__device__ __forceinline__ void backward(const PermuteBackward& p) {
    const int token = static_cast<int>(blockIdx.x) * WARPS + warp_index();
    if (token >= p.tokens) {
        return;
    }
    if (blockIdx.y == 0) {
        write_weights(p, token);
    }
    auto sum = Columns<VEC>::of_part(static_cast<int>(blockIdx.y));
    each_slot(p, token, [&](int row, int, float weight) {
        if (row >= 0) {
            sum.add(1.0f, p.dx_rows + row * p.dx_rows_stride, p.width);
        } else if (p.null_kind == NULL_COPY) {
            sum.add(weight, static_cast<const S*>(p.dy) + token * p.dy_stride, p.width);
        }
    });
    const int shared_row = row_of_shared(p, token);
    if (p.shared_dx != nullptr && shared_row >= 0) {
        sum.add(1.0f, p.shared_dx + shared_row * p.shared_stride, p.width);
    }
    sum.store(p.dx + static_cast<int64_t>(token) * p.width, p.width);
}

}  // namespace
}  // namespace da_moe

#define PERMUTE_BACKWARD(storage, suffix, vec)                                         \
    extern "C" __global__ void __launch_bounds__(da_moe::THREADS)                      \
        permute_backward_##suffix(const __grid_constant__ PermuteBackward p) {         \
        da_moe::backward<storage, vec>(p);                                             \
    }                                                                                  \
    GPU_KERNEL(permute_backward_##suffix)

PERMUTE_BACKWARD(float, f32, 1)
PERMUTE_BACKWARD(float, f32_wide, 4)
PERMUTE_BACKWARD(da_moe::bf16, bf16, 1)
PERMUTE_BACKWARD(da_moe::bf16, bf16_wide, 8)
PERMUTE_BACKWARD(da_moe::f16, f16, 1)
PERMUTE_BACKWARD(da_moe::f16, f16_wide, 8)
