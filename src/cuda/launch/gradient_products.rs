//! Which kernels multiply and add up on the way back, and with how many threads (`kernels/experts/portable/grouped_gemm_back.cu`,
//! `experts/portable/weight_gradient.cu`, `experts_backward.cu`). The router's way back takes its two products from here.

use crate::DType;
use crate::cuda::abi;
use crate::cuda::device::{Call, Launch, Target};
use crate::cuda::launch::experts::{self, Factors, Operands, THREADS, Unit, is_aligned};
use crate::cuda::launch::hopper;

/// Threads of a warp, and of a block of the kernels that multiply nothing.
const WARP: usize = 32;
const WARPS: usize = 8;
/// Columns of a bias that a block adds up.
const BIAS_COLUMNS: usize = 8 * WARP;

/// The one launch of `out = A B`, whose weights are read across their rows: `b` is `[E, depth, columns]`. By `factors`, rows of
/// f32 beside weights of f16 are TF32, or stay f32.
pub fn across(
    target: Target,
    operands: impl Into<Operands>,
    factors: Factors,
    p: abi::GroupedGemm,
) -> impl Iterator<Item = Call> {
    let operands = operands.into();
    let unit = Unit::of_gradients([operands.rows, operands.weights], factors);
    let kernel = match (operands.weights, operands.rows, is_aligned(operands, &p)) {
        (DType::Bf16, DType::F32, _) => "grouped_gemm_f32_nn_bf16_weights",
        (DType::F16, DType::F32, true) if unit == Unit::TensorCores => "grouped_gemm_tf32_nn_f16_weights",
        (DType::F16, DType::F32, false) if unit == Unit::TensorCores => "grouped_gemm_tf32_nn_f16_weights_any",
        (DType::F16, DType::F32, _) => "grouped_gemm_f32_nn_f16_weights",
        (DType::Bf16, _, true) => "grouped_gemm_bf16_nn",
        (DType::Bf16, _, false) => "grouped_gemm_bf16_nn_any",
        (DType::F16, _, true) => "grouped_gemm_f16_nn",
        (DType::F16, _, false) => "grouped_gemm_f16_nn_any",
        _ => "grouped_gemm_f32_nn",
    };
    let portable = || experts::persistent(target, kernel, unit, false, &p).map(|launch| Call::new(launch, p));
    hopper::across(target, operands, &p).or_else(portable).into_iter()
}

/// The one launch from `dy` to `dh`.
pub fn hidden_gradient(target: Target, storage: DType, p: abi::HiddenGradient) -> impl Iterator<Item = Call> {
    let kernel = match (storage, is_aligned(storage.into(), &p.product)) {
        (DType::Bf16, true) => "grouped_gemm_bf16_dh",
        (DType::Bf16, false) => "grouped_gemm_bf16_dh_any",
        (DType::F16, true) => "grouped_gemm_f16_dh",
        (DType::F16, false) => "grouped_gemm_f16_dh_any",
        _ => "grouped_gemm_f32_dh",
    };
    let unit = Unit::of(storage.into(), Factors::F32);
    let portable = || experts::persistent(target, kernel, unit, false, &p.product).map(|launch| Call::new(launch, p));
    hopper::hidden_gradient(target, storage, &p).or_else(portable).into_iter()
}

/// Tiles in a row of the product that [`hidden_gradient`] launches: parts of every row's `dg`.
pub fn part_count(_: Target, storage: DType, width: usize) -> usize {
    width.div_ceil(Unit::of(storage.into(), Factors::F32).tile()[1])
}

/// The type of `dh` and `g·a` between the launches: f16 has too few exponents for gradients on their way. In f32 beside f16
/// they are rounded to TF32.
pub fn between(storage: DType) -> DType {
    if storage == DType::F16 { DType::F32 } else { storage }
}

/// How products take what has the type [`between`] launches.
pub fn factors_between(storage: DType) -> Factors {
    if storage == DType::F16 { Factors::Tf32 } else { Factors::F32 }
}

/// The one launch of a weight's gradient. `left` and `right` are the types of both factors' rows: the same, f32 and a 16-bit
/// type, or f16 and TF32, which is f32 in memory. By `factors`, f32 on the left is TF32 beside f16 too, or stays f32. A gradient
/// that is not f32 has the 16-bit type.
pub fn weight_gradient(
    target: Target,
    [left, right]: [DType; 2],
    factors: Factors,
    p: abi::WeightGradient,
) -> impl Iterator<Item = Call> {
    let whole = |from: &abi::RoutedOperand, of: DType| {
        (from.rows as usize).is_multiple_of(16) && (from.stride.unsigned_abs() as usize * of.size()).is_multiple_of(16)
    };
    let unit = Unit::of_gradients([left, right], factors);
    let kernel = match (right, left, whole(&p.left, left) && whole(&p.right, right)) {
        (DType::F32, DType::F16, true) => "grouped_gemm_tf32_tn_f16_left",
        (DType::F32, DType::F16, false) => "grouped_gemm_tf32_tn_f16_left_any",
        (DType::F16, DType::F32, true) if unit == Unit::TensorCores => "grouped_gemm_tf32_tn_f16_rows",
        (DType::F16, DType::F32, false) if unit == Unit::TensorCores => "grouped_gemm_tf32_tn_f16_rows_any",
        (DType::Bf16, DType::F32, _) => "grouped_gemm_f32_tn_bf16_rows",
        (DType::F16, DType::F32, _) => "grouped_gemm_f32_tn_f16_rows",
        (DType::Bf16, _, true) => "grouped_gemm_bf16_tn",
        (DType::Bf16, _, false) => "grouped_gemm_bf16_tn_any",
        (DType::F16, _, true) => "grouped_gemm_f16_tn",
        (DType::F16, _, false) => "grouped_gemm_f16_tn_any",
        _ => "grouped_gemm_f32_tn",
    };
    let sides = [&p.left, &p.right].map(|from| from.columns as usize);
    let tiles: usize = sides.into_iter().zip(unit.tile()).map(|(side, tile)| side.div_ceil(tile)).product();
    let blocks = tiles * p.experts as usize;
    let launch = Launch { kernel, grid: [blocks as u32, 1, 1], threads: THREADS, shared: unit.shared(), cluster: 1 };
    let portable = || (blocks > 0).then(|| Call::new(launch, p));
    hopper::weight_gradient(target, [left, right], &p).or_else(portable).into_iter()
}

/// Blocks that a gradient without experts is divided into at least, if it has the rows: twice the multiprocessors of an
/// H100. The number is of no device, because bits depend on it.
const LEAST_BLOCKS: usize = 264;
/// Rows of a part at least.
const LEAST_SHARE: usize = 256;
/// Rows that an f32 product takes at a time.
const STEP: usize = 16;

/// How the rows of the gradient of a weight `[left, right]` without experts are divided: rows of a part, and parts.
fn division(rows: usize, [left, right]: [usize; 2]) -> [usize; 2] {
    let [height, width] = Unit::Scalar.tile();
    let tiles = (left.div_ceil(height) * right.div_ceil(width)).max(1);
    let parts = LEAST_BLOCKS.div_ceil(tiles).min(rows / LEAST_SHARE).max(1);
    let share = rows.div_ceil(parts).next_multiple_of(STEP).max(STEP);
    [share, rows.div_ceil(share).max(1)]
}

/// Elements of room for the parts of a [`divided_weight_gradient`].
pub fn parts(_: Target, rows: usize, sides: [usize; 2]) -> usize {
    let [_, parts] = division(rows, sides);
    if parts == 1 { 0 } else { sides.into_iter().fold(parts, usize::saturating_mul) }
}

/// The launches of an f32 product that is the gradient of a weight without experts, such as the router's: it has few tiles and
/// many rows, so those are divided among more blocks, whose parts are added up in order. `parts` has room for
/// [`parts`](fn@parts); `storage` and `p` are as in [`weight_gradient`], with the gradient without gaps.
pub fn divided_weight_gradient(
    target: Target,
    storage: DType,
    p: abi::WeightGradient,
    parts: *mut f32,
) -> impl Iterator<Item = Call> + use<> {
    let sides = [p.left.columns as usize, p.right.columns as usize];
    let [share, count] = division(p.rows as usize, sides);
    let whole = abi::WeightGradient { share: p.rows, ..p };
    let divided = abi::WeightGradient {
        out: parts.cast(),
        experts: count as i32,
        share: share as i32,
        out_f32: 1,
        beta: 0.0,
        ..p
    };
    let elements = sides[0] * sides[1];
    let sum = abi::WeightGradientSum {
        parts,
        out: p.out,
        elements: elements as i64,
        part_count: count as i32,
        out_f32: p.out_f32,
        beta: p.beta,
        ..Default::default()
    };
    let kernel = match storage {
        DType::Bf16 => "weight_gradient_sum_bf16",
        DType::F16 => "weight_gradient_sum_f16",
        _ => "weight_gradient_sum_f32",
    };
    let blocks = elements.div_ceil(THREADS as usize) as u32;
    let sum = (count > 1 && blocks > 0).then(|| Call::new(Launch::linear(kernel, blocks, THREADS), sum));
    weight_gradient(target, [DType::F32, storage], Factors::F32, if count > 1 { divided } else { whole }).chain(sum)
}

/// The one launch of a bias's gradient; a gradient that is not f32 has the type `storage`, which is that of the rows unless
/// those are f32 beside f16.
pub fn bias_gradient(_: Target, rows: DType, storage: DType, p: abi::BiasGradient) -> impl Iterator<Item = Call> {
    let kernel = match rows {
        DType::F32 if storage == DType::F16 => "bias_gradient_f32_to_f16",
        DType::Bf16 => "bias_gradient_bf16",
        DType::F16 => "bias_gradient_f16",
        _ => "bias_gradient_f32",
    };
    let grid = [(p.from.columns as usize).div_ceil(BIAS_COLUMNS) as u32, p.experts as u32, 1];
    let launch = Launch { kernel, grid, threads: (WARPS * WARP) as u32, shared: 0, cluster: 1 };
    (grid[0] > 0 && grid[1] > 0).then(|| Call::new(launch, p)).into_iter()
}

/// The one launch that adds up every row's `dg`.
pub fn row_weight_gradient(_: Target, storage: DType, p: abi::RowWeightGradient) -> impl Iterator<Item = Call> {
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
    use std::ptr::{without_provenance, without_provenance_mut};

    const H100: Target = Target::H100;

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
        let launch = only(weight_gradient(H100, [DType::Bf16, DType::Bf16], Factors::F32, gradient(256, 264, 8)));
        assert_eq!((launch.kernel, launch.grid, launch.shared), ("grouped_gemm_bf16_tn", [32, 1, 1], 98304));
        let launch = only(weight_gradient(H100, [DType::F32, DType::F32], Factors::F32, gradient(129, 128, 3)));
        assert_eq!((launch.kernel, launch.grid, launch.shared), ("grouped_gemm_f32_tn", [6, 1, 1], 0));
        assert_eq!(weight_gradient(H100, [DType::F32, DType::F32], Factors::F32, gradient(0, 64, 3)).count(), 0);
        let from = operand(257, 256);
        let bias = abi::BiasGradient { from, experts: 5, ..Default::default() };
        assert_eq!(only(bias_gradient(H100, DType::F16, DType::F16, bias)).grid, [2, 5, 1]);
    }

    #[test]
    fn few_tiles_and_many_rows_are_divided_by_sizes_alone() {
        // marin's router: sixteen tiles.
        assert_eq!(division(16384, [8, 2048]), [976, 17]);
        assert_eq!(parts(H100, 16384, [8, 2048]), 17 * 8 * 2048);
        // No row of a part is missing, and none is of two.
        for rows in [0, 1, 511, 512, 513, 4096, 100_003] {
            let [share, count] = division(rows, [200, 300]);
            assert!(share * count >= rows && share * (count - 1) <= rows && share % STEP == 0, "{rows}");
        }
        let p = abi::WeightGradient { rows: 16384, share: 16384, ..gradient(8, 2048, 1) };
        let calls: Vec<Launch> = divided_weight_gradient(H100, DType::Bf16, p, without_provenance_mut(512))
            .map(|call| call.launch)
            .collect();
        assert_eq!(calls.len(), 2);
        assert_eq!((calls[0].kernel, calls[0].grid), ("grouped_gemm_f32_tn_bf16_rows", [272, 1, 1]));
        assert_eq!((calls[1].kernel, calls[1].grid), ("weight_gradient_sum_bf16", [64, 1, 1]));
        let few = abi::WeightGradient { rows: 300, share: 300, ..p };
        assert_eq!(
            (
                divided_weight_gradient(H100, DType::F32, few, without_provenance_mut(512)).count(),
                parts(H100, 300, [8, 2048])
            ),
            (1, 0)
        );
    }

    #[test]
    fn one_factor_in_f32_makes_an_f32_product_unless_it_is_of_tf32() {
        let tn = |left, right, factors| only(weight_gradient(H100, [left, right], factors, gradient(64, 64, 1))).kernel;
        assert_eq!(tn(DType::F32, DType::Bf16, Factors::F32), "grouped_gemm_f32_tn_bf16_rows");
        assert_eq!(tn(DType::F32, DType::Bf16, Factors::Tf32), "grouped_gemm_f32_tn_bf16_rows");
        assert_eq!(tn(DType::F32, DType::F16, Factors::F32), "grouped_gemm_f32_tn_f16_rows");
        assert_eq!(tn(DType::F32, DType::F16, Factors::Tf32), "grouped_gemm_tf32_tn_f16_rows");
        assert_eq!(tn(DType::F16, DType::F32, Factors::Tf32), "grouped_gemm_tf32_tn_f16_left");
        assert_eq!(tn(DType::F32, DType::F32, Factors::Tf32), "grouped_gemm_f32_tn");
        let p = abi::GroupedGemm { rows: 9, columns: 64, depth: 64, experts: 1, ..Default::default() };
        let nn = |rows, weights, factors| only(across(H100, Operands { rows, weights }, factors, p)).kernel;
        assert_eq!(nn(DType::F32, DType::Bf16, Factors::Tf32), "grouped_gemm_f32_nn_bf16_weights");
        assert_eq!(nn(DType::F32, DType::F16, Factors::F32), "grouped_gemm_f32_nn_f16_weights");
        assert_eq!(nn(DType::F32, DType::F16, Factors::Tf32), "grouped_gemm_tf32_nn_f16_weights");
        assert_eq!(nn(DType::F32, DType::F32, Factors::Tf32), "grouped_gemm_f32_nn");
        assert_eq!(nn(DType::F16, DType::F16, Factors::F32), "grouped_gemm_f16_nn");
    }

    /// Rows of f32 start at multiples of 16 bytes more often than those of f16 beside them.
    #[test]
    fn both_factors_of_a_product_of_tf32_have_to_be_aligned() {
        let with =
            |columns: i32, address| abi::WeightGradient { right: operand(columns, address), ..gradient(64, 64, 1) };
        let tn = |types, p| only(weight_gradient(H100, types, Factors::Tf32, p));
        let (rows, left) = ([DType::F32, DType::F16], [DType::F16, DType::F32]);
        let launch = tn(rows, gradient(129, 257, 3));
        assert_eq!(
            (launch.kernel, launch.grid, launch.shared),
            ("grouped_gemm_tf32_tn_f16_rows_any", [12, 1, 1], 98304)
        );
        assert_eq!(tn(rows, with(68, 256)).kernel, "grouped_gemm_tf32_tn_f16_rows_any");
        assert_eq!(tn(left, with(68, 256)).kernel, "grouped_gemm_tf32_tn_f16_left");
        assert_eq!(tn(left, with(68, 264)).kernel, "grouped_gemm_tf32_tn_f16_left_any");
        let p = |a_stride, b_stride| abi::GroupedGemm {
            rows: 9,
            columns: 64,
            depth: 64,
            experts: 1,
            a_stride,
            b_stride,
            ..Default::default()
        };
        let operands = Operands { rows: DType::F32, weights: DType::F16 };
        let nn = |p| only(across(H100, operands, Factors::Tf32, p)).kernel;
        assert_eq!(nn(p(68, 72)), "grouped_gemm_tf32_nn_f16_weights");
        assert_eq!([nn(p(68, 68)), nn(p(66, 72))], ["grouped_gemm_tf32_nn_f16_weights_any"; 2]);
    }

    #[test]
    fn rows_that_start_anywhere_have_kernels_of_their_own() {
        let misaligned = abi::WeightGradient { right: operand(64, 264), ..gradient(64, 64, 1) };
        assert_eq!(
            only(weight_gradient(H100, [DType::Bf16, DType::Bf16], Factors::F32, misaligned)).kernel,
            "grouped_gemm_bf16_tn_any"
        );
        assert_eq!(
            only(weight_gradient(H100, [DType::F16, DType::F16], Factors::F32, gradient(64, 63, 1))).kernel,
            "grouped_gemm_f16_tn_any"
        );
        let product = abi::GroupedGemm { rows: 9, columns: 64, b_stride: 63, experts: 1, ..Default::default() };
        assert_eq!(only(across(H100, DType::Bf16, Factors::F32, product)).kernel, "grouped_gemm_bf16_nn_any");
        let p = abi::HiddenGradient { product, ..Default::default() };
        assert_eq!(only(hidden_gradient(H100, DType::F16, p)).kernel, "grouped_gemm_f16_dh_any");
    }

    #[test]
    fn gated_kinds_have_whole_tiles_of_activated_values() {
        let product = abi::GroupedGemm {
            rows: 256,
            columns: 512,
            experts: 1,
            activation: abi::ACTIVATION_SWIGLU,
            ..Default::default()
        };
        // Two tiles high and one ragged, two wide.
        assert_eq!(
            only(hidden_gradient(H100, DType::Bf16, abi::HiddenGradient { product, ..Default::default() })).grid[0],
            6
        );
        assert_eq!([part_count(H100, DType::Bf16, 257), part_count(H100, DType::F32, 257)], [2, 3]);
        let p = abi::RowWeightGradient { rows: 9, ..Default::default() };
        assert_eq!(only(row_weight_gradient(H100, DType::F32, p)).grid, [2, 1, 1]);
    }
}
