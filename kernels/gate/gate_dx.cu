// SPEC §6: dx = dx_rows (+ dz W_r), rounded once to storage.
//
//   gate_dx_{f32,bf16,f16}[_wide]   storage of dx
//
// Grid (T / 8, D / (64·VEC)), block 8 warps: a warp has one token and 2·32·VEC of its columns; no barriers. Bytes:
// T·D·(4 + s), and 4·T·D for the router's part; floor: that over the memory bandwidth, 0.22 ms for T 32768, D 2048 in bf16.
// `_wide` kernels move 128 bits at once and need D, every stride and every address to be multiples of that.

#include "abi.h"
#include "device/columns.cuh"

namespace da_moe {
namespace {

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * WARP;

template <class S, int VEC>
__device__ __forceinline__ void add_and_round(const GateDx& p) {
    const int token = static_cast<int>(blockIdx.x) * WARPS + warp_index();
    if (token >= p.tokens) {
        return;
    }
    auto sum = Columns<VEC>::of_part(static_cast<int>(blockIdx.y));
    sum.add(1.0f, p.dx_rows + token * p.dx_rows_stride, p.width);
    if (p.of_router != nullptr) {
        sum.add(1.0f, p.of_router + token * p.of_router_stride, p.width);
    }
    sum.store(static_cast<S*>(p.dx) + static_cast<int64_t>(token) * p.width, p.width);
}

}  // namespace
}  // namespace da_moe

#define GATE_DX(storage, suffix, vec)                                                                                \
    extern "C" __global__ void __launch_bounds__(da_moe::THREADS) gate_dx_##suffix(const __grid_constant__ GateDx p) { \
        da_moe::add_and_round<storage, vec>(p);                                                                      \
    }                                                                                                                \
    GPU_KERNEL(gate_dx_##suffix)

GATE_DX(float, f32, 1)
GATE_DX(float, f32_wide, 4)
GATE_DX(da_moe::bf16, bf16, 1)
GATE_DX(da_moe::bf16, bf16_wide, 8)
GATE_DX(da_moe::f16, f16, 1)
GATE_DX(da_moe::f16, f16_wide, 8)
