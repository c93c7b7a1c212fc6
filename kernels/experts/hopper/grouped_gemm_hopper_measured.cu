// Two of the products of grouped_gemm_hopper.cu, run in other ways (kind.cuh): for the benchmark, and for nothing else.
//
//   grouped_gemm_bf16_{gated_gathered,plain_packed}_hopper_clocked   tells where its clocks go (clocks.cuh); reading the clock takes some
//   grouped_gemm_bf16_{gated_gathered,plain_packed}_hopper_alone     no clusters: every block fetches all of B
//   grouped_gemm_bf16_{gated_gathered,plain_packed}_hopper_skewed    the second warpgroup starts a step after the first
//
// Grid, block, barriers, bytes and floor: as there, but that blocks that are alone have a unit of 128 rows, move 48 KB from L2 for a step of
// 1024 clocks, and that skewed warpgroups meet at one more barrier, once.
#include "experts/hopper/gemm.cuh"

#define MEASURED(suffix, way)                                                                              \
    HOPPER_GEMM(bf16, bf16_gated_gathered_hopper_##suffix, true, true, false, way)                 \
    HOPPER_GEMM(bf16, bf16_plain_packed_hopper_##suffix, false, false, false, way)

MEASURED(clocked, Clocked)
MEASURED(alone, Alone)
MEASURED(skewed, Skewed)
