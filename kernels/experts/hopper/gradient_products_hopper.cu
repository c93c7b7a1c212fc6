// SPEC §6 on Hopper (sm_90a): the products of the way back with bf16 operands, f32 sums, by wgmma and TMA. Weights are read across
// their rows, and factors of their gradients across rows of the plan: no transposed copy is made.
//
//   grouped_gemm_bf16_dh_{plain,gated}_hopper   da = W_outᵀ dy_t, and from it dh, g·a and parts of dg (hidden_gradient.cuh)
//   grouped_gemm_bf16_nn_hopper                 dx = W_inᵀ dh of every row
//   grouped_gemm_bf16_tn_hopper                 Σ left ⊗ right over an expert's rows, left found by token: dW_out
//   grouped_gemm_bf16_tn_turned_hopper          the same, right found by token: dW_in
//   .._clocked                                  each of them, telling where its clocks go: for the benchmark alone
//
// Grid, block, roles and barriers as in grouped_gemm_hopper.cu. dh has three stages and ten planes, for h comes through them too, which
// two mbarriers a warpgroup tell of. A unit of a weight's gradient is 256 by 256 of one expert's, as deep as the expert has rows; its
// last step is filled up with zeros in both factors (weight_factors.cuh). Not yet run on a GPU.
//
// A step has the products, copies and bytes of the way forward. Operations: 2·depth·columns a row; bytes: as in
// portable/grouped_gemm_back.cu and portable/weight_gradient.cu.
#include "experts/hopper/gemm.cuh"
#include "experts/hopper/hidden_gradient.cuh"
#include "experts/hopper/weight_gradient.cuh"

#define BACK(suffix, way)                                                                                                  \
    HOPPER_KERNEL(bf16_dh_plain_hopper##suffix, HopperHiddenGradient, 2,                                                   \
                  hidden_gradient<da_moe::hopper::HiddenKind<1, da_moe::hopper::way>>)                                     \
    HOPPER_KERNEL(bf16_dh_gated_hopper##suffix, HopperHiddenGradient, 2,                                                   \
                  hidden_gradient<da_moe::hopper::HiddenKind<2, da_moe::hopper::way>>)                                     \
    HOPPER_GEMM(bf16, bf16_nn_hopper##suffix, false, false, true, way)                                                     \
    HOPPER_KERNEL(bf16_tn_hopper##suffix, HopperWeightGradient, 2,                                                         \
                  weight_gradient<da_moe::hopper::WeightKind<false, da_moe::hopper::way>>)                                 \
    HOPPER_KERNEL(bf16_tn_turned_hopper##suffix, HopperWeightGradient, 2,                                                  \
                  weight_gradient<da_moe::hopper::WeightKind<true, da_moe::hopper::way>>)

BACK(, Usual)
BACK(_clocked, Clocked)
