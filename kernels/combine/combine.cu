// SPEC §5: y_t = Σ_slots g·o_row (+ null experts) (+ shared), added in slot order in f32, rounded and written once.
//
//   combine_{f32,bf16,f16}[_f32rows][_wide]   storage of x, constants and y; rows in the same type, or in f32
//
// Grid (T / 8, D / (64·VEC)), block 8 warps: a warp has one token and 2·32·VEC of its columns; no barriers. The token's
// slots are read by the lanes at once, 32 of them, and handed round. Bytes: (R·r + T·s)·D + 12·T·K, of rows in r bytes (+ T·D·r
// for shared, T·D·s for each null expert used); floor: that over the memory bandwidth, 0.4 ms at 3 TB/s for T 32768, K 8, D 2048
// in bf16 with every slot used. `_wide` kernels move 128 bits at once and need D, every stride and every address to be multiples
// of that.

#include "combine/slots.cuh"
#include "device/columns.cuh"

namespace da_moe {
namespace {

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * WARP;

// Adds what a null expert returns; its index among the null experts was checked.
template <class S, int VEC>
__device__ __forceinline__ void add_null(const Combine& p, int token, int index, float weight, Columns<VEC>& sum) {
    if (p.null_kind == NULL_COPY) {
        sum.add(weight, static_cast<const S*>(p.x) + token * p.x_stride, p.width);
    } else if (p.null_kind == NULL_CONSTANT && p.constants != nullptr) {
        sum.add(weight, static_cast<const S*>(p.constants) + index * p.constants_stride, p.width);
    }
}

template <class S, class Row, int VEC>
__device__ __forceinline__ void combine(const Combine& p) {
    const int token = static_cast<int>(blockIdx.x) * WARPS + warp_index();
    if (token >= p.tokens) {
        return;
    }
    auto sum = Columns<VEC>::of_part(static_cast<int>(blockIdx.y));
    each_slot(p, token, [&](int row, int null, float weight) {
        if (row >= 0) {
            sum.add(weight, static_cast<const Row*>(p.rows) + row * p.rows_stride, p.width);
        } else if (null < p.nulls) {
            add_null<S>(p, token, null, weight, sum);
        }
    });
    const int shared_row = row_of_shared(p, token);
    if (p.shared != nullptr && shared_row >= 0) {
        sum.add(1.0f, static_cast<const Row*>(p.shared) + shared_row * p.shared_stride, p.width);
    }
    sum.store(static_cast<S*>(p.y) + static_cast<int64_t>(token) * p.width, p.width);
}

}  // namespace
}  // namespace da_moe

#define COMBINE(storage, row, suffix, vec)                                             \
    extern "C" __global__ void __launch_bounds__(da_moe::THREADS)                      \
        combine_##suffix(const __grid_constant__ Combine p) {                          \
        da_moe::combine<storage, row, vec>(p);                                         \
    }                                                                                  \
    GPU_KERNEL(combine_##suffix)

COMBINE(float, float, f32, 1)
COMBINE(float, float, f32_wide, 4)
COMBINE(da_moe::bf16, da_moe::bf16, bf16, 1)
COMBINE(da_moe::bf16, da_moe::bf16, bf16_wide, 8)
COMBINE(da_moe::bf16, float, bf16_f32rows, 1)
COMBINE(da_moe::bf16, float, bf16_f32rows_wide, 8)
COMBINE(da_moe::f16, da_moe::f16, f16, 1)
COMBINE(da_moe::f16, da_moe::f16, f16_wide, 8)
COMBINE(da_moe::f16, float, f16_f32rows, 1)
COMBINE(da_moe::f16, float, f16_f32rows_wide, 8)
