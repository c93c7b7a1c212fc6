//! What a launch costs at least, by arithmetic alone: the bytes that it has to move, the operations that are of use, and
//! the time that a machine of known rates needs for them. A model to hold measurements against, not a measurement.

mod machine;
mod products;
mod tiles;

use crate::cuda::abi;
pub use crate::cuda::cost::machine::{Bound, Machine};
use crate::cuda::cost::products::{Product, hidden_gradient, product, routed, weight_gradient, written};
use crate::cuda::device::{Call, Parameters};

/// What a launch does, whatever machine does it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Read from memory and written to it when nothing is read twice.
    pub bytes: f64,
    /// Multiplications and additions of use: padding and bookkeeping do not count.
    pub operations: f64,
    /// What the operations run on.
    pub unit: Unit,
    /// Pieces that the work is cut into: tiles of a product, else blocks.
    pub tiles: u64,
    /// Bytes that multiprocessors read and write: what is read by several counts for each.
    pub l2_bytes: f64,
    /// Wavefronts of shared memory, in products.
    pub wavefronts: f64,
    /// Instructions of warps that are issued in products' main loops.
    pub instructions: f64,
}

impl From<Product> for Work {
    fn from(product: Product) -> Self {
        Self {
            bytes: product.bytes(),
            operations: product.operations,
            unit: Unit::Scalar,
            tiles: product.tiles(),
            l2_bytes: product.l2_bytes(),
            wavefronts: product.wavefronts(),
            instructions: product.instructions(),
        }
    }
}

/// What multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Tensor cores on 16-bit factors.
    Tensor16,
    /// Tensor cores on TF32 factors.
    Tensor32,
    /// The ordinary f32 units.
    Scalar,
}

impl Unit {
    /// By the kernel's name: what multiplies matrices says the type of its factors.
    pub(in crate::cuda) fn of(kernel: &str) -> Self {
        let multiplies = ["grouped_gemm_", "importance_query_key_"].iter().any(|family| kernel.starts_with(family));
        match kernel {
            _ if !multiplies => Unit::Scalar,
            _ if kernel.contains("tf32") => Unit::Tensor32,
            // Whatever the type of the rows.
            _ if kernel.starts_with("grouped_gemm_f32_") => Unit::Scalar,
            _ if kernel.contains("f16") => Unit::Tensor16,
            _ => Unit::Scalar,
        }
    }
}

/// What the parameters of a launch do not say, because only the device knows it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Contents {
    /// R, routed rows, spread evenly over the experts.
    pub rows: usize,
    /// Pairs of query and key, over all sequences, of one head.
    pub pairs: f64,
}

/// The work of a launch on such contents.
pub fn work(call: &Call, contents: &Contents) -> Work {
    let kernel = call.launch.kernel;
    let product = match &call.parameters {
        Parameters::GroupedGemm(p) => product(p, kernel, contents),
        Parameters::HiddenGradient(p) => hidden_gradient(p, kernel, contents),
        Parameters::WeightGradient(p) => weight_gradient(p, kernel, contents),
        _ => return other(call, contents),
    };
    Work { unit: Unit::of(kernel), ..product.into() }
}

/// Of a launch that is no grouped product.
fn other(call: &Call, contents: &Contents) -> Work {
    let (launch, of_launch) = (&call.launch, call.launch.grid.iter().map(|blocks| u64::from(*blocks)).product());
    // Both 16-bit types have "f16" in their names.
    let size = if launch.kernel.contains("f16") { 2.0 } else { 4.0 };
    let heads = f64::from(launch.grid[1]);
    let (bytes, operations, tiles) = match &call.parameters {
        Parameters::ImportanceProbabilities(p) => {
            let matrix = heads * contents.pairs * causal(p.causal) * size;
            (matrix + 4.0 * heads * f64::from(p.tokens), 0.0, of_launch)
        }
        Parameters::ImportanceQueryKey(p) => query_key(p, launch.kernel, heads, size, contents),
        Parameters::ImportanceRouterEntropy(p) => {
            (4.0 * f64::from(p.tokens) * (f64::from(p.candidates) + 1.0), 0.0, of_launch)
        }
        Parameters::ImportanceReduce(p) => (4.0 * f64::from(p.tokens) * (f64::from(p.heads) + 1.0), 0.0, of_launch),
        Parameters::ImportanceNormalize(p) => (8.0 * f64::from(p.tokens), 0.0, of_launch),
        Parameters::ImportanceRunning(p) => (8.0 * f64::from(p.tokens), 0.0, of_launch),
        // Three digits, ties and the counts, each over every token; the last writes.
        Parameters::Budget(p) if launch.kernel == "budget_assign" => (8.0 * f64::from(p.tokens), 0.0, of_launch),
        Parameters::Budget(p) => (4.0 * f64::from(p.tokens), 0.0, of_launch),
        Parameters::Gate(p) => {
            (f64::from(p.tokens) * (4.0 * f64::from(p.candidates) + selection(p.k_max)), 0.0, of_launch)
        }
        Parameters::GivenRouting(p) => {
            let given = f64::from(p.entries).max(f64::from(p.tokens) * f64::from(p.columns));
            (8.0 * given + f64::from(p.tokens) * selection(p.k_max), 0.0, of_launch)
        }
        Parameters::GateBias(p) => (12.0 * f64::from(p.candidates), 0.0, of_launch),
        Parameters::Permute(p) => {
            let bytes = if launch.kernel == "permute_count" { 4.0 } else { 20.0 };
            (bytes * f64::from(p.tokens) * f64::from(p.slots), 0.0, of_launch)
        }
        Parameters::GroupedGemm(_) | Parameters::HiddenGradient(_) | Parameters::WeightGradient(_) => {
            unreachable!("{} is a product", launch.kernel)
        }
        Parameters::RowWeightGradient(p) => {
            let dy = if p.bias.is_null() { 0.0 } else { f64::from(p.width) * size };
            (routed(p.offsets, p.rows, contents) * (4.0 * (f64::from(p.part_count) + 1.0) + dy), 0.0, of_launch)
        }
        Parameters::WeightGradientSum(p) => {
            let of_element = 4.0 * f64::from(p.part_count) + written(p.out_f32, p.beta, size);
            (p.elements as f64 * of_element, 0.0, of_launch)
        }
        Parameters::BiasGradient(p) => {
            let columns = f64::from(p.from.columns);
            let rows = routed(p.offsets, p.rows, contents) * columns * size;
            (rows + f64::from(p.experts) * columns * written(p.out_f32, p.beta, size), 0.0, of_launch)
        }
        Parameters::PermuteUnmasked(p) => (9.0 * f64::from(p.tokens), 0.0, of_launch),
        Parameters::Combine(p) => {
            let rows = contents.rows.min(p.row_count as usize) as f64;
            let table = 12.0 * f64::from(p.tokens) * f64::from(p.slots);
            ((rows + f64::from(p.tokens)) * f64::from(p.width) * size + table, 0.0, of_launch)
        }
        Parameters::CombineBackward(p) => (combine_backward(p, launch.kernel, size), 0.0, of_launch),
        Parameters::PermuteBackward(p) => (permute_backward(p, contents), 0.0, of_launch),
        Parameters::GateBackward(p) => {
            let reads = if p.divisor == abi::DIVISOR_CANDIDATES { 12.0 } else { 8.0 };
            let of_token = 8.0 * f64::from(p.candidates) + reads * f64::from(p.slots);
            (f64::from(p.tokens) * of_token, 0.0, of_launch)
        }
        Parameters::GateDx(p) => {
            let reads = if p.of_router.is_null() { 4.0 } else { 8.0 };
            (f64::from(p.tokens) * f64::from(p.width) * (reads + size), 0.0, of_launch)
        }
        Parameters::RoutingBackward(p) => {
            let given = f64::from(p.entries).max(f64::from(p.tokens) * f64::from(p.columns));
            (8.0 * f64::from(p.tokens) * f64::from(p.slots) + 4.0 * given, 0.0, of_launch)
        }
    };
    let unit = Unit::of(launch.kernel);
    Work { bytes, operations, unit, tiles, l2_bytes: bytes, wavefronts: 0.0, instructions: 0.0 }
}

/// Bytes of the gradient of null experts when none is chosen: ids in, zeros out.
fn combine_backward(p: &abi::CombineBackward, kernel: &str, size: f64) -> f64 {
    let slots = f64::from(p.tokens) * f64::from(p.slots);
    if kernel.starts_with("combine_constants") {
        return 4.0 * slots + f64::from(p.gradients) * f64::from(p.width) * size;
    }
    8.0 * slots
}

fn permute_backward(p: &abi::PermuteBackward, contents: &Contents) -> f64 {
    let rows = contents.rows.min(p.row_count as usize) as f64;
    let shared = if p.shared_dx.is_null() { 0.0 } else { 1.0 };
    let tokens = f64::from(p.tokens);
    4.0 * (rows + tokens * (1.0 + shared)) * f64::from(p.width) + 16.0 * tokens * f64::from(p.slots)
}

/// The part of a matrix of scores that a causal mask leaves.
fn causal(causal: i32) -> f64 {
    if causal == 0 { 1.0 } else { 0.5 }
}

/// Bytes of a token's selection: experts, weights and their order, and k.
fn selection(k_max: i32) -> f64 {
    4.0 * (3.0 * f64::from(k_max) + 1.0)
}

fn query_key(p: &abi::ImportanceQueryKey, kernel: &str, heads: f64, size: f64, contents: &Contents) -> (f64, f64, u64) {
    let (tokens, width) = (f64::from(p.tokens), f64::from(p.width));
    let key_heads = heads / f64::from(p.heads_per_key.max(1));
    let values = if p.lse.is_null() { 4.0 } else { 8.0 };
    let bytes = tokens * ((heads + key_heads) * width * size + heads * values);
    // Either every query meets every key that it sees, or its own.
    let own = kernel.starts_with("importance_own_key_");
    let products = if own { tokens } else { contents.pairs * causal(p.causal) };
    (bytes, 2.0 * width * heads * products, (tokens / TILE_ROWS).ceil() as u64 * heads as u64)
}

/// Rows of one tile of queries or keys.
const TILE_ROWS: f64 = 128.0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::device::Launch;
    use crate::cuda::launch::experts::{self, Factors};
    use crate::cuda::launch::gate;
    use crate::cuda::launch::gate_backward;
    use crate::cuda::launch::permute;
    use crate::{DType, LayerConfig};
    use std::ptr::without_provenance;

    const CONTENTS: Contents = Contents { rows: 1000, pairs: 4096.0 * 4096.0 };

    fn gemm(activation: i32) -> abi::GroupedGemm {
        abi::GroupedGemm {
            offsets: without_provenance(256),
            rows: 4000,
            experts: 8,
            depth: 256,
            columns: 512,
            activation,
            a_stride: 256,
            b_stride: 256,
            b_expert_stride: 256,
            ..Default::default()
        }
    }

    fn work_of(storage: DType, factors: Factors, p: abi::GroupedGemm) -> Work {
        work(&experts::calls(storage, factors, 132, p).next().unwrap(), &CONTENTS)
    }

    #[test]
    fn a_product_counts_rows_that_there_are_and_weights_once() {
        let plain = work_of(DType::Bf16, Factors::F32, gemm(abi::ACTIVATION_NONE));
        assert_eq!(plain.operations, 2.0 * 1000.0 * 256.0 * 512.0);
        assert_eq!(plain.bytes, 2.0 * (8.0 * 512.0 * 256.0 + 1000.0 * 256.0 + 1000.0 * 512.0));
        let gated = work_of(DType::Bf16, Factors::F32, gemm(abi::ACTIVATION_SWIGLU));
        assert_eq!(gated.operations, 2.0 * plain.operations);
        // 125 rows an expert are one tile high, 512 columns two wide, of both halves four.
        assert_eq!((plain.tiles, gated.tiles), (8 * 2, 8 * 4));
        let kept = abi::GroupedGemm {
            hidden: without_provenance::<u8>(256).cast_mut().cast(),
            ..gemm(abi::ACTIVATION_SWIGLU)
        };
        assert_eq!(work_of(DType::F16, Factors::F32, kept).bytes - gated.bytes, 2.0 * 1000.0 * 1024.0);
        // Fewer rows than experts leave weights unread.
        let few = abi::GroupedGemm { rows: 3, ..gemm(abi::ACTIVATION_NONE) };
        assert_eq!(
            work_of(DType::F32, Factors::F32, few).bytes,
            4.0 * (3.0 * 512.0 * 256.0 + 3.0 * 256.0 + 3.0 * 512.0)
        );
    }

    #[test]
    fn units_follow_the_kernels() {
        let unit = |storage, factors| work_of(storage, factors, gemm(abi::ACTIVATION_NONE)).unit;
        assert_eq!(unit(DType::Bf16, Factors::F32), Unit::Tensor16);
        assert_eq!(unit(DType::F32, Factors::F32), Unit::Scalar);
        assert_eq!(unit(DType::F32, Factors::Tf32), Unit::Tensor32);
        assert_eq!(Unit::of("grouped_gemm_f32_plain_bf16_rows"), Unit::Scalar);
        assert_eq!(Unit::of("importance_query_key_f16_64"), Unit::Tensor16);
        assert_eq!(Unit::of("importance_own_key_bf16"), Unit::Scalar);
        let h100 = Machine::H100;
        assert!(h100.rate(Unit::Scalar) < h100.rate(Unit::Tensor32) && h100.rate(Unit::Tensor16) < h100.tensor);
    }

    /// The number of tiles of whole ones is that of blocks where nothing else limits them, but for one ragged row of
    /// tiles that a launch allows for.
    #[test]
    fn tiles_are_those_of_the_launches() {
        for (storage, activation) in [(DType::Bf16, 0), (DType::F32, 0), (DType::Bf16, abi::ACTIVATION_SWIGLU)] {
            let p = abi::GroupedGemm { offsets: std::ptr::null(), rows: 1280, experts: 1, ..gemm(activation) };
            let all = experts::calls(storage, Factors::F32, 1 << 20, p).next().unwrap();
            let tiles = work(&all, &CONTENTS).tiles;
            let columns = tiles / 10;
            assert_eq!(u64::from(all.launch.grid[0]), tiles + columns, "{}", all.launch.kernel);
        }
    }

    #[test]
    fn scores_are_counted_and_never_stored() {
        let call = |kernel, p: abi::ImportanceQueryKey| {
            Call::new(Launch { kernel, grid: [33, 16, 1], threads: 128, shared: 0 }, p)
        };
        let p = abi::ImportanceQueryKey { tokens: 4096, width: 128, heads_per_key: 4, ..Default::default() };
        let walk = work(&call("importance_query_key_bf16_128", p), &CONTENTS);
        assert_eq!(walk.operations, 2.0 * 128.0 * 16.0 * 4096.0 * 4096.0);
        assert_eq!(walk.bytes, 4096.0 * (20.0 * 128.0 * 2.0 + 16.0 * 4.0));
        assert_eq!(walk.tiles, 32 * 16);
        let masked = abi::ImportanceQueryKey { causal: 1, ..p };
        assert_eq!(work(&call("importance_query_key_bf16_128", masked), &CONTENTS).operations, walk.operations / 2.0);
        let own = work(&call("importance_own_key_bf16", p), &CONTENTS);
        assert_eq!((own.operations, own.unit), (2.0 * 128.0 * 16.0 * 4096.0, Unit::Scalar));
    }

    #[test]
    fn small_launches_cost_a_launch() {
        let config = LayerConfig::da_moe(64, 64, 8, 4);
        let gate = gate::calls(gate::parameters(&config, 100, false)).next().unwrap();
        let gate = work(&gate, &CONTENTS);
        assert_eq!(gate.bytes, 100.0 * (4.0 * 8.0 + 4.0 * 13.0));
        let (seconds, bound) = Machine::H100.time(&gate);
        assert!(bound == Bound::Launch && seconds > 3e-6 && seconds < 3.1e-6);
        let plan: Vec<_> =
            permute::calls(permute::parameters(&config, 100)).map(|call| work(&call, &CONTENTS)).collect();
        assert_eq!(plan.iter().map(|work| work.bytes).collect::<Vec<_>>(), [1600.0, 8000.0]);
    }

    #[test]
    fn the_way_back_counts_what_it_moves() {
        let call = |kernel, p: Parameters| {
            work(
                &Call { launch: Launch { kernel, grid: [7, 2, 1], threads: 256, shared: 0 }, parameters: p },
                &CONTENTS,
            )
        };
        let permute = abi::PermuteBackward { tokens: 100, width: 64, slots: 4, row_count: 4000, ..Default::default() };
        let permute = call("permute_backward_bf16_wide", permute.into());
        assert_eq!((permute.bytes, permute.tiles), (4.0 * (1000.0 + 100.0) * 64.0 + 16.0 * 400.0, 14));
        let dx = abi::GateDx { tokens: 100, width: 64, ..Default::default() };
        assert_eq!(call("gate_dx_f16", dx.into()).bytes, 100.0 * 64.0 * 6.0);
        let dx = abi::GateDx { of_router: without_provenance(256), ..dx };
        assert_eq!(call("gate_dx_f32_wide", dx.into()).bytes, 100.0 * 64.0 * 12.0);
        let config = LayerConfig::da_moe(64, 64, 8, 4);
        let gate = gate_backward::calls(gate_backward::parameters(&config, 100, 1.0)).next().unwrap();
        assert_eq!(work(&gate, &CONTENTS).bytes, 100.0 * (8.0 * 8.0 + 12.0 * 4.0));
        let combine = abi::CombineBackward { tokens: 100, slots: 4, gradients: 2, width: 64, ..Default::default() };
        assert_eq!(call("combine_backward_bf16", combine.into()).bytes, 8.0 * 400.0);
        assert_eq!(call("combine_constants_bf16", combine.into()).bytes, 4.0 * 400.0 + 2.0 * 64.0 * 2.0);
        let routing = abi::RoutingBackward { tokens: 100, slots: 4, columns: 3, ..Default::default() };
        assert_eq!(call("routing_backward", routing.into()).bytes, 8.0 * 400.0 + 4.0 * 300.0);
    }
}
