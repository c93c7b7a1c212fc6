// Two of the products of grouped_gemm_hopper.cu, which also tell where their clocks go (clocks.cuh): for the benchmark, and for nothing
// else. Reading the clock takes some.
//
//   grouped_gemm_bf16_gated_gathered_hopper_clocked, grouped_gemm_bf16_plain_packed_hopper_clocked
//
// Grid, block, barriers, bytes and floor: as there.
#include "experts/hopper/product.cuh"

HOPPER_GEMM(da_moe::bf16, bf16_gated_gathered_hopper_clocked, true, true, true)
HOPPER_GEMM(da_moe::bf16, bf16_plain_packed_hopper_clocked, false, false, true)
