//! Which products run on Hopper's own kernels, and how many clusters (`kernels/experts/hopper`).

use crate::DType;
use crate::cuda::abi;
use crate::cuda::device::tensor_map::BOX_BYTES;
use crate::cuda::device::{Architecture, Call, Elements, Launch, Target, TensorBoxes};
use crate::cuda::launch::experts::{Operands, is_gated, ragged_experts};

/// Of a block: one warpgroup that brings, two that multiply.
const THREADS: u32 = 384;
/// Of a cluster.
const BLOCKS: usize = 2;
/// Rows of weights that a block fetches at a time, for both blocks.
const WEIGHT_ROWS: u32 = 128;
/// Rows that a warpgroup multiplies and stores.
const ROWS: u32 = 64;
/// Columns below which a product with f32 output is left to the portable kernels: the router of few experts, for which most
/// of a unit would be nothing.
const FEWEST_F32_COLUMNS: i32 = 128;

/// The product by wgmma and the tensor memory accelerator, if the device has them and the operands are as these want them:
/// 16-bit, all rows and matrices at multiples of 16 bytes. What only the device knows decides nothing.
pub(super) fn call(target: Target, operands: Operands, p: &abi::GroupedGemm) -> Option<Call> {
    let gated = is_gated(p);
    let kernel = kernel(operands, gated, p.row_token.is_null())?;
    let is_f32 = p.out_f32 != 0;
    // In f32 rows leave without an activation, and where most of a unit is used.
    let fits = !is_f32 || !gated && p.activation == abi::ACTIVATION_NONE && p.columns >= FEWEST_F32_COLUMNS;
    let clusters = most_units(gated, p).min((target.multiprocessors / BLOCKS).max(1));
    let maps = [Some(weights(gated, p)), packed(p), Some(out(p)), hidden(gated, p)];
    let are_mapped = is_aligned(p) && maps.iter().flatten().all(strides_nest);
    if target.architecture != Architecture::Hopper || !fits || !are_mapped || clusters == 0 {
        return None;
    }
    let grid = [(BLOCKS * clusters) as u32, 1, 1];
    let shared = abi::HOPPER_SHARED_BYTES as u32;
    let launch = Launch { kernel, grid, threads: THREADS, shared, cluster: BLOCKS as u32 };
    Some(Call::with_maps(launch, abi::HopperGemm { product: *p, ..Default::default() }, maps))
}

/// The same call by a kernel that also tells where its clocks go, if there is one: `clocks` is the address of `[blocks, HOPPER_CLOCKS]`
/// i64. For who measures.
pub fn clocked(call: &Call, clocks: u64) -> Option<Call> {
    let p = *call.parameters::<abi::HopperGemm>()?;
    let kernel = match call.launch.kernel {
        "grouped_gemm_bf16_gated_gathered_hopper" => "grouped_gemm_bf16_gated_gathered_hopper_clocked",
        "grouped_gemm_bf16_plain_packed_hopper" => "grouped_gemm_bf16_plain_packed_hopper_clocked",
        _ => return None,
    };
    let p = abi::HopperGemm { clocks: clocks as *mut i64, ..p };
    Some(Call::with_maps(Launch { kernel, ..call.launch }, p, call.all_maps()))
}

fn kernel(Operands { rows, weights }: Operands, gated: bool, packed: bool) -> Option<&'static str> {
    match (rows, weights, gated, packed) {
        (DType::Bf16, DType::Bf16, false, false) => Some("grouped_gemm_bf16_plain_gathered_hopper"),
        (DType::Bf16, DType::Bf16, true, false) => Some("grouped_gemm_bf16_gated_gathered_hopper"),
        (DType::Bf16, DType::Bf16, false, true) => Some("grouped_gemm_bf16_plain_packed_hopper"),
        (DType::Bf16, DType::Bf16, true, true) => Some("grouped_gemm_bf16_gated_packed_hopper"),
        (DType::F16, DType::F16, false, false) => Some("grouped_gemm_f16_plain_gathered_hopper"),
        (DType::F16, DType::F16, true, false) => Some("grouped_gemm_f16_gated_gathered_hopper"),
        (DType::F16, DType::F16, false, true) => Some("grouped_gemm_f16_plain_packed_hopper"),
        (DType::F16, DType::F16, true, true) => Some("grouped_gemm_f16_gated_packed_hopper"),
        _ => None,
    }
}

/// Units that there are when every expert's rows end in a unit of their own.
fn most_units(gated: bool, p: &abi::GroupedGemm) -> usize {
    let width = abi::HOPPER_TILE_COLUMNS as usize / if gated { 2 } else { 1 };
    let rows = p.rows as usize;
    (rows / abi::HOPPER_TILE_ROWS as usize + ragged_experts(p)) * (p.columns as usize).div_ceil(width)
}

/// Whether every row of every matrix starts at a multiple of 16 bytes. A stride is asked for only where it is taken.
fn is_aligned(p: &abi::GroupedGemm) -> bool {
    const HALF: i64 = 2;
    let size_of = |is_f32: i32| if is_f32 == 0 { HALF } else { 4 };
    let addresses = [p.a as usize, p.b as usize, p.out as usize, p.hidden as usize];
    let distances = [
        i64::from(p.depth) * HALF,
        i64::from(p.columns) * HALF,
        p.a_stride * HALF,
        p.b_stride * HALF,
        if p.experts > 1 { p.b_expert_stride * HALF } else { 16 },
        p.out_stride * size_of(p.out_f32),
        if p.hidden.is_null() { 16 } else { p.hidden_stride * size_of(p.hidden_f32) },
    ];
    addresses.iter().all(|address| address.is_multiple_of(16))
        // What a map takes: positive, below 2⁴⁰.
        && distances.iter().all(|&bytes| bytes > 0 && bytes % 16 == 0 && bytes < 1 << 40)
}

/// Whether each stride is a multiple of the one before, as the driver's documentation has it.
fn strides_nest(boxes: &TensorBoxes) -> bool {
    let strides = &boxes.strides[..boxes.rank - 1];
    strides.windows(2).all(|pair| pair[0] > 0 && pair[1].is_multiple_of(pair[0]))
}

fn weights(gated: bool, p: &abi::GroupedGemm) -> TensorBoxes {
    let halves = if gated { 2 } else { 1 };
    let row = p.b_stride as u64 * 2;
    let half = row * p.columns as u64;
    let expert = if p.experts > 1 { p.b_expert_stride as u64 * 2 } else { halves * half };
    TensorBoxes {
        address: p.b as u64,
        elements: Elements::Half,
        rank: 4,
        extents: [p.depth as u64, p.columns as u64, halves, p.experts as u64],
        // One half is no step from anywhere.
        strides: [row, if gated { half } else { expert }, expert],
        heights: [WEIGHT_ROWS, 1, 1],
    }
}

/// Rows of A, unless they are gathered.
fn packed(p: &abi::GroupedGemm) -> Option<TensorBoxes> {
    p.row_token.is_null().then(|| TensorBoxes {
        address: p.a as u64,
        elements: Elements::Half,
        rank: 2,
        extents: [p.depth as u64, p.a_rows as u64, 1, 1],
        strides: [p.a_stride as u64 * 2, 0, 0],
        heights: [ROWS, 1, 1],
    })
}

fn out(p: &abi::GroupedGemm) -> TensorBoxes {
    written(p, p.out as u64, 1, p.out_stride, p.out_f32)
}

fn hidden(gated: bool, p: &abi::GroupedGemm) -> Option<TensorBoxes> {
    let halves = if gated { 2 } else { 1 };
    (!p.hidden.is_null()).then(|| written(p, p.hidden as u64, halves, p.hidden_stride, p.hidden_f32))
}

/// Rows of one or two times as many columns as the product has; a box ends where a half does.
fn written(p: &abi::GroupedGemm, address: u64, halves: u64, stride: i64, is_f32: i32) -> TensorBoxes {
    let elements = if is_f32 == 0 { Elements::Half } else { Elements::Float };
    let size = u64::from(elements.size());
    let row = stride as u64 * size;
    TensorBoxes {
        address,
        elements,
        rank: 3,
        extents: [p.columns as u64, halves, p.rows as u64, 1],
        strides: [if halves == 1 { row } else { p.columns as u64 * size }, row, 0],
        heights: [1, ROWS, 1],
    }
}

const _: () = assert!(BOX_BYTES == 2 * ROWS, "a step of the depth is a box wide");

#[cfg(test)]
mod tests {
    use super::*;
    use std::ptr::without_provenance;

    /// Marin's first product.
    fn up() -> abi::GroupedGemm {
        abi::GroupedGemm {
            a: without_provenance(256),
            b: without_provenance(512),
            out: without_provenance::<u8>(1024).cast_mut().cast(),
            offsets: without_provenance(768),
            row_token: without_provenance(772),
            a_stride: 2048,
            b_stride: 2048,
            b_expert_stride: 2048 * 6144,
            out_stride: 3072,
            rows: 16384,
            a_rows: 8192,
            experts: 8,
            depth: 2048,
            columns: 3072,
            activation: abi::ACTIVATION_SWIGLU,
            ..Default::default()
        }
    }

    fn launch(p: abi::GroupedGemm) -> Option<Launch> {
        call(Target::H100, DType::Bf16.into(), &p).map(|call| call.launch)
    }

    #[test]
    fn a_cluster_for_two_multiprocessors() {
        let marin = launch(up()).unwrap();
        assert_eq!((marin.kernel, marin.grid), ("grouped_gemm_bf16_gated_gathered_hopper", [132, 1, 1]));
        // At most one unit for each of three rows, of one column of units.
        let few = abi::GroupedGemm { rows: 3, columns: 128, ..up() };
        assert_eq!(launch(few).unwrap().grid, [6, 1, 1]);
        assert!(launch(abi::GroupedGemm { rows: 0, ..up() }).is_none());
        let small = Target { multiprocessors: 1, ..Target::H100 };
        assert_eq!(call(small, DType::F16.into(), &up()).unwrap().launch.grid, [2, 1, 1]);
    }

    #[test]
    fn what_the_accelerator_cannot_address_is_left_to_the_portable_kernels() {
        let hidden = |stride, is_f32| abi::GroupedGemm {
            hidden: without_provenance::<u8>(2048).cast_mut().cast(),
            hidden_stride: stride,
            hidden_f32: is_f32,
            ..up()
        };
        for good in [hidden(6144, 0), hidden(9216, 1), abi::GroupedGemm { depth: 8, columns: 8, ..up() }] {
            assert!(launch(good).is_some());
        }
        let odd = without_provenance::<u8>(264).cast_mut();
        let refused = [
            abi::GroupedGemm { a: odd.cast(), ..up() },
            abi::GroupedGemm { b: odd.cast(), ..up() },
            abi::GroupedGemm { out: odd.cast(), ..up() },
            abi::GroupedGemm { hidden: odd.cast(), ..hidden(6144, 0) },
            abi::GroupedGemm { a_stride: 2052, ..up() },
            abi::GroupedGemm { b_stride: 2052, ..up() },
            abi::GroupedGemm { b_expert_stride: 2048 * 6144 + 4, ..up() },
            abi::GroupedGemm { out_stride: 3076, ..up() },
            abi::GroupedGemm { depth: 2044, ..up() },
            abi::GroupedGemm { columns: 3068, ..up() },
            hidden(6148, 0),
            hidden(6146, 1),
            // No multiple of a half of a row, of a half of an expert.
            hidden(6152, 0),
            abi::GroupedGemm { b_expert_stride: 2048 * 6144 + 64, ..up() },
            // Activated rows are of the storage type.
            abi::GroupedGemm { out_f32: 1, ..up() },
            abi::GroupedGemm { out_f32: 1, activation: abi::ACTIVATION_GELU, ..up() },
            abi::GroupedGemm { out_f32: 1, activation: abi::ACTIVATION_NONE, columns: 64, ..up() },
        ];
        for (number, p) in refused.into_iter().enumerate() {
            assert!(launch(p).is_none(), "{number}");
        }
        let portable = Target { architecture: Architecture::Portable, ..Target::H100 };
        assert!(call(portable, DType::Bf16.into(), &up()).is_none());
        assert!(call(Target::H100, DType::F32.into(), &up()).is_none());
        let mixed = Operands { rows: DType::Bf16, weights: DType::F32 };
        assert!(call(Target::H100, mixed, &up()).is_none());
    }

    #[test]
    fn maps_say_where_matrices_are() {
        let p = abi::GroupedGemm {
            hidden: without_provenance::<u8>(4096).cast_mut().cast(),
            hidden_stride: 6144,
            hidden_f32: 1,
            ..up()
        };
        let first = call(Target::H100, DType::Bf16.into(), &p).unwrap();
        let [weights, out, hidden] = first.maps().copied().collect::<Vec<_>>().try_into().unwrap();
        assert_eq!(
            (weights.address, weights.extents, weights.box_extents()),
            (512, [2048, 3072, 2, 8], [64, 128, 1, 1])
        );
        // All of the matrices and nothing behind them.
        assert_eq!(weights.bytes(), 8 * 6144 * 2048 * 2);
        assert_eq!(
            (out.extents, out.bytes(), out.box_extents()),
            ([3072, 1, 16384, 1], 16384 * 3072 * 2, [64, 1, 64, 1])
        );
        assert_eq!((hidden.extents, hidden.bytes()), ([3072, 2, 16384, 1], 16384 * 6144 * 4));
        assert_eq!((hidden.box_extents(), hidden.elements), ([32, 1, 64, 1], Elements::Float));
        let second = abi::GroupedGemm { row_token: std::ptr::null(), activation: abi::ACTIVATION_NONE, ..up() };
        let second = call(Target::H100, DType::F16.into(), &second).unwrap();
        assert_eq!(second.launch.kernel, "grouped_gemm_f16_plain_packed_hopper");
        let a = second.maps().nth(1).copied().unwrap();
        assert_eq!((a.address, a.extents, a.box_extents()), (256, [2048, 8192, 1, 1], [64, 64, 1, 1]));
    }
}
