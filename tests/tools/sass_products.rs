//! What ptxas made of the products' main loops: that fragments are on their way while others are multiplied, that nothing
//! stands between the products of a whole tile, how much is issued for them, and that tiles leave 128 bits at a time.
//! A loop that lost this still computes the right numbers, so no other test would notice.
//!
//! Without compiled kernels, or without `cuobjdump` to read them, one line on standard error says that nothing was
//! checked; with `DA_MOE_CUDA=1` that is a failure.

use super::instructions::{Instruction, Listing, listings, machine_code, matches};
use super::ptxas::{blocks, resources};
use super::sass::leaves_by_tma;
use da_moe::DType;
use da_moe::cuda::cost::Contents;
use da_moe::cuda::launch::experts::{self, Factors, Operands};
use da_moe::cuda::launch::gradient_products;
use da_moe::cuda::{Architecture, Call, Target, abi};
use da_moe_harness::machine_code::images;

/// Which kernels there are does not depend on how many multiprocessors.
const ONE: Target = Target { architecture: Architecture::Portable, multiprocessors: 1 };

/// Kernels that have tiles with all of their columns multiplied without a condition; how many instructions they issue at most
/// for one product of fragments, where f32 as TF32 rounds every factor and TF32 beside f16 widens one; and the loads of a half
/// of a step, of matrices and of words.
const WHOLE_TILES: &[(&str, f64, [usize; 2])] = &[
    ("grouped_gemm_*16_plain", 1.6, [8, 0]),
    ("grouped_gemm_*16_gated", 1.6, [8, 0]),
    ("grouped_gemm_*16_nn", 1.6, [8, 0]),
    ("grouped_gemm_*16_dh", 1.6, [8, 0]),
    ("grouped_gemm_*16_tn", 1.6, [8, 0]),
    ("grouped_gemm_tf32_plain", 5.0, [8, 0]),
    ("grouped_gemm_tf32_gated", 5.0, [8, 0]),
    (TF32_NN, 2.0, [6, 0]),
    (TF32_TN[0], 2.4, [2, 16]),
    (TF32_TN[1], 2.4, [2, 16]),
];

/// Products of TF32 beside f16.
const TF32_NN: &str = "grouped_gemm_tf32_nn_f16_weights";
const TF32_TN: [&str; 2] = ["grouped_gemm_tf32_tn_f16_rows", "grouped_gemm_tf32_tn_f16_left"];

/// Instructions for a copy of 16 bytes to shared memory, at most: in the main loop, and before it, where rows are found too.
const MOST_FOR_A_COPY: [f64; 2] = [10.0, 12.0];

/// Products of a half of a step for a warp with four, three, two and one fragments of rows.
const PRODUCTS: [usize; 4] = [32, 24, 16, 8];

/// The kernels that a pattern names: there is one.
fn named<'a>(all: &'a [Listing], pattern: &'a str) -> impl Iterator<Item = &'a Listing> {
    assert!(all.iter().any(|code| matches(&code.kernel, pattern)), "no kernel is named `{pattern}`");
    all.iter().filter(move |code| matches(&code.kernel, pattern))
}

/// Instructions that run one after the other without a jump among them, into them or a wait for other threads.
fn runs(code: &[Instruction]) -> impl Iterator<Item = &[Instruction]> {
    const BREAKS: [&str; 12] =
        ["BRA", "BRX", "JMP", "CALL", "RET", "EXIT", "BSSY", "BSYNC", "BREAK", "WARPSYNC", "BAR", "DEPBAR"];
    let targets: Vec<u32> = code.iter().filter_map(Instruction::target).collect();
    let breaks = move |instruction: &Instruction| BREAKS.contains(&instruction.family());
    code.chunk_by(move |before, after| !breaks(before) && !breaks(after) && !targets.contains(&after.address))
}

fn count(run: &[Instruction], family: &str) -> usize {
    run.iter().filter(|instruction| instruction.family() == family && !instruction.never_runs()).count()
}

/// Products of the same run that are between a load of fragments and the first instruction that wants them, a product of them
/// or what widens them; none if that is in another run.
fn products_before_use(run: &[Instruction], load: usize) -> Option<usize> {
    let first = run[load].register(0)?;
    let loaded = first..first + if run[load].family() == "LDSM" { 4 } else { 1 };
    let rest = &run[load + 1..];
    let wants = |next: &Instruction| {
        let factor = |operand, registers: u32| {
            next.register(operand).is_some_and(|from| from < loaded.end && first < from + registers)
        };
        match next.family() {
            "HMMA" => factor(1, 4) || factor(2, 2),
            _ => loaded.clone().any(|register| next.names(register)),
        }
    };
    rest.iter().position(wants).map(|first| count(&rest[..first], "HMMA"))
}

#[test]
fn nothing_stands_between_the_products_of_a_whole_tile() {
    let Some(all) = machine_code() else { return };
    for (pattern, most, _) in WHOLE_TILES {
        for Listing { kernel, machine, instructions } in named(all, pattern) {
            for products in PRODUCTS {
                let found: Vec<_> = runs(instructions).filter(|run| count(run, "HMMA") == products).collect();
                // One for each half of a step.
                assert!(found.len() >= 2, "{kernel} on {machine}: {} runs of {products} products", found.len());
                for run in found {
                    let issued = run.len() as f64 / products as f64;
                    // What stands beside fewer products is not fewer.
                    let most = most * PRODUCTS[0] as f64 / products as f64;
                    assert!(
                        issued <= most,
                        "{kernel} on {machine}: {issued} instructions for each of {products} products"
                    );
                }
            }
        }
    }
}

#[test]
fn fragments_come_while_others_are_multiplied() {
    let Some(all) = machine_code() else { return };
    for (pattern, _, loads) in WHOLE_TILES {
        for Listing { kernel, machine, instructions } in named(all, pattern) {
            for run in runs(instructions).filter(|run| count(run, "HMMA") == PRODUCTS[0]) {
                assert_eq!([count(run, "LDSM"), count(run, "LDS")], *loads, "{kernel} on {machine}");
                for load in (0..run.len()).filter(|at| ["LDSM", "LDS"].contains(&run[*at].family())) {
                    let before = products_before_use(run, load).unwrap_or(usize::MAX);
                    assert!(before >= 2, "{kernel} on {machine}: {:?}", run[load]);
                }
            }
        }
    }
}

/// Instructions between a step of a whole tile and the next: the loop without what is for other tiles, which are code for
/// fewer rows, for columns at an edge, and for copies of less than whole chunks.
fn of_a_step(code: &[Instruction]) -> usize {
    let all: Vec<_> = runs(code).collect();
    let with = |products: std::ops::Range<usize>| {
        let found = all.iter().filter(|run| products.contains(&count(run, "HMMA")));
        let ends = |run: &&&[Instruction]| [run[0].address, run[run.len() - 1].address];
        found.map(|run| ends(&run)).reduce(|span, run| [span[0], run[1]])
    };
    let [first, last] = with(PRODUCTS[0]..PRODUCTS[0] + 1).expect("products of a whole tile");
    let back =
        |jump: &Instruction| Some([jump.target().filter(|to| *to <= first && jump.address >= last)?, jump.address]);
    let steps = code.iter().filter_map(back).min_by_key(|[from, to]| to - from).expect("a loop of steps");
    let edge = with(1..PRODUCTS[3]).expect("products at an edge");
    let is_within = |run: &[Instruction], [from, to]: [u32; 2]| (from..=to).contains(&run[0].address);
    let is_of_others = |run: &[Instruction]| {
        ![0, PRODUCTS[0]].contains(&count(run, "HMMA"))
            || is_within(run, edge)
            || run.iter().any(|instruction| instruction.has("ZFILL"))
    };
    all.iter().filter(|run| is_within(run, steps) && !is_of_others(run)).map(|run| run.len()).sum()
}

/// A whole tile of the product of a kernel's kind, so many elements deep.
fn whole_tile(kernel: &str, depth: i32) -> Call {
    let [rows, columns] = [abi::GEMM_TILE_ROWS, abi::GEMM_TILE_COLUMNS];
    let tile = abi::GroupedGemm { rows, columns, depth, ..large(abi::ACTIVATION_NONE, 64) };
    let side = |columns| abi::RoutedOperand { columns, stride: 256, ..Default::default() };
    let gradient =
        abi::WeightGradient { left: side(rows), right: side(columns), rows: depth, experts: 1, ..Default::default() };
    let of_f16 = Operands { rows: DType::F32, weights: DType::F16 };
    let tn = |types| gradient_products::weight_gradient(ONE, types, Factors::Tf32, gradient).next();
    let call = match kernel {
        _ if kernel == TF32_NN => gradient_products::across(ONE, of_f16, Factors::Tf32, tile).next(),
        _ if kernel == TF32_TN[0] => tn([DType::F32, DType::F16]),
        _ if kernel == TF32_TN[1] => tn([DType::F16, DType::F32]),
        _ => experts::calls(ONE, DType::Bf16, Factors::F32, tile).next(),
    };
    call.expect("a launch")
}

/// What the cost model counts for a step of a whole tile, of each of its warps.
fn modelled(kernel: &str) -> f64 {
    let step = if kernel.contains("tf32") { 16 } else { 32 };
    let of_depth = |depth| whole_tile(kernel, depth).work(&Contents { rows: 0, pairs: 0.0 }).instructions;
    (of_depth(2 * step) - of_depth(step)) / 8.0
}

#[test]
fn a_step_issues_no_more_than_the_model_says() {
    let Some(all) = machine_code() else { return };
    // Of f32 as TF32 the model does not count what rounds.
    let counted = |pattern: &str| !pattern.contains("tf32") || pattern.contains("f16");
    for (pattern, ..) in WHOLE_TILES.iter().filter(|(pattern, ..)| counted(pattern)) {
        for Listing { kernel, machine, instructions } in named(all, pattern) {
            let (found, most) = (of_a_step(instructions), modelled(kernel));
            assert!(found as f64 <= most && found as f64 >= 0.7 * most, "{kernel} on {machine}: {found} of {most}");
        }
    }
}

/// Copies of whole chunks, that is of all steps but the last, take an address each and little more.
#[test]
fn steps_are_copied_in_few_instructions() {
    let Some(all) = machine_code() else { return };
    let whole = |instruction: &&Instruction| instruction.family() == "LDGSTS" && !instruction.has("ZFILL");
    for (pattern, ..) in WHOLE_TILES {
        for Listing { kernel, machine, instructions } in named(all, pattern) {
            let copies = |run: &[Instruction]| run.iter().filter(whole).count();
            let found: Vec<_> = runs(instructions).filter(|run| copies(run) >= 1).collect();
            // For both operands, before the loop and in it.
            assert!(found.len() >= 4, "{kernel} on {machine}: {} runs of copies", found.len());
            let product = instructions.iter().find(|instruction| instruction.family() == "HMMA").expect("a product");
            // One copy is among whatever else there is to do.
            for run in found.into_iter().filter(|run| copies(run) >= 2) {
                let most = MOST_FOR_A_COPY[usize::from(run[0].address < product.address)];
                let issued = run.len() as f64 / copies(run) as f64;
                assert!(issued <= most, "{kernel} on {machine}: {issued} instructions a copy");
            }
        }
    }
}

/// Where an index is loaded in the main loop, nothing asks for it before the products of the step.
#[test]
fn indices_are_not_waited_for_before_products() {
    let Some(all) = machine_code() else { return };
    let kernels = ["grouped_gemm_*16_tn"].into_iter().chain(TF32_TN).flat_map(|pattern| named(all, pattern));
    for Listing { kernel, machine, instructions } in kernels {
        let products: Vec<usize> = (0..instructions.len()).filter(|at| instructions[*at].family() == "HMMA").collect();
        let (first, last) = (products[0], products[products.len() - 1]);
        let loads = (first..last).filter(|at| instructions[*at].family() == "LDG");
        let mut found = 0;
        for load in loads {
            let register = instructions[load].register(0).expect("a register");
            let use_of = instructions[load + 1..].iter().position(|next| next.names(register));
            let product = instructions[load + 1..].iter().position(|next| next.family() == "HMMA");
            assert!(product < use_of.or(Some(usize::MAX)), "{kernel} on {machine}: {:?}", instructions[load]);
            found += 1;
        }
        assert!(found >= 2, "{kernel} on {machine}: no index is loaded among the products");
    }
}

/// Words of fragments, which are read among products, are not what leaves.
#[test]
fn products_leave_128_bits_at_a_time() {
    let Some(all) = machine_code() else { return };
    for Listing { kernel, machine, instructions } in
        named(all, "grouped_gemm_*").filter(|code| !leaves_by_tma(&code.kernel))
    {
        let loads = |instruction: &&Instruction| instruction.family() == "LDS" && !instruction.never_runs();
        let reads_words = TF32_TN.iter().any(|of_words| kernel.starts_with(of_words));
        let narrow = instructions.iter().filter(loads).find(|load| !load.has("128") && !reads_words);
        assert_eq!(narrow, None, "{kernel} on {machine}");
        let wide = instructions.iter().filter(loads).filter(|load| load.has("128")).count();
        assert!(wide >= 2, "{kernel} on {machine}");
    }
}

/// In f32 a warp multiplies 64 products a thread with 4 reads of 128 bits.
#[test]
fn f32_is_bound_by_its_products() {
    let Some(all) = machine_code() else { return };
    for Listing { kernel, machine, instructions } in named(all, "grouped_gemm_f32_*") {
        let of_whole_tile = |run: &&[Instruction]| count(run, "FFMA") == 64 && count(run, "LDS") == 4;
        let run = runs(instructions).find(of_whole_tile);
        let run = run.unwrap_or_else(|| panic!("{kernel} on {machine} has no run of 64 products and 4 reads"));
        assert!(run.len() <= 80, "{kernel} on {machine}: {} instructions for 64 products", run.len());
    }
}

/// A product of so many rows that every multiprocessor gets as many blocks as it holds.
fn large(activation: i32, stride: i64) -> abi::GroupedGemm {
    abi::GroupedGemm {
        rows: 1 << 16,
        experts: 1,
        columns: 1 << 12,
        depth: 64,
        a_stride: stride,
        b_stride: stride,
        activation,
        ..Default::default()
    }
}

/// What is launched for one multiprocessor, every kernel that stays.
fn persistent() -> Vec<Call> {
    let types = [DType::F32, DType::Bf16, DType::F16];
    let mut calls = Vec::new();
    for (activation, stride) in [(abi::ACTIVATION_NONE, 64), (abi::ACTIVATION_SWIGLU, 64), (abi::ACTIVATION_NONE, 63)] {
        let product = large(activation, stride);
        for dtype in types {
            calls.extend(experts::calls(ONE, dtype, Factors::F32, product));
            calls.extend(experts::calls(ONE, dtype, Factors::Tf32, product));
            calls.extend(gradient_products::across(ONE, dtype, Factors::F32, product));
            let hidden = abi::HiddenGradient { product, ..Default::default() };
            calls.extend(gradient_products::hidden_gradient(ONE, dtype, hidden));
            let mixed = Operands { rows: DType::F32, weights: dtype };
            calls.extend(gradient_products::across(ONE, mixed, Factors::F32, product));
            calls.extend(gradient_products::across(ONE, mixed, Factors::Tf32, product));
        }
        for rows in types {
            let mixed = Operands { rows, weights: DType::F32 };
            calls.extend(experts::calls(ONE, mixed, Factors::F32, large(abi::ACTIVATION_NONE, stride)));
        }
    }
    calls
}

#[test]
fn multiprocessors_get_the_blocks_that_they_hold() {
    let all: Vec<_> = images().unwrap_or_default().iter().flat_map(|image| resources(image.ptxas)).collect();
    for call in persistent().iter().filter(|_| !all.is_empty()) {
        let launch = call.launch;
        let kernels = all.iter().filter(|entry| entry.kernel == launch.kernel && entry.registers.is_some());
        let fewest = kernels.map(|entry| blocks(entry, launch.threads, launch.shared)).min().expect("the kernel");
        assert_eq!(launch.grid[0], fewest, "blocks of {} a multiprocessor", launch.kernel);
    }
}

#[test]
fn runs_and_distances_are_understood() {
    let text = "
\tcode for sm_90a
\t\tFunction : product
        /*0000*/                   IMAD R1, R2, R3, RZ ;
        /*0010*/                   WARPSYNC.ALL ;
        /*0020*/                   LDSM.16.M88.4 R8, [R4+0x800] ;
        /*0030*/                   HMMA.16816.F32.BF16 R20, R12, R16.reuse, R20 ;
        /*0040*/                   HMMA.16816.F32.BF16 R24, R12, R10, R24 ;
        /*0050*/                   LDSM.16.M88.4 R16, [R4] ;
        /*0060*/               @P0 BRA 0x30 ;
        /*0070*/              @!PT LDS RZ, [RZ] ;
        /*0080*/                   EXIT ;
";
    let all = listings(text);
    let code = &all[0].instructions;
    let lengths: Vec<usize> = runs(code).map(<[_]>::len).collect();
    // A jump into the middle starts a run.
    assert_eq!(lengths, [1, 1, 1, 3, 1, 1, 1]);
    assert_eq!((count(code, "HMMA"), count(code, "LDS")), (2, 0));
    assert_eq!((products_before_use(&code[2..6], 0), products_before_use(&code[2..6], 3)), (Some(1), None));
}
