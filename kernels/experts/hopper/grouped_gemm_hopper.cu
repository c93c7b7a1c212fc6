// SPEC §5 on Hopper (sm_90a): the products of grouped_gemm.cu with 16-bit operands, f32 sums, by wgmma and TMA.
//
//   grouped_gemm_{bf16,f16}_{plain,gated}_gathered_hopper   rows of A by token: experts' first product
//   grouped_gemm_{bf16,f16}_{plain,gated}_packed_hopper     rows of A as they lie: the second, and a shared expert's first
//
// Persistent: clusters of two blocks, as many as fit the device; each takes unit after unit (units.cuh), found from the plan's
// offsets on the device. A unit is up to 256 rows by 256 columns, or by 128 of the gate and of the up projection each.
//
// Block 384: a warpgroup that brings (produce.cuh), two that multiply 64 rows each and write them (multiply.cuh, output.cuh),
// registers moved from the first to those. What they wait for: ring.cuh, a ring of four stages; a barrier of each multiplying
// warpgroup before and after it fills a plane (staging.cuh); barriers of the cluster when mbarriers are there and before the
// blocks end.
//
// A step is 64 of the depth: 4 wgmma m64n256k16 a warpgroup, 1024 cycles of the tensor cores for both, for which 1024 cycles of shared
// memory (48 KB in, 80 KB out), 32 KB from L2 and about 900 of 4096 issue slots are counted. Not yet run on a GPU.
//
// Operations and bytes: as in portable/grouped_gemm.cu, whose floors for marin these would be here, in ms (`da-moe plan`), with tensor
// cores at the whole of 800 TFLOP/s:
//
//                 memory      L2   banks   issue   units
//   W_in, bf16      0.12    0.60    0.52    0.14    0.52
//   W_out, bf16     0.09    0.31    0.26    0.07    0.26
#include "experts/hopper/gemm.cuh"

HOPPER_GEMM(bf16, bf16_plain_gathered_hopper, false, true, false, Usual)
HOPPER_GEMM(bf16, bf16_gated_gathered_hopper, true, true, false, Usual)
HOPPER_GEMM(bf16, bf16_plain_packed_hopper, false, false, false, Usual)
HOPPER_GEMM(bf16, bf16_gated_packed_hopper, true, false, false, Usual)
HOPPER_GEMM(f16, f16_plain_gathered_hopper, false, true, false, Usual)
HOPPER_GEMM(f16, f16_gated_gathered_hopper, true, true, false, Usual)
HOPPER_GEMM(f16, f16_plain_packed_hopper, false, false, false, Usual)
HOPPER_GEMM(f16, f16_gated_packed_hopper, true, false, false, Usual)
