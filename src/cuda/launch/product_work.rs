//! What products cost at least, on the way forward and back: bytes, operations and tiles (see [`cost`](crate::cuda::cost)).

use crate::cuda::abi;
use crate::cuda::cost::hopper::{Hopper, Prediction};
use crate::cuda::cost::{Contents, Unit, Work, element_size, hopper, written};
use crate::cuda::device::{Call, Launch, Parameters};
use crate::cuda::launch::experts;
use crate::cuda::launch::product_tiles::{Operand, TileWork, Tiles, tile_work, tiles_of};

/// How each operand is brought, by the kernel's name: 16-bit types have "f16" in theirs, and one operand of an f32 or TF32 product
/// may be of such a type.
fn operands(kernel: &str) -> [Operand; 2] {
    let is_wide = ["grouped_gemm_f32_", "grouped_gemm_tf32_"].into_iter().any(|start| kernel.starts_with(start));
    let is_left_wide = kernel.contains("_tn_") && !kernel.contains("_left") || kernel.contains("_weights");
    match (is_wide, kernel.contains("f16")) {
        (false, true) => [Operand::by_matrices(2.0); 2],
        (_, false) => [Operand::by_matrices(4.0); 2],
        (true, true) => {
            let wide = if kernel.contains("_tn_") { Operand::WORDS } else { Operand::by_matrices(4.0) };
            if is_left_wide { [wide, Operand::WIDENED] } else { [Operand::WIDENED, wide] }
        }
    }
}

/// Bytes of an element of each.
fn operand_sizes(kernel: &str) -> [f64; 2] {
    operands(kernel).map(|operand| operand.size)
}

/// What multiplies, by the kernel's name.
fn unit(kernel: &str) -> Unit {
    match kernel {
        _ if kernel.contains("tf32") => Unit::Tensor32,
        _ if kernel.contains("_hopper") => Unit::Wgmma16,
        // Whatever the type of the rows.
        _ if kernel.starts_with("grouped_gemm_f32_") => Unit::Scalar,
        _ => Unit::Tensor16,
    }
}

/// Rows and columns of a kernel's tiles.
fn tile(kernel: &str) -> [usize; 2] {
    match unit(kernel) {
        Unit::Wgmma16 => [abi::HOPPER_TILE_ROWS, abi::HOPPER_TILE_COLUMNS].map(|side| side as usize),
        Unit::Scalar => experts::Unit::Scalar.tile(),
        Unit::Tensor16 | Unit::Tensor32 => experts::Unit::TensorCores.tile(),
    }
}

/// What a product moves and multiplies.
#[derive(Clone, Debug, PartialEq)]
struct Product {
    /// Bytes of its factors, each read once.
    inputs: f64,
    /// Bytes of what is written, and of what is read to write it.
    outputs: f64,
    operations: f64,
    tiles: Vec<Tiles>,
    of_tiles: TileWork,
}

impl Product {
    fn new(kernel: &str, tiles: Vec<Tiles>, depth: f64, [inputs, outputs, operations]: [f64; 3]) -> Self {
        let of_tiles = tile_work(unit(kernel), tiles.iter().copied(), depth, operands(kernel));
        Self { inputs, outputs, operations, tiles, of_tiles }
    }

    fn work(&self, kernel: &str) -> Work {
        Work {
            bytes: self.inputs + self.outputs,
            operations: self.operations,
            unit: unit(kernel),
            tiles: self.tiles.iter().map(|tiles| tiles.count).sum::<f64>() as u64,
            // With every tile's factors for itself.
            l2_bytes: self.of_tiles.l2_bytes + self.outputs,
            wavefronts: self.of_tiles.wavefronts,
            instructions: self.of_tiles.instructions,
        }
    }
}

impl Parameters for abi::GroupedGemm {
    fn work(&self, launch: &Launch, contents: &Contents) -> Work {
        product(self, launch.kernel, contents).work(launch.kernel)
    }
}

impl Parameters for abi::HopperGemm {
    const MAPS: usize = 4;

    fn work(&self, launch: &Launch, contents: &Contents) -> Work {
        product(&self.product, launch.kernel, contents).work(launch.kernel)
    }
}

/// How long a call of a Hopper product is predicted to take; none for other kernels.
pub fn prediction(machine: &Hopper, call: &Call, contents: &Contents) -> Option<Prediction> {
    let bytes = call.work(contents).bytes;
    if let Some(p) = call.parameters::<abi::HopperGemm>() {
        let (p, kept) =
            (&p.product, if p.product.hidden.is_null() { 0.0 } else { half_or_float(p.product.hidden_f32) });
        let (halves, written) = if experts::is_gated(p) { (2, 0.5) } else { (1, 1.0) };
        let columns = p.columns as usize * halves;
        let out_bytes = written * half_or_float(p.out_f32) + kept;
        return Some(machine.predict(&of_rows(p, contents, columns, [out_bytes, specials(p) * written, bytes])));
    }
    if let Some(p) = call.parameters::<abi::HopperHiddenGradient>() {
        let p = &p.gradient.product;
        // h in, dh out, g·a out.
        let out_bytes = if experts::is_gated(p) { 10.0 } else { 6.0 };
        return Some(machine.predict(&of_rows(p, contents, p.columns as usize, [out_bytes, specials(p), bytes])));
    }
    let p = call.parameters::<abi::HopperWeightGradient>()?.gradient;
    let sides = [&p.left, &p.right].map(|from| from.columns as usize);
    Some(machine.predict_gradient(&hopper::Gradient {
        rows: contents.rows(p.offsets, p.rows) as usize,
        experts: p.experts as usize,
        sides: if p.right.row_token.is_null() { sides } else { [sides[1], sides[0]] },
        out_bytes: written(p.out_f32, p.beta, 2.0),
        bytes,
    }))
}

fn half_or_float(is_f32: i32) -> f64 {
    if is_f32 == 0 { 2.0 } else { 4.0 }
}

/// An exponential and a quotient for each value that is activated.
fn specials(p: &abi::GroupedGemm) -> f64 {
    let is_curved = ![abi::ACTIVATION_NONE, abi::ACTIVATION_RELU, abi::ACTIVATION_REGLU].contains(&p.activation);
    if is_curved { 2.0 } else { 0.0 }
}

fn of_rows(
    p: &abi::GroupedGemm,
    contents: &Contents,
    columns: usize,
    [out_bytes, special, bytes]: [f64; 3],
) -> hopper::Product {
    let rows = contents.rows(p.offsets, p.rows) as usize;
    let (experts, depth) = ((p.experts as usize).min(rows), p.depth as usize);
    hopper::Product { rows, experts, columns, depth, out_bytes, special, bytes }
}

impl Parameters for abi::HiddenGradient {
    fn work(&self, launch: &Launch, contents: &Contents) -> Work {
        hidden_gradient(self, launch.kernel, contents).work(launch.kernel)
    }
}

impl Parameters for abi::HopperHiddenGradient {
    const MAPS: usize = 4;

    fn work(&self, launch: &Launch, contents: &Contents) -> Work {
        hidden_gradient(&self.gradient, launch.kernel, contents).work(launch.kernel)
    }
}

impl Parameters for abi::HopperWeightGradient {
    const MAPS: usize = 2;

    fn work(&self, launch: &Launch, contents: &Contents) -> Work {
        weight_gradient(&self.gradient, launch.kernel, contents).work(launch.kernel)
    }
}

impl Parameters for abi::WeightGradient {
    fn work(&self, launch: &Launch, contents: &Contents) -> Work {
        weight_gradient(self, launch.kernel, contents).work(launch.kernel)
    }
}

impl Parameters for abi::RowWeightGradient {
    fn work(&self, launch: &Launch, contents: &Contents) -> Work {
        let size = element_size(launch.kernel);
        let dy = if self.bias.is_null() { 0.0 } else { f64::from(self.width) * size };
        let of_row = 4.0 * (f64::from(self.part_count) + 1.0) + dy;
        Work::moved(contents.rows(self.offsets, self.rows) * of_row, launch.blocks())
    }
}

impl Parameters for abi::WeightGradientSum {
    fn work(&self, launch: &Launch, _: &Contents) -> Work {
        let size = element_size(launch.kernel);
        let of_element = 4.0 * f64::from(self.part_count) + written(self.out_f32, self.beta, size);
        Work::moved(self.elements as f64 * of_element, launch.blocks())
    }
}

impl Parameters for abi::BiasGradient {
    fn work(&self, launch: &Launch, contents: &Contents) -> Work {
        let (size, columns) = (element_size(launch.kernel), f64::from(self.from.columns));
        let rows = contents.rows(self.offsets, self.rows) * columns * size;
        let gradients = f64::from(self.experts) * columns * written(self.out_f32, self.beta, size);
        Work::moved(rows + gradients, launch.blocks())
    }
}

/// The product, and beside it `h` in, `dh` and `g·a` out.
fn hidden_gradient(p: &abi::HiddenGradient, kernel: &str, contents: &Contents) -> Product {
    let [_, size] = operand_sizes(kernel);
    // See `between`.
    let out_size = if kernel.starts_with("grouped_gemm_f16_") { 4.0 } else { size };
    let plain = abi::GroupedGemm { activation: abi::ACTIVATION_NONE, hidden: std::ptr::null_mut(), ..p.product };
    let product = product(&plain, kernel, contents);
    let halves = if experts::is_gated(&p.product) { 2.0 } else { 1.0 };
    let elements = contents.rows(p.product.offsets, p.product.rows) * f64::from(p.product.columns);
    let hidden = if p.product.hidden_f32 == 0 { size } else { 4.0 };
    Product { outputs: elements * (halves * (hidden + out_size) + out_size), ..product }
}

fn weight_gradient(p: &abi::WeightGradient, kernel: &str, contents: &Contents) -> Product {
    let [left, right] = operand_sizes(kernel);
    let (rows, sides) = (contents.rows(p.offsets, p.rows), [&p.left, &p.right].map(|from| from.columns as usize));
    let experts = f64::from(p.experts);
    let [m, n] = sides.map(|side| side as f64);
    let gradients = experts * m * n * written(p.out_f32, p.beta, left.min(right));
    let tiles = tiles_of(experts, sides, tile(kernel));
    let depth = rows / experts.max(1.0);
    Product::new(kernel, tiles, depth, [rows * (m * left + n * right), gradients, 2.0 * rows * m * n])
}

fn product(p: &abi::GroupedGemm, kernel: &str, contents: &Contents) -> Product {
    let [size, weight_size] = operand_sizes(kernel);
    let halves = if experts::is_gated(p) { 2 } else { 1 };
    let rows = contents.rows(p.offsets, p.rows) as usize;
    let (experts, columns) = ((p.experts as usize).max(1), p.columns as usize);
    let of_experts = |experts: usize, rows: usize| tiles_of(experts as f64, [rows, columns * halves], tile(kernel));
    let more = rows % experts;
    let mut tiles = of_experts(more, rows / experts + 1);
    tiles.extend(of_experts(experts - more, rows / experts));

    let weights = (experts.min(rows) * columns * halves) as f64 * f64::from(p.depth);
    // What is not f32 is of the weights' type.
    let out_size = if p.out_f32 == 0 { weight_size } else { 4.0 };
    let hidden_size = match (p.hidden.is_null(), p.hidden_f32) {
        (true, _) => 0.0,
        (false, 0) => weight_size,
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
        let work = |p: abi::WeightGradient, kernel| p.work(&Launch::linear(kernel, 1, 256), &CONTENTS);
        let gradient = work(p, "grouped_gemm_bf16_tn");
        assert_eq!(gradient.operations, 2.0 * 1000.0 * 256.0 * 512.0);
        assert_eq!(gradient.bytes, 2.0 * (1000.0 * 768.0 + 8.0 * 256.0 * 512.0));
        assert_eq!(gradient.tiles, 8 * 2 * 2);
        // Every tile reads 128 columns of one factor and 256 of the other.
        let factors = 2.0 * 1000.0 * (4.0 * 128.0 + 4.0 * 256.0);
        assert_eq!(gradient.l2_bytes, factors + 2.0 * 8.0 * 256.0 * 512.0);
        // Sums that go on are read too.
        let more = work(abi::WeightGradient { beta: 1.0, out_f32: 1, ..p }, "grouped_gemm_bf16_tn");
        assert_eq!(more.bytes - gradient.bytes, 6.0 * 8.0 * 256.0 * 512.0);
        let mixed = work(p, "grouped_gemm_f32_tn_bf16_rows");
        assert_eq!(
            (mixed.bytes, mixed.tiles),
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
        let gradient = p.work(&Launch::linear("grouped_gemm_bf16_dh", 1, 256), &CONTENTS);
        assert_eq!(gradient.operations, 2.0 * 1000.0 * 256.0 * 512.0);
        let elements = 1000.0 * 512.0;
        let hidden = elements * 2.0 * 6.0;
        assert_eq!(gradient.bytes, 2.0 * (256.0 * 512.0 + 1000.0 * 256.0 + elements) + hidden);
        // Seven tiles of 128 rows and one of 104, of two columns of tiles.
        assert_eq!(gradient.l2_bytes, 2.0 * 256.0 * (2.0 * 1000.0 + 8.0 * 512.0) + 2.0 * elements + hidden);
    }

    #[test]
    fn operands_of_f32_products_may_be_of_half_the_size() {
        assert_eq!(operand_sizes("grouped_gemm_f32_plain_bf16_rows"), [2.0, 4.0]);
        assert_eq!(operand_sizes("grouped_gemm_f32_nn_f16_weights"), [4.0, 2.0]);
        assert_eq!(operand_sizes("grouped_gemm_f32_tn_f16_rows"), [4.0, 2.0]);
        assert_eq!([operand_sizes("grouped_gemm_f32_nn"), operand_sizes("grouped_gemm_tf32_plain")], [[4.0; 2]; 2]);
        assert_eq!(operand_sizes("grouped_gemm_bf16_tn_any"), [2.0; 2]);
        assert_eq!(operand_sizes("grouped_gemm_tf32_nn_f16_weights_any"), [4.0, 2.0]);
        assert_eq!(operand_sizes("grouped_gemm_tf32_tn_f16_rows"), [4.0, 2.0]);
        assert_eq!(operand_sizes("grouped_gemm_tf32_tn_f16_left_any"), [2.0, 4.0]);
        assert_eq!(unit("grouped_gemm_tf32_tn_f16_left"), Unit::Tensor32);
    }
}
