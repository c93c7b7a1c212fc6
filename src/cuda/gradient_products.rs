//! Which kernels multiply and add up on the way back, and with how many threads (`kernels/grouped_gemm_back_sm80.cu`,
//! `weight_gradient_sm80.cu`, `experts_backward.cu`). The router's way back takes its two products from here.

use super::abi;
use super::device::{Call, Launch};
use super::experts::{self, Factors, Operands, THREADS, Unit, is_aligned};
use crate::DType;

/// Threads of a warp, and of a block of the kernels that multiply nothing.
const WARP: usize = 32;
const WARPS: usize = 8;
/// Columns of a bias that a block adds up.
const BIAS_COLUMNS: usize = 8 * WARP;

/// The one launch of `out = A B`, whose weights are read across their rows: `b` is `[E, depth, columns]`.
pub fn across(
    operands: impl Into<Operands>,
    multiprocessors: usize,
    p: abi::GroupedGemm,
) -> impl Iterator<Item = Call> {
    let operands = operands.into();
    let unit = Unit::of(operands, Factors::F32);
    let kernel = match (operands.weights, operands.rows, is_aligned(operands.weights, &p)) {
        (DType::Bf16, DType::F32, _) => "grouped_gemm_f32_nn_bf16_weights",
        (DType::F16, DType::F32, _) => "grouped_gemm_f32_nn_f16_weights",
        (DType::Bf16, _, true) => "grouped_gemm_bf16_nn",
        (DType::Bf16, _, false) => "grouped_gemm_bf16_nn_any",
        (DType::F16, _, true) => "grouped_gemm_f16_nn",
        (DType::F16, _, false) => "grouped_gemm_f16_nn_any",
        _ => "grouped_gemm_f32_nn",
    };
    experts::persistent(kernel, unit, false, multiprocessors, &p).map(|launch| Call::new(launch, p)).into_iter()
}

/// The one launch from `dy` to `dh`.
pub fn hidden_gradient(storage: DType, multiprocessors: usize, p: abi::HiddenGradient) -> impl Iterator<Item = Call> {
    let kernel = match (storage, is_aligned(storage, &p.product)) {
        (DType::Bf16, true) => "grouped_gemm_bf16_dh",
        (DType::Bf16, false) => "grouped_gemm_bf16_dh_any",
        (DType::F16, true) => "grouped_gemm_f16_dh",
        (DType::F16, false) => "grouped_gemm_f16_dh_any",
        _ => "grouped_gemm_f32_dh",
    };
    let unit = Unit::of(storage.into(), Factors::F32);
    experts::persistent(kernel, unit, false, multiprocessors, &p.product).map(|launch| Call::new(launch, p)).into_iter()
}

/// Tiles in a row of the product that [`hidden_gradient`] launches: parts of every row's `dg`.
pub fn part_count(storage: DType, width: usize) -> usize {
    width.div_ceil(Unit::of(storage.into(), Factors::F32).tile())
}

/// The type of `dh` and `g·a` between the launches: f16 has too few exponents for gradients on their way.
pub fn between(storage: DType) -> DType {
    if storage == DType::F16 { DType::F32 } else { storage }
}

/// The one launch of a weight's gradient. `left` and `right` are the types of both factors' rows: the same, or f32 and a
/// 16-bit type (of which bf16 is on the right). A gradient that is not f32 has the 16-bit type.
pub fn weight_gradient(left: DType, right: DType, p: abi::WeightGradient) -> impl Iterator<Item = Call> {
    let whole = |from: &abi::RoutedOperand| {
        (from.rows as usize).is_multiple_of(16)
            && (from.stride.unsigned_abs() as usize * right.size()).is_multiple_of(16)
    };
    let kernel = match (right, left, whole(&p.left) && whole(&p.right)) {
        (DType::F32, DType::F16, _) => "grouped_gemm_f32_tn_f16_left",
        (DType::Bf16, DType::F32, _) => "grouped_gemm_f32_tn_bf16_rows",
        (DType::F16, DType::F32, _) => "grouped_gemm_f32_tn_f16_rows",
        (DType::Bf16, _, true) => "grouped_gemm_bf16_tn",
        (DType::Bf16, _, false) => "grouped_gemm_bf16_tn_any",
        (DType::F16, _, true) => "grouped_gemm_f16_tn",
        (DType::F16, _, false) => "grouped_gemm_f16_tn_any",
        _ => "grouped_gemm_f32_tn",
    };
    let unit = Unit::of(Operands { rows: left, weights: right }, Factors::F32);
    let tiles = |columns: i32| (columns as usize).div_ceil(unit.tile());
    let blocks = tiles(p.left.columns) * tiles(p.right.columns) * p.experts as usize;
    let launch = Launch { kernel, grid: [blocks as u32, 1, 1], threads: THREADS, shared: unit.shared() };
    (blocks > 0).then(|| Call::new(launch, p)).into_iter()
}

/// The one launch of a bias's gradient; a gradient that is not f32 has the type `storage`, which is that of the rows unless
/// those are f32 beside f16.
pub fn bias_gradient(rows: DType, storage: DType, p: abi::BiasGradient) -> impl Iterator<Item = Call> {
    let kernel = match rows {
        DType::F32 if storage == DType::F16 => "bias_gradient_f32_to_f16",
        DType::Bf16 => "bias_gradient_bf16",
        DType::F16 => "bias_gradient_f16",
        _ => "bias_gradient_f32",
    };
    let grid = [(p.from.columns as usize).div_ceil(BIAS_COLUMNS) as u32, p.experts as u32, 1];
    let launch = Launch { kernel, grid, threads: (WARPS * WARP) as u32, shared: 0 };
    (grid[0] > 0 && grid[1] > 0).then(|| Call::new(launch, p)).into_iter()
}

/// The one launch that adds up every row's `dg`.
pub fn row_weight_gradient(storage: DType, p: abi::RowWeightGradient) -> impl Iterator<Item = Call> {
    let kernel = match storage {
        DType::Bf16 => "row_weight_gradient_bf16",
        DType::F16 => "row_weight_gradient_f16",
        _ => "row_weight_gradient_f32",
    };
    let blocks = (p.rows as usize).div_ceil(WARPS) as u32;
    (blocks > 0).then(|| Call::new(Launch::linear(kernel, blocks, (WARPS * WARP) as u32), p)).into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ptr::without_provenance;

    fn operand(columns: i32, address: usize) -> abi::RoutedOperand {
        let rows = without_provenance(address);
        abi::RoutedOperand { rows, stride: i64::from(columns), columns, sources: 9, ..Default::default() }
    }

    fn gradient(left: i32, right: i32, experts: i32) -> abi::WeightGradient {
        abi::WeightGradient { left: operand(left, 256), right: operand(right, 256), experts, ..Default::default() }
    }

    fn only(calls: impl IntoIterator<Item = Call>) -> Launch {
        calls.into_iter().next().unwrap().launch
    }

    #[test]
    fn every_tile_of_every_gradient_has_a_block() {
        let launch = only(weight_gradient(DType::Bf16, DType::Bf16, gradient(256, 136, 8)));
        assert_eq!((launch.kernel, launch.grid, launch.shared), ("grouped_gemm_bf16_tn", [32, 1, 1], 65536));
        let launch = only(weight_gradient(DType::F32, DType::F32, gradient(65, 64, 3)));
        assert_eq!((launch.kernel, launch.grid, launch.shared), ("grouped_gemm_f32_tn", [6, 1, 1], 0));
        assert_eq!(weight_gradient(DType::F32, DType::F32, gradient(0, 64, 3)).count(), 0);
        let from = operand(257, 256);
        let bias = abi::BiasGradient { from, experts: 5, ..Default::default() };
        assert_eq!(only(bias_gradient(DType::F16, DType::F16, bias)).grid, [2, 5, 1]);
    }

    #[test]
    fn one_factor_in_f32_makes_an_f32_product() {
        let tn = |left, storage| only(weight_gradient(left, storage, gradient(64, 64, 1))).kernel;
        assert_eq!(tn(DType::F32, DType::Bf16), "grouped_gemm_f32_tn_bf16_rows");
        assert_eq!(tn(DType::F32, DType::F16), "grouped_gemm_f32_tn_f16_rows");
        let p = abi::GroupedGemm { rows: 9, columns: 64, depth: 64, experts: 1, ..Default::default() };
        let nn = |rows, weights| only(across(Operands { rows, weights }, 132, p)).kernel;
        assert_eq!(nn(DType::F32, DType::Bf16), "grouped_gemm_f32_nn_bf16_weights");
        assert_eq!(nn(DType::F32, DType::F32), "grouped_gemm_f32_nn");
        assert_eq!(nn(DType::F16, DType::F16), "grouped_gemm_f16_nn");
    }

    #[test]
    fn rows_that_start_anywhere_have_kernels_of_their_own() {
        let misaligned = abi::WeightGradient { right: operand(64, 264), ..gradient(64, 64, 1) };
        assert_eq!(only(weight_gradient(DType::Bf16, DType::Bf16, misaligned)).kernel, "grouped_gemm_bf16_tn_any");
        assert_eq!(
            only(weight_gradient(DType::F16, DType::F16, gradient(64, 63, 1))).kernel,
            "grouped_gemm_f16_tn_any"
        );
        let product = abi::GroupedGemm { rows: 9, columns: 64, b_stride: 63, experts: 1, ..Default::default() };
        assert_eq!(only(across(DType::Bf16, 132, product)).kernel, "grouped_gemm_bf16_nn_any");
        let p = abi::HiddenGradient { product, ..Default::default() };
        assert_eq!(only(hidden_gradient(DType::F16, 132, p)).kernel, "grouped_gemm_f16_dh_any");
    }

    #[test]
    fn gated_kinds_have_whole_tiles_of_activated_values() {
        let product = abi::GroupedGemm {
            rows: 256,
            columns: 256,
            experts: 1,
            activation: abi::ACTIVATION_SWIGLU,
            ..Default::default()
        };
        // Two tiles high and one ragged, two wide.
        assert_eq!(
            only(hidden_gradient(DType::Bf16, 132, abi::HiddenGradient { product, ..Default::default() })).grid[0],
            6
        );
        assert_eq!([part_count(DType::Bf16, 129), part_count(DType::F32, 129)], [2, 3]);
        let p = abi::RowWeightGradient { rows: 9, ..Default::default() };
        assert_eq!(only(row_weight_gradient(DType::F32, p)).grid, [2, 1, 1]);
    }
}
