//! What products cost at least, on the way forward and back: bytes, operations and tiles (see [`cost`](super::cost)).

use crate::cuda::abi;
use crate::cuda::cost::tiles::{TileWork, Tiles, tile_work, tiles_of};
use crate::cuda::cost::{Contents, Unit};
use crate::cuda::launch::experts;

/// Rows that there are.
pub(in crate::cuda) fn routed(offsets: *const i32, rows: i32, contents: &Contents) -> f64 {
    (if offsets.is_null() { rows as usize } else { contents.rows.min(rows as usize) }) as f64
}

/// Bytes moved for an element of a gradient: what is added to is read too.
pub(in crate::cuda) fn written(out_f32: i32, beta: f32, size: f64) -> f64 {
    (if out_f32 == 0 { size } else { 4.0 }) * if beta == 0.0 { 1.0 } else { 2.0 }
}

/// Bytes of an element of each operand, by the kernel's name: 16-bit types have "f16" in theirs, and one operand of an f32
/// product may be of such a type.
fn operand_sizes(kernel: &str) -> [f64; 2] {
    match (kernel.starts_with("grouped_gemm_f32_"), kernel.contains("f16")) {
        (true, true) if kernel.contains("_tn_") && !kernel.ends_with("_left") || kernel.ends_with("_weights") => {
            [4.0, 2.0]
        }
        (true, true) => [2.0, 4.0],
        (_, true) => [2.0; 2],
        (_, false) => [4.0; 2],
    }
}

/// Rows and columns of a kernel's tiles.
fn tile(kernel: &str) -> [usize; 2] {
    match Unit::of(kernel) {
        Unit::Scalar => experts::Unit::Scalar,
        Unit::Tensor16 | Unit::Tensor32 => experts::Unit::TensorCores,
    }
    .tile()
}

/// What a product moves and multiplies.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::cuda) struct Product {
    /// Bytes of its factors, each read once.
    inputs: f64,
    /// Bytes of what is written, and of what is read to write it.
    outputs: f64,
    pub operations: f64,
    tiles: Vec<Tiles>,
    of_tiles: TileWork,
}

impl Product {
    fn new(kernel: &str, tiles: Vec<Tiles>, depth: f64, [inputs, outputs, operations]: [f64; 3]) -> Self {
        let of_tiles = tile_work(Unit::of(kernel), tiles.iter().copied(), depth, operand_sizes(kernel));
        Self { inputs, outputs, operations, tiles, of_tiles }
    }

    pub fn bytes(&self) -> f64 {
        self.inputs + self.outputs
    }

    pub fn tiles(&self) -> u64 {
        self.tiles.iter().map(|tiles| tiles.count).sum::<f64>() as u64
    }

    /// With every tile's factors for itself.
    pub fn l2_bytes(&self) -> f64 {
        self.of_tiles.l2_bytes + self.outputs
    }

    pub fn wavefronts(&self) -> f64 {
        self.of_tiles.wavefronts
    }

    pub fn instructions(&self) -> f64 {
        self.of_tiles.instructions
    }
}

/// The product, and beside it `h` in, `dh` and `g·a` out.
pub(in crate::cuda) fn hidden_gradient(p: &abi::HiddenGradient, kernel: &str, contents: &Contents) -> Product {
    let [_, size] = operand_sizes(kernel);
    // See `between`.
    let out_size = if kernel.starts_with("grouped_gemm_f16_") { 4.0 } else { size };
    let plain = abi::GroupedGemm { activation: abi::ACTIVATION_NONE, hidden: std::ptr::null_mut(), ..p.product };
    let product = product(&plain, kernel, contents);
    let halves = if gated(p.product.activation) { 2.0 } else { 1.0 };
    let elements = routed(p.product.offsets, p.product.rows, contents) * f64::from(p.product.columns);
    let hidden = if p.product.hidden_f32 == 0 { size } else { 4.0 };
    Product { outputs: elements * (halves * (hidden + out_size) + out_size), ..product }
}

pub(in crate::cuda) fn weight_gradient(p: &abi::WeightGradient, kernel: &str, contents: &Contents) -> Product {
    let [left, right] = operand_sizes(kernel);
    let (rows, sides) = (routed(p.offsets, p.rows, contents), [&p.left, &p.right].map(|from| from.columns as usize));
    let experts = f64::from(p.experts);
    let [m, n] = sides.map(|side| side as f64);
    let gradients = experts * m * n * written(p.out_f32, p.beta, left.min(right));
    let tiles = tiles_of(experts, sides, tile(kernel));
    let depth = rows / experts.max(1.0);
    Product::new(kernel, tiles, depth, [rows * (m * left + n * right), gradients, 2.0 * rows * m * n])
}

fn gated(activation: i32) -> bool {
    [abi::ACTIVATION_SWIGLU, abi::ACTIVATION_GEGLU, abi::ACTIVATION_REGLU].contains(&activation)
}

pub(in crate::cuda) fn product(p: &abi::GroupedGemm, kernel: &str, contents: &Contents) -> Product {
    let [size, weight_size] = operand_sizes(kernel);
    let halves = if gated(p.activation) { 2 } else { 1 };
    let rows = if p.offsets.is_null() { p.rows as usize } else { contents.rows.min(p.rows as usize) };
    let (experts, columns) = ((p.experts as usize).max(1), p.columns as usize);
    let of_experts = |experts: usize, rows: usize| tiles_of(experts as f64, [rows, columns * halves], tile(kernel));
    let more = rows % experts;
    let mut tiles = of_experts(more, rows / experts + 1);
    tiles.extend(of_experts(experts - more, rows / experts));

    let weights = (experts.min(rows) * columns * halves) as f64 * f64::from(p.depth);
    let out_size = if p.out_f32 == 0 { size } else { 4.0 };
    let hidden_size = match (p.hidden.is_null(), p.hidden_f32) {
        (true, _) => 0.0,
        (false, 0) => size,
        (false, _) => 4.0,
    };
    let out = (rows * columns) as f64 * (out_size + halves as f64 * hidden_size);
    let a = rows as f64 * f64::from(p.depth);
    let counts = [weight_size * weights + size * a, out, 2.0 * a * (columns * halves) as f64];
    Product::new(kernel, tiles, f64::from(p.depth), counts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ptr::without_provenance;

    const CONTENTS: Contents = Contents { rows: 1000, pairs: 0.0 };

    fn operand(columns: i32) -> abi::RoutedOperand {
        abi::RoutedOperand { columns, ..Default::default() }
    }

    #[test]
    fn a_gradient_counts_rows_that_there_are_and_every_expert() {
        let p = abi::WeightGradient {
            left: operand(256),
            right: operand(512),
            offsets: without_provenance(256),
            rows: 4000,
            experts: 8,
            ..Default::default()
        };
        let gradient = weight_gradient(&p, "grouped_gemm_bf16_tn", &CONTENTS);
        assert_eq!(gradient.operations, 2.0 * 1000.0 * 256.0 * 512.0);
        assert_eq!(gradient.bytes(), 2.0 * (1000.0 * 768.0 + 8.0 * 256.0 * 512.0));
        assert_eq!(gradient.tiles(), 8 * 2 * 2);
        // Every tile reads 128 columns of one factor and 256 of the other.
        let factors = 2.0 * 1000.0 * (4.0 * 128.0 + 4.0 * 256.0);
        assert_eq!(gradient.l2_bytes(), factors + 2.0 * 8.0 * 256.0 * 512.0);
        // Sums that go on are read too.
        let more = abi::WeightGradient { beta: 1.0, out_f32: 1, ..p };
        let more = weight_gradient(&more, "grouped_gemm_bf16_tn", &CONTENTS);
        assert_eq!(more.bytes() - gradient.bytes(), 6.0 * 8.0 * 256.0 * 512.0);
        let mixed = weight_gradient(&p, "grouped_gemm_f32_tn_bf16_rows", &CONTENTS);
        assert_eq!(
            (mixed.bytes(), mixed.tiles()),
            (1000.0 * (4.0 * 256.0 + 2.0 * 512.0) + 2.0 * 8.0 * 256.0 * 512.0, 8 * 2 * 4)
        );
    }

    #[test]
    fn hidden_rows_come_in_and_their_gradient_goes_out() {
        let product = abi::GroupedGemm {
            rows: 1000,
            experts: 1,
            depth: 256,
            columns: 512,
            activation: abi::ACTIVATION_SWIGLU,
            hidden_f32: 1,
            ..Default::default()
        };
        let p = abi::HiddenGradient { product, ..Default::default() };
        let gradient = hidden_gradient(&p, "grouped_gemm_bf16_dh", &CONTENTS);
        assert_eq!(gradient.operations, 2.0 * 1000.0 * 256.0 * 512.0);
        let elements = 1000.0 * 512.0;
        let hidden = elements * 2.0 * 6.0;
        assert_eq!(gradient.bytes(), 2.0 * (256.0 * 512.0 + 1000.0 * 256.0 + elements) + hidden);
        // Seven tiles of 128 rows and one of 104, of two columns of tiles.
        assert_eq!(gradient.l2_bytes(), 2.0 * 256.0 * (2.0 * 1000.0 + 8.0 * 512.0) + 2.0 * elements + hidden);
    }

    #[test]
    fn operands_of_f32_products_may_be_of_half_the_size() {
        assert_eq!(operand_sizes("grouped_gemm_f32_plain_bf16_rows"), [2.0, 4.0]);
        assert_eq!(operand_sizes("grouped_gemm_f32_nn_f16_weights"), [4.0, 2.0]);
        assert_eq!(operand_sizes("grouped_gemm_f32_tn_f16_rows"), [4.0, 2.0]);
        assert_eq!([operand_sizes("grouped_gemm_f32_nn"), operand_sizes("grouped_gemm_tf32_plain")], [[4.0; 2]; 2]);
        assert_eq!(operand_sizes("grouped_gemm_bf16_tn_any"), [2.0; 2]);
    }
}
