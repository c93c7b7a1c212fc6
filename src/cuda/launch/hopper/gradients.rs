//! Gradients of what lies between the experts' two products, and of their weights.

use crate::DType;
use crate::cuda::abi;
use crate::cuda::device::{Call, Target};
use crate::cuda::launch::experts::is_gated;
use crate::cuda::launch::hopper::maps::{self, Matrix, is_whole};
use crate::cuda::launch::hopper::{are_mapped, launch, most_units};

/// The product from `dy` to `dh`, if `h` is of the storage type too.
pub(in crate::cuda::launch) fn hidden_gradient(
    target: Target,
    storage: DType,
    p: &abi::HiddenGradient,
) -> Option<Call> {
    let product = &p.product;
    let (kernel, halves) = match is_gated(product) {
        false => ("grouped_gemm_bf16_dh_plain_hopper", 1),
        true => ("grouped_gemm_bf16_dh_gated_hopper", 2),
    };
    let is_aligned = [
        Matrix::new(product.a, product.a_stride, false),
        Matrix::new(product.b, product.b_stride, false).of_experts(product.experts, product.b_expert_stride, false),
        Matrix::new(product.out, product.out_stride, false),
        Matrix::new(product.hidden, product.hidden_stride, false),
        Matrix::new(p.activated, p.activated_stride, false),
    ]
    .iter()
    .all(Matrix::is_aligned);
    let sizes = [product.columns, product.rows];
    let maps = [
        Some(maps::weights_across(product)),
        Some(maps::rows(product.hidden, sizes, halves, product.hidden_stride, false)),
        Some(maps::rows(product.out, sizes, halves, product.out_stride, false)),
        Some(maps::rows(p.activated, sizes, 1, p.activated_stride, false)),
    ];
    let is_stored = storage == DType::Bf16 && product.hidden_f32 == 0 && product.out_f32 == 0;
    if !is_stored || !is_aligned || !is_whole(product.depth) || !is_whole(product.columns) || !are_mapped(&maps) {
        return None;
    }
    let launch = launch(target, kernel, most_units(1, product))?;
    Some(Call::with_maps(launch, abi::HopperHiddenGradient { gradient: *p, ..Default::default() }, maps))
}

/// The gradient of a weight, of which one factor at most is found by token.
pub(in crate::cuda::launch) fn weight_gradient(
    target: Target,
    [left, right]: [DType; 2],
    p: &abi::WeightGradient,
) -> Option<Call> {
    // What lies as the plan has it comes by the accelerator.
    let (kernel, packed, other) = match p.right.row_token.is_null() {
        true => ("grouped_gemm_bf16_tn_hopper", &p.right, &p.left),
        false => ("grouped_gemm_bf16_tn_turned_hopper", &p.left, &p.right),
    };
    let is_bf16 = [left, right] == [DType::Bf16; 2];
    let is_plain = packed.row_token.is_null() && p.left.mask.is_null() && p.right.mask.is_null();
    // Without offsets all rows are one expert's.
    let is_divided = p.offsets.is_null() && (p.experts > 1 || p.share < p.rows);
    let is_f32 = p.out_f32 != 0;
    let is_aligned = [
        Matrix::new(packed.rows, packed.stride, false),
        Matrix::new(other.rows, other.stride, false),
        Matrix::new(p.out, p.out_stride, is_f32).of_experts(p.experts, p.out_expert_stride, is_f32),
    ]
    .iter()
    .all(Matrix::is_aligned);
    let maps = [Some(maps::factor(packed)), Some(maps::gradient(p)), None, None];
    let is_whole = is_whole(p.left.columns) && is_whole(p.right.columns);
    if !is_bf16 || !is_plain || is_divided || !is_aligned || !is_whole || packed.sources == 0 || !are_mapped(&maps) {
        return None;
    }
    let sides = [other.columns as usize, packed.columns as usize];
    let unit = [abi::HOPPER_TILE_ROWS as usize, abi::HOPPER_TILE_COLUMNS as usize];
    let of_expert: usize = sides.into_iter().zip(unit).map(|(side, of_unit)| side.div_ceil(of_unit)).product();
    let launch = launch(target, kernel, of_expert * p.experts as usize)?;
    Some(Call::with_maps(launch, abi::HopperWeightGradient { gradient: *p, ..Default::default() }, maps))
}
