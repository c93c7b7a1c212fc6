//! Which kernels multiply, and with how many threads (`kernels/experts/portable/grouped_gemm.cu`); Hopper's own, where they
//! can.

use crate::cuda::abi;
use crate::cuda::device::workspace::Workspace;
use crate::cuda::device::{Call, Launch, Target};
use crate::cuda::launch::hopper;
use crate::{Activation, DType, Sizes};

pub(in crate::cuda) const THREADS: u32 = 256;

/// How f32 operands are multiplied. Sums are f32 always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Factors {
    /// As they are.
    #[default]
    F32,
    /// On tensor cores, which look at 10 of their 23 fraction bits: faster. For f32 storage that is outside the accuracy of SPEC
    /// §8; for f16, whose fraction is as long, what meets it was rounded to as many when it was written.
    Tf32,
}

/// Types of the two operands of a product: the same, or one of them f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operands {
    /// Of the rows.
    pub rows: DType,
    /// Of the weights.
    pub weights: DType,
}

impl From<DType> for Operands {
    fn from(storage: DType) -> Self {
        Self { rows: storage, weights: storage }
    }
}

/// What multiplies operands of some types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cuda) enum Unit {
    TensorCores,
    Scalar,
}

impl Unit {
    pub fn of(operands: Operands, factors: Factors) -> Self {
        let mixed = operands.rows != operands.weights;
        let exact = operands.weights == DType::F32 && factors == Factors::F32;
        if mixed || exact { Unit::Scalar } else { Unit::TensorCores }
    }

    /// On the way back, where f32 is TF32 beside f16 alone: on the right always, on the left where `factors` are.
    pub fn of_gradients([left, right]: [DType; 2], factors: Factors) -> Self {
        match ([left, right], factors) {
            ([DType::F16, DType::F32], _) | ([DType::F32, DType::F16], Factors::Tf32) => Unit::TensorCores,
            _ => Unit::of(Operands { rows: left, weights: right }, Factors::F32),
        }
    }

    /// Bytes of dynamic shared memory of a block.
    pub fn shared(self) -> u32 {
        if self == Unit::Scalar { 0 } else { abi::GEMM_SHARED_BYTES as u32 }
    }

    /// Rows and columns of a tile.
    pub fn tile(self) -> [usize; 2] {
        match self {
            Unit::TensorCores => [abi::GEMM_TILE_ROWS as usize, abi::GEMM_TILE_COLUMNS as usize],
            Unit::Scalar => [abi::GEMM_F32_TILE as usize; 2],
        }
    }
}

/// The one launch of a product; none where there is nothing to write. `operands` are the types of both, one type
/// where it is the same.
pub fn calls(
    target: Target,
    operands: impl Into<Operands>,
    factors: Factors,
    p: abi::GroupedGemm,
) -> impl Iterator<Item = Call> {
    let operands = operands.into();
    let unit = Unit::of(operands, factors);
    let portable = || {
        let launch = persistent(target, kernel(operands, unit, &p), unit, is_gated(&p), &p);
        launch.map(|launch| Call::new(launch, p))
    };
    hopper::along(target, operands, &p).or_else(portable).into_iter()
}

/// Blocks of a product that a multiprocessor holds at once, by their registers (held against the compiled kernels).
fn blocks_a_multiprocessor(kernel: &str) -> usize {
    if kernel.starts_with("grouped_gemm_f32_") && !kernel.ends_with("_dh") { 2 } else { 1 }
}

/// Blocks that take the tiles of a product; none where there is no tile. `paired`: the weights' rows come in pairs, so
/// that a tile has half as many columns.
pub(in crate::cuda) fn persistent(
    target: Target,
    kernel: &'static str,
    unit: Unit,
    paired: bool,
    p: &abi::GroupedGemm,
) -> Option<Launch> {
    let blocks = most_tiles(unit, paired, p).min(target.multiprocessors * blocks_a_multiprocessor(kernel));
    let grid = [blocks as u32, 1, 1];
    (blocks > 0).then_some(Launch { kernel, grid, threads: THREADS, shared: unit.shared(), cluster: 1 })
}

/// The function between the two products, as the kernels know it.
pub fn activation(activation: Activation) -> i32 {
    match activation {
        Activation::Relu => abi::ACTIVATION_RELU,
        Activation::Gelu => abi::ACTIVATION_GELU,
        Activation::GeluTanh => abi::ACTIVATION_GELU_TANH,
        Activation::Silu => abi::ACTIVATION_SILU,
        Activation::Swiglu => abi::ACTIVATION_SWIGLU,
        Activation::Geglu => abi::ACTIVATION_GEGLU,
        Activation::Reglu => abi::ACTIVATION_REGLU,
    }
}

/// Room for the activated values between the two products, of the routed experts or of the shared one.
pub fn workspace(_: Target, sizes: &Sizes, storage: DType) -> Workspace {
    let rows_of = |rows: usize, width: usize| rows.saturating_mul(activated_stride(width));
    let elements = rows_of(sizes.rows, sizes.width).max(rows_of(sizes.tokens, sizes.shared_width));
    Workspace::scratch(elements.saturating_mul(storage.size()).saturating_add(256))
}

/// Elements between rows of the activated values of a product `width` wide: every row starts at a multiple of 128 bits.
pub fn activated_stride(width: usize) -> usize {
    width.next_multiple_of(8)
}

/// Whether the product has a half for the gate beside the one for the values.
pub(in crate::cuda) fn is_gated(p: &abi::GroupedGemm) -> bool {
    [abi::ACTIVATION_SWIGLU, abi::ACTIVATION_GEGLU, abi::ACTIVATION_REGLU].contains(&p.activation)
}

/// Tiles that there are when every expert's rows end in a tile of their own.
fn most_tiles(unit: Unit, paired: bool, p: &abi::GroupedGemm) -> usize {
    let [tile_rows, tile_columns] = unit.tile();
    let tile_columns = if paired { tile_columns / 2 } else { tile_columns };
    // A whole tile and a ragged one for each expert cover any division of the rows.
    (p.rows as usize / tile_rows + ragged_experts(p)) * (p.columns as usize).div_ceil(tile_columns)
}

/// Experts whose rows may end within a tile.
pub(super) fn ragged_experts(p: &abi::GroupedGemm) -> usize {
    let rows = p.rows as usize;
    if p.offsets.is_null() { rows.min(1) } else { (p.experts as usize).min(rows) }
}

/// Whether every row of both operands starts at a multiple of 128 bits.
pub(in crate::cuda) fn is_aligned(operands: Operands, p: &abi::GroupedGemm) -> bool {
    let whole = |stride: i64, of: DType| (stride.unsigned_abs() as usize * of.size()).is_multiple_of(16);
    [p.a as usize, p.b as usize].into_iter().all(|address| address.is_multiple_of(16))
        && whole(p.a_stride, operands.rows)
        && [p.b_stride, p.b_expert_stride].into_iter().all(|stride| whole(stride, operands.weights))
}

fn kernel(operands: Operands, unit: Unit, p: &abi::GroupedGemm) -> &'static str {
    let Operands { rows, weights } = operands;
    match (weights, is_gated(p), is_aligned(operands, p)) {
        (DType::Bf16, false, true) => "grouped_gemm_bf16_plain",
        (DType::Bf16, true, true) => "grouped_gemm_bf16_gated",
        (DType::Bf16, false, false) => "grouped_gemm_bf16_plain_any",
        (DType::Bf16, true, false) => "grouped_gemm_bf16_gated_any",
        (DType::F16, false, true) => "grouped_gemm_f16_plain",
        (DType::F16, true, true) => "grouped_gemm_f16_gated",
        (DType::F16, false, false) => "grouped_gemm_f16_plain_any",
        (DType::F16, true, false) => "grouped_gemm_f16_gated_any",
        (DType::F32, ..) if rows == DType::Bf16 => "grouped_gemm_f32_plain_bf16_rows",
        (DType::F32, ..) if rows == DType::F16 => "grouped_gemm_f32_plain_f16_rows",
        (_, false, _) if unit == Unit::Scalar => "grouped_gemm_f32_plain",
        (_, true, _) if unit == Unit::Scalar => "grouped_gemm_f32_gated",
        (_, false, true) => "grouped_gemm_tf32_plain",
        (_, true, true) => "grouped_gemm_tf32_gated",
        (_, false, false) => "grouped_gemm_tf32_plain_any",
        (_, true, false) => "grouped_gemm_tf32_gated_any",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(rows: i32, experts: i32, columns: i32, activation: i32) -> abi::GroupedGemm {
        let offsets = 256 as *const i32;
        abi::GroupedGemm {
            offsets,
            rows,
            experts,
            columns,
            depth: 64,
            a_stride: 64,
            b_stride: 64,
            b_expert_stride: 64 * i64::from(columns),
            activation,
            ..Default::default()
        }
    }

    fn launch(storage: DType, p: abi::GroupedGemm) -> Launch {
        calls(Target::H100, storage, Factors::F32, p).next().unwrap().launch
    }

    #[test]
    fn blocks_fill_the_device_and_no_more_than_there_are_tiles() {
        assert_eq!(launch(DType::Bf16, product(16384, 8, 3072, abi::ACTIVATION_SWIGLU)).grid, [132, 1, 1]);
        // At most one whole tile and eight ragged ones, of two columns of tiles.
        assert_eq!(launch(DType::Bf16, product(200, 8, 300, abi::ACTIVATION_NONE)).grid, [18, 1, 1]);
        assert_eq!(launch(DType::F32, product(1, 8, 129, abi::ACTIVATION_RELU)).grid, [2, 1, 1]);
        assert_eq!(launch(DType::F32, product(32768, 1, 3072, abi::ACTIVATION_SWIGLU)).grid, [264, 1, 1]);
        assert_eq!(calls(Target::H100, DType::F32, Factors::F32, product(0, 8, 64, abi::ACTIVATION_RELU)).count(), 0);
    }

    #[test]
    fn rows_that_start_anywhere_have_kernels_of_their_own() {
        assert_eq!(launch(DType::Bf16, product(9, 2, 64, abi::ACTIVATION_NONE)).kernel, "grouped_gemm_bf16_plain");
        let odd = abi::GroupedGemm { a_stride: 63, ..product(9, 2, 64, abi::ACTIVATION_GEGLU) };
        assert_eq!(launch(DType::F16, odd).kernel, "grouped_gemm_f16_gated_any");
        let misaligned = abi::GroupedGemm { b: 8 as *const _, ..product(9, 2, 64, abi::ACTIVATION_NONE) };
        assert_eq!(launch(DType::Bf16, misaligned).kernel, "grouped_gemm_bf16_plain_any");
        assert_eq!(activated_stride(13), 16);
    }

    #[test]
    fn a_router_in_f32_is_multiplied_in_f32() {
        let of = |rows, factors| {
            let operands = Operands { rows, weights: DType::F32 };
            calls(Target::H100, operands, factors, product(9, 1, 64, abi::ACTIVATION_NONE)).next().unwrap().launch
        };
        assert_eq!(of(DType::Bf16, Factors::F32).kernel, "grouped_gemm_f32_plain_bf16_rows");
        assert_eq!(of(DType::F16, Factors::Tf32).kernel, "grouped_gemm_f32_plain_f16_rows");
        assert_eq!(of(DType::Bf16, Factors::F32).grid, of(DType::F32, Factors::F32).grid);
        assert_eq!(of(DType::F32, Factors::F32).kernel, "grouped_gemm_f32_plain");
    }

    #[test]
    fn tf32_is_for_those_who_ask() {
        let p = product(9, 2, 64, abi::ACTIVATION_SWIGLU);
        assert_eq!(launch(DType::F32, p).kernel, "grouped_gemm_f32_gated");
        let asked = |storage| calls(Target::H100, storage, Factors::Tf32, p).next().unwrap().launch.kernel;
        assert_eq!([DType::F32, DType::F16].map(asked), ["grouped_gemm_tf32_gated", "grouped_gemm_f16_gated"]);
    }
}
