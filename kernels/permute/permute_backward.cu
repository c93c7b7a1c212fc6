// SPEC §6: dx_t = Σ_slots dx_row (+ g·dy_t for copies) (+ shared), added in slot order in f32; and the gradient of each
// row's weight put back to its slot. Null slots' gradients are there already, those of dropped slots stay 0.
//
//   permute_backward_{f32,bf16,f16}[_f32rows][_wide]   storage of dy; rows and shared in the same type, or in f32; dx is f32
//
// Grid (T / 8, D / (64·VEC)), block 8 warps: a warp has one token and 2·32·VEC of its columns; no barriers. The first
// share of a token's columns also writes its weights. Bytes: (R·r + 4·T)·D + 16·T·K, of rows in r bytes (+ T·D·r for shared,
// T·D·s for each copy used); floor: that over the memory bandwidth, 0.45 ms for T 32768, K 8, D 2048 with every slot used
// and rows in bf16. `_wide` kernels move 128 bits at once and need D, every stride and every address to be multiples of that.

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

template <class S, class Row, int VEC>
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
            sum.add(1.0f, static_cast<const Row*>(p.dx_rows) + row * p.dx_rows_stride, p.width);
        } else if (p.null_kind == NULL_COPY) {
            sum.add(weight, static_cast<const S*>(p.dy) + token * p.dy_stride, p.width);
        }
    });
    const int shared_row = row_of_shared(p, token);
    if (p.shared_dx != nullptr && shared_row >= 0) {
        sum.add(1.0f, static_cast<const Row*>(p.shared_dx) + shared_row * p.shared_stride, p.width);
    }
    sum.store(p.dx + static_cast<int64_t>(token) * p.width, p.width);
}

}  // namespace
}  // namespace da_moe

#define PERMUTE_BACKWARD(storage, row, suffix, vec)                                    \
    extern "C" __global__ void __launch_bounds__(da_moe::THREADS)                      \
        permute_backward_##suffix(const __grid_constant__ PermuteBackward p) {         \
        da_moe::backward<storage, row, vec>(p);                                        \
    }                                                                                  \
    GPU_KERNEL(permute_backward_##suffix)

PERMUTE_BACKWARD(float, float, f32, 1)
PERMUTE_BACKWARD(float, float, f32_wide, 4)
PERMUTE_BACKWARD(da_moe::bf16, da_moe::bf16, bf16, 1)
PERMUTE_BACKWARD(da_moe::bf16, da_moe::bf16, bf16_wide, 8)
PERMUTE_BACKWARD(da_moe::bf16, float, bf16_f32rows, 1)
PERMUTE_BACKWARD(da_moe::bf16, float, bf16_f32rows_wide, 8)
PERMUTE_BACKWARD(da_moe::f16, da_moe::f16, f16, 1)
PERMUTE_BACKWARD(da_moe::f16, da_moe::f16, f16_wide, 8)
PERMUTE_BACKWARD(da_moe::f16, float, f16_f32rows, 1)
PERMUTE_BACKWARD(da_moe::f16, float, f16_f32rows_wide, 8)
