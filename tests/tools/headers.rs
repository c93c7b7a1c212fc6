//! The figures in the header comments of the products are those of the cost model: for marin (T 8192, 16384 rows, D 2048, F
//! 3072, swiglu, 8 experts), milliseconds that each part of an H100 needs at least.

use da_moe::DType;
use da_moe::cuda::cost::{Bound, Contents, Machine};
use da_moe::cuda::launch::experts::{self, Factors, Operands};
use da_moe::cuda::launch::gradient_products;
use da_moe::cuda::{Architecture, Call, Target, abi};
use std::path::Path;
use std::ptr::{without_provenance, without_provenance_mut};

const TOKENS: i32 = 8192;
const ROWS: i32 = 16384;
const HIDDEN: i32 = 2048;
const WIDTH: i32 = 3072;
const EXPERTS: i32 = 8;
/// Any address that is not null.
const ADDRESS: usize = 256;

/// `[depth, columns]`.
fn product([depth, columns]: [i32; 2], activation: i32) -> abi::GroupedGemm {
    abi::GroupedGemm {
        offsets: without_provenance(ADDRESS),
        rows: ROWS,
        a_rows: ROWS,
        experts: EXPERTS,
        depth,
        columns,
        a_stride: i64::from(depth),
        b_stride: i64::from(depth),
        activation,
        ..Default::default()
    }
}

fn operand(columns: i32) -> abi::RoutedOperand {
    abi::RoutedOperand { columns, stride: i64::from(columns), ..Default::default() }
}

fn gradient([left, right]: [i32; 2]) -> abi::WeightGradient {
    let (left, right) = (operand(left), operand(right));
    abi::WeightGradient {
        left,
        right,
        offsets: without_provenance(ADDRESS),
        rows: ROWS,
        experts: EXPERTS,
        ..Default::default()
    }
}

/// A line of a header: what the launches take of memory, L2, shared memory, issue and units.
fn line(name: &str, calls: impl IntoIterator<Item = Call>) -> String {
    let contents = Contents { rows: ROWS as usize, pairs: 0.0 };
    let mut sums = [0.0; 5];
    for call in calls {
        let floors = Machine::H100.floors(&call.work(&contents));
        assert_eq!(
            floors.map(|(part, _)| part),
            [Bound::Bytes, Bound::L2, Bound::Shared, Bound::Issue, Bound::Operations]
        );
        sums.iter_mut().zip(floors).for_each(|(sum, (_, seconds))| *sum += seconds * 1e3);
    }
    let cells: String = sums.iter().map(|milliseconds| format!("{milliseconds:>8.2}")).collect();
    format!("//   {name:<12}{cells}")
}

fn assert_says(file: &str, lines: &[String]) {
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels").join(file)).expect("a kernel");
    let block = lines.join("\n");
    assert!(text.contains(&block), "{file} says something else than\n{block}");
}

/// An H100 by the kernels that every architecture has.
const PORTABLE: Target = Target { architecture: Architecture::Portable, ..Target::H100 };

const TITLE: &str = "//                 memory      L2   banks   issue   units";

/// The two products of forward, by the kernels of a target.
fn there(target: Target, dtype: DType) -> [Vec<Call>; 2] {
    let sides = [([HIDDEN, WIDTH], abi::ACTIVATION_SWIGLU), ([WIDTH, HIDDEN], abi::ACTIVATION_NONE)];
    sides.map(|([depth, columns], activation)| {
        let p = product([depth, columns], activation);
        let b_expert_stride = 2 * i64::from(depth) * i64::from(columns);
        let p = abi::GroupedGemm { out_stride: i64::from(columns), b_expert_stride, ..p };
        experts::calls(target, dtype, Factors::F32, p).collect()
    })
}

#[test]
fn forward() {
    let ([first, second], [first_f32, second_f32]) = (there(PORTABLE, DType::Bf16), there(PORTABLE, DType::F32));
    let lines = [
        TITLE.into(),
        line("W_in, bf16", first),
        line("W_out, bf16", second),
        line("W_in, f32", first_f32),
        line("W_out, f32", second_f32),
    ];
    assert_says("experts/portable/grouped_gemm.cu", &lines);
    let [first, second] = there(Target::H100, DType::Bf16);
    let lines = [TITLE.into(), line("W_in, bf16", first), line("W_out, bf16", second)];
    assert_says("experts/hopper/grouped_gemm_hopper.cu", &lines);
}

#[test]
fn way_back() {
    let da = product([HIDDEN, WIDTH], abi::ACTIVATION_SWIGLU);
    // Rows, and h, are of the storage type in bf16.
    let da_bf16 = abi::HiddenGradient { product: da, ..Default::default() };
    let da = abi::HiddenGradient { product: abi::GroupedGemm { hidden_f32: 1, ..da }, ..Default::default() };
    let dx_bf16 = product([2 * WIDTH, HIDDEN], abi::ACTIVATION_NONE);
    let dx = abi::GroupedGemm { out_f32: 1, ..dx_bf16 };
    let of_f16 = Operands { rows: DType::F32, weights: DType::F16 };
    let lines = [
        TITLE.into(),
        line("da, bf16", gradient_products::hidden_gradient(Target::H100, DType::Bf16, da_bf16)),
        line("dx, bf16", gradient_products::across(Target::H100, DType::Bf16, Factors::F32, dx_bf16)),
        line("da, f16", gradient_products::hidden_gradient(Target::H100, DType::F16, da)),
        line("dx, f16", gradient_products::across(Target::H100, of_f16, Factors::Tf32, dx)),
        line("da, f32", gradient_products::hidden_gradient(Target::H100, DType::F32, da)),
        line("dx, f32", gradient_products::across(Target::H100, DType::F32, Factors::F32, dx)),
    ];
    assert_says("experts/portable/grouped_gemm_back.cu", &lines);
}

#[test]
fn weights() {
    let with = |types, sides| gradient_products::weight_gradient(Target::H100, types, Factors::Tf32, gradient(sides));
    let of = |dtype, sides| with([dtype; 2], sides);
    let router =
        abi::WeightGradient { offsets: std::ptr::null(), rows: TOKENS, experts: 1, ..gradient([EXPERTS, HIDDEN]) };
    let parts = without_provenance_mut(ADDRESS);
    let lines = [
        TITLE.into(),
        line("dW_in, bf16", of(DType::Bf16, [2 * WIDTH, HIDDEN])),
        line("dW_out, bf16", of(DType::Bf16, [HIDDEN, WIDTH])),
        line("dW_in, f16", with([DType::F32, DType::F16], [2 * WIDTH, HIDDEN])),
        line("dW_out, f16", with([DType::F16, DType::F32], [HIDDEN, WIDTH])),
        line("dW_in, f32", of(DType::F32, [2 * WIDTH, HIDDEN])),
        line("dW_out, f32", of(DType::F32, [HIDDEN, WIDTH])),
        line("dW_r, bf16 x", gradient_products::divided_weight_gradient(Target::H100, DType::Bf16, router, parts)),
    ];
    assert_says("experts/portable/weight_gradient.cu", &lines);
}
