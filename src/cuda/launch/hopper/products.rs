//! Rows by their experts' weights.

use crate::DType;
use crate::cuda::abi;
use crate::cuda::device::{Call, Target, TensorBoxes};
use crate::cuda::launch::experts::{Operands, is_gated};
use crate::cuda::launch::hopper::maps::{self, Matrix, is_whole};
use crate::cuda::launch::hopper::{are_mapped, launch, most_units};

/// Columns below which a product with f32 output is left to the portable kernels: the router of few experts, for which most
/// of a unit would be nothing.
const FEWEST_F32_COLUMNS: i32 = 128;

/// The product with rows of weights that run along the depth.
pub(in crate::cuda::launch) fn along(target: Target, operands: Operands, p: &abi::GroupedGemm) -> Option<Call> {
    let kernel = match (operands.rows, operands.weights, is_gated(p), p.row_token.is_null()) {
        (DType::Bf16, DType::Bf16, false, false) => "grouped_gemm_bf16_plain_gathered_hopper",
        (DType::Bf16, DType::Bf16, true, false) => "grouped_gemm_bf16_gated_gathered_hopper",
        (DType::Bf16, DType::Bf16, false, true) => "grouped_gemm_bf16_plain_packed_hopper",
        (DType::Bf16, DType::Bf16, true, true) => "grouped_gemm_bf16_gated_packed_hopper",
        (DType::F16, DType::F16, false, false) => "grouped_gemm_f16_plain_gathered_hopper",
        (DType::F16, DType::F16, true, false) => "grouped_gemm_f16_gated_gathered_hopper",
        (DType::F16, DType::F16, false, true) => "grouped_gemm_f16_plain_packed_hopper",
        (DType::F16, DType::F16, true, true) => "grouped_gemm_f16_gated_packed_hopper",
        _ => return None,
    };
    let halves = if is_gated(p) { 2 } else { 1 };
    product(target, kernel, halves, maps::weights(halves as u64, p), p)
}

/// The product with rows of weights that run across the depth: `b` is `[E, depth, columns]`.
pub(in crate::cuda::launch) fn across(target: Target, operands: Operands, p: &abi::GroupedGemm) -> Option<Call> {
    let is_bf16 = [operands.rows, operands.weights] == [DType::Bf16; 2];
    if !is_bf16 || !p.row_token.is_null() || p.activation != abi::ACTIVATION_NONE {
        return None;
    }
    product(target, "grouped_gemm_bf16_nn_hopper", 1, maps::weights_across(p), p)
}

fn product(
    target: Target,
    kernel: &'static str,
    halves: usize,
    weights: TensorBoxes,
    p: &abi::GroupedGemm,
) -> Option<Call> {
    let (is_f32, hidden_f32) = (p.out_f32 != 0, p.hidden_f32 != 0);
    // In f32 rows leave without an activation, and where most of a unit is used.
    let fits = !is_f32 || halves == 1 && p.activation == abi::ACTIVATION_NONE && p.columns >= FEWEST_F32_COLUMNS;
    let [a, b, out, hidden] = [
        Matrix::new(p.a, p.a_stride, false),
        Matrix::new(p.b, p.b_stride, false).of_experts(p.experts, p.b_expert_stride, false),
        Matrix::new(p.out, p.out_stride, is_f32),
        Matrix::new(p.hidden, p.hidden_stride, hidden_f32),
    ];
    let keeps = !p.hidden.is_null();
    let is_aligned = [a, b, out].iter().all(Matrix::is_aligned) && (!keeps || hidden.is_aligned());
    let maps = [
        Some(weights),
        p.row_token.is_null().then(|| maps::packed(p)),
        Some(maps::rows(p.out, [p.columns, p.rows], 1, p.out_stride, is_f32)),
        keeps.then(|| maps::rows(p.hidden, [p.columns, p.rows], halves as u64, p.hidden_stride, hidden_f32)),
    ];
    if !fits || !is_aligned || !is_whole(p.depth) || !is_whole(p.columns) || !are_mapped(&maps) {
        return None;
    }
    let launch = launch(target, kernel, most_units(halves, p))?;
    Some(Call::with_maps(launch, abi::HopperGemm { product: *p, ..Default::default() }, maps))
}
