//! The checks of the grouped product can fail: bugs planted in its scheduler, its main loops and its epilogue.

use da_moe::cuda::launch::experts::Factors;
use da_moe::cuda::{Architecture, Emulated, Kernels, Staged};
use da_moe::{Activation, DType, ExpertsPerToken, Keep, LayerConfig, Normalize, Policy, Source};
use da_moe_emulator::{Module, Schedule};
use da_moe_harness::case::Case;
use da_moe_harness::data::Data;
use da_moe_harness::kernels::{emulated, module};
use da_moe_harness::planted::Shows::{Report, Unwritten, Wrong};
use da_moe_harness::planted::{
    BOUNDS, Bug, RACE, SCHEDULES, UNINITIALISED, assert_all_found, assert_clean, launched, mutant,
};
use da_moe_harness::{Subject, Through};
use std::sync::Arc;

/// Several experts, steps and fragments, nothing a multiple of anything.
fn layer(hidden: usize, width: usize, act: Activation) -> LayerConfig {
    let mut config = LayerConfig { hidden_act: act, ..LayerConfig::da_moe(hidden, width, 3, 2) };
    config.importance.source = Source::External;
    config.importance.normalize = Normalize::None;
    config.experts_per_token = ExpertsPerToken::new(Policy::Fixed { k: 2 });
    config
}

/// Rows that start at multiples of 16 bytes: copied in the background.
fn aligned() -> Case {
    let lengths = vec![30];
    Case { dtype: DType::Bf16, lengths, biases: true, ..Case::plain(layer(272, 72, Activation::Swiglu)) }
}

/// More than half of a tile's rows, and more columns than one tile has.
fn tall() -> Case {
    let lengths = vec![140];
    Case { dtype: DType::Bf16, lengths, biases: true, ..Case::plain(layer(272, 72, Activation::Swiglu)) }
}

fn anywhere() -> Case {
    Case { dtype: DType::F16, lengths: vec![30], ..Case::plain(layer(37, 13, Activation::Gelu)) }
}

fn in_f32() -> Case {
    Case { lengths: vec![70], biases: true, ..Case::plain(layer(37, 21, Activation::Reglu)) }
}

const BUGS: &[Bug] = &[
    // The scheduler.
    Bug {
        file: "experts/scheduler.cuh",
        from: "next_ += step_;",
        to: "next_ += step_ + 1;",
        shows: UNINITIALISED,
        call: aligned,
    },
    Bug {
        file: "experts/scheduler.cuh",
        from: "min(at.rows.count - row, TILE_ROWS),",
        to: "TILE_ROWS,",
        shows: Report("race|out of bounds|uninitialised"),
        call: aligned,
    },
    Bug {
        file: "experts/scheduler.cuh",
        from: "at.index % tiles * TILE_ROWS;",
        to: "at.index / tiles * TILE_ROWS;",
        shows: Unwritten,
        call: tall,
    },
    // Operands.
    Bug {
        file: "experts/operands.cuh",
        from: "p_.row_token == nullptr ? row : p_.row_token[row];",
        to: "row;",
        shows: Wrong,
        call: aligned,
    },
    Bug {
        file: "experts/operands.cuh",
        from: "i / GROUP % 2 == 1",
        to: "i / GROUP % 2 == 0",
        shows: Wrong,
        call: aligned,
    },
    Bug {
        file: "experts/operands.cuh",
        from: "const bool is_there = column < p_.columns;",
        to: "const bool is_there = true;",
        shows: BOUNDS,
        call: anywhere,
    },
    Bug {
        file: "experts/operands.cuh",
        from: "tile_.expert * p_.b_expert_stride + row * p_.b_stride;",
        to: "(tile_.expert ^ 1) * p_.b_expert_stride + row * p_.b_stride;",
        shows: Report("out of bounds"),
        call: anywhere,
    },
    // The tensor-core loop.
    Bug {
        file: "experts/portable/mma_loop.cuh",
        from: "ptx::cp_async_wait<STAGES - 2>();",
        to: "ptx::cp_async_wait<STAGES - 1>();",
        shows: Report("asynchronous|cp.async|race|uninitialised"),
        call: aligned,
    },
    Bug {
        file: "experts/portable/mma_loop.cuh",
        from: "ptx::cp_async_wait<STAGES - 2>();\n            __syncthreads();",
        to: "ptx::cp_async_wait<STAGES - 2>();",
        shows: Report("race|asynchronous|uninitialised"),
        call: aligned,
    },
    Bug {
        file: "experts/product_tile.cuh",
        from: "        write(first, products);\n        __syncthreads();\n",
        to: "        write(first, products);\n",
        shows: RACE,
        call: aligned,
    },
    Bug {
        file: "experts/portable/mma_loop.cuh",
        from: "fill(step + STAGES);",
        to: "fill(step + STAGES + 1);",
        shows: Report("race|asynchronous|uninitialised"),
        call: aligned,
    },
    Bug {
        file: "experts/portable/mma_operands.cuh",
        from: "is_there(copy) ? count : 0);",
        to: "is_there(copy) ? CHUNK : 0);",
        shows: Report("out of bounds|uninitialised"),
        call: anywhere,
    },
    Bug {
        file: "experts/portable/mma_loop.cuh",
        from: "if (i < rows_) {",
        to: "if (i + 1 < rows_) {",
        shows: Wrong,
        call: aligned,
    },
    Bug {
        file: "experts/portable/mma_operands.cuh",
        from: "IS_A ? lane_index() / 16 :",
        to: "IS_A ? lane_index() / 8 % 2 :",
        shows: Wrong,
        call: aligned,
    },
    Bug {
        file: "experts/portable/mma_loop.cuh",
        from: "of_a, {of_b[0], of_b[1]});",
        to: "of_a, {of_b[0], of_b[2]});",
        shows: Wrong,
        call: aligned,
    },
    // Whole tiles, whose fragments are loaded a half of a step ahead.
    Bug {
        file: "experts/portable/mma_loop.cuh",
        from: "return multiply_rows<3, HALF>(f, a, b, next);",
        to: "return multiply_rows<2, HALF>(f, a, b, next);",
        shows: Wrong,
        call: tall,
    },
    Bug {
        file: "experts/portable/mma_loop.cuh",
        from: "stage(min(step + 1, steps - 1))",
        to: "stage(step + 1)",
        shows: UNINITIALISED,
        call: aligned,
    },
    Bug {
        file: "experts/product_tile.cuh",
        from: "loop.template half_of_products<1>();",
        to: "loop.template half_of_products<0>();",
        shows: Wrong,
        call: tall,
    },
    Bug {
        file: "experts/product_tile.cuh",
        from: "h * (COLUMNS / 2) + place * HALF;",
        to: "place * HALF;",
        shows: RACE,
        call: aligned,
    },
    // The f32 loop.
    Bug {
        file: "experts/f32/f32_loop.cuh",
        from: "            }\n            __syncthreads();",
        to: "            }",
        shows: Report("race|uninitialised"),
        call: in_f32,
    },
    Bug {
        file: "experts/f32/f32_loop.cuh",
        from: "(step / STEP + 1) % 2 * STAGE",
        to: "step / STEP % 2 * STAGE",
        shows: RACE,
        call: in_f32,
    },
    Bug {
        file: "experts/f32/f32_loop.cuh",
        from: "max(depth_ - from, 0)",
        to: "max(depth_ - from + 1, 0)",
        shows: Report("out of bounds"),
        call: in_f32,
    },
    Bug {
        file: "experts/f32/f32_loop.cuh",
        from: "(first < vectors ? 1 : 0)",
        to: "(first + 16 < vectors ? 1 : 0)",
        shows: Wrong,
        call: in_f32,
    },
    Bug {
        file: "experts/f32/f32_loop.cuh",
        from: "for (; k < end; k++,",
        to: "for (; k + 1 < end; k++,",
        shows: Wrong,
        call: in_f32,
    },
    // What is not there is not multiplied.
    Bug {
        file: "experts/portable/mma_operands.cuh",
        from: "(vectors + MMA_FRAGMENT - 1) / MMA_FRAGMENT",
        to: "vectors / MMA_FRAGMENT",
        shows: Wrong,
        call: anywhere,
    },
    Bug {
        file: "experts/operands.cuh",
        from: "GATED ? (columns + GROUP - 1) / GROUP * 2 * GROUP : columns",
        to: "columns",
        shows: Wrong,
        call: in_f32,
    },
    // On the way out.
    Bug {
        file: "experts/product_tile.cuh",
        from: "    while (true) {\n        __syncthreads();",
        to: "    while (true) {",
        shows: RACE,
        call: aligned,
    },
    Bug {
        file: "experts/portable/mma_loop.cuh",
        from: "        ptx::cp_async_wait<0>();\n        __syncthreads();",
        to: "        ptx::cp_async_wait<0>();",
        shows: RACE,
        call: aligned,
    },
    Bug {
        file: "experts/epilogue.cuh",
        from: "i < rows * CHUNKS;",
        to: "i < (rows + 1) * CHUNKS;",
        shows: Report("race|out of bounds|uninitialised"),
        call: aligned,
    },
    Bug {
        file: "experts/epilogue.cuh",
        from: "const int count = min(p_.columns - column, OUTPUT_CHUNK);",
        to: "const int count = OUTPUT_CHUNK;",
        shows: Report("race|out of bounds"),
        call: anywhere,
    },
    Bug {
        file: "experts/product_tile.cuh",
        from: "count == OUTPUT_CHUNK && reinterpret_cast<uintptr_t>(at) % 16 == 0",
        to: "count == OUTPUT_CHUNK",
        shows: Report("misaligned"),
        call: anywhere,
    },
    Bug {
        file: "experts/epilogue.cuh",
        from: "add_bias(up, tile.expert, p_.columns + column, count);",
        to: "add_bias(up, tile.expert, column, count);",
        shows: Wrong,
        call: aligned,
    },
    Bug {
        file: "experts/epilogue.cuh",
        from: "h[i] = curve(p_.activation, h[i]).value;",
        to: "h[i] = curve(p_.activation, -h[i]).value;",
        shows: Wrong,
        call: in_f32,
    },
    Bug {
        file: "experts/epilogue.cuh",
        from: "products.chunk(up, row, 2 * chunk + 1);",
        to: "products.chunk(up, row, 2 * chunk);",
        shows: Wrong,
        call: in_f32,
    },
];

/// Those that show as they are expected to on the way back: in hidden rows that are kept, and in reads too early.
const BUGS_ON_THE_WAY_BACK: &[Bug] = &[
    Bug {
        file: "experts/epilogue.cuh",
        from: "keep(up, to * p_.hidden_stride + p_.columns + column, count);",
        to: "keep(h, to * p_.hidden_stride + p_.columns + column, count);",
        shows: Wrong,
        call: aligned,
    },
    Bug {
        file: "experts/portable/mma_loop.cuh",
        from: "load_rows<ROWS, 1 - HALF>(f, a, next);",
        to: "load_rows<ROWS, 1 - HALF>(f, a, 0);",
        shows: Report("race|asynchronous|uninitialised"),
        call: tall,
    },
];

#[test]
fn every_planted_bug_is_found_in_every_order() {
    assert_all_found(BUGS, Some(Keep::Nothing));
    assert_all_found(BUGS_ON_THE_WAY_BACK, None);
}

/// TF32 is outside the accuracy that every other call is held to, so its layer is held against f32's.
#[test]
fn a_bug_in_the_products_of_tf32_is_found_in_every_order() {
    let case = in_f32();
    let data = Data::new(&case);
    let exact = Through(emulated(0)).run(&data, &case).unwrap().y;
    let most = exact.iter().fold(0.0f64, |most, exact| most.max(exact.abs()));
    let is_far = |module: Arc<Module>, seed| {
        let kernels = Kernels::new(Arc::new(Emulated::new(module, Schedule::from_seed(seed)))).factors(Factors::Tf32);
        let y = Through(Staged::new(kernels)).run(&data, &case).unwrap().y;
        y.iter().zip(&exact).any(|(found, exact)| (found - exact).abs() > 0.01 * most)
    };
    let [whole, cut] = ["return ptx::round_tf32(word);", "return ptx::round_tf32(word) & 0xff800000u;"];
    let run = |kernels: Kernels<_>| Through(Staged::new(kernels.factors(Factors::Tf32))).run(&data, &case);
    let (kernels, _) = launched(Architecture::Portable, run);
    let mutant = mutant(["experts/portable/mma_operands.cuh", whole, cut], kernels).unwrap();
    for seed in 0..SCHEDULES {
        assert!(!is_far(module(), seed), "schedule {seed}, without a bug");
        assert!(is_far(mutant.clone(), seed), "schedule {seed}");
    }
}

#[test]
fn the_kernels_without_a_bug_pass_every_call() {
    [aligned, tall, anywhere, in_f32].into_iter().for_each(assert_clean);
}
