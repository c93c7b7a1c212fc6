//! The checks of the experts' way back can fail: bugs planted in its operands, its ways out and its sums.

mod harness;

use da_moe::{Activation, DType, ExpertsPerToken, Keep, LayerConfig, Normalize, Policy, Source};
use harness::case::Case;
use harness::planted::Shows::{Report, Wrong};
use harness::planted::{Bug, RACE, UNINITIALISED, assert_all_found, assert_clean};

/// Several experts, steps and tiles, nothing a multiple of anything.
fn layer(hidden: usize, width: usize, act: Activation) -> LayerConfig {
    let mut config = LayerConfig { hidden_act: act, ..LayerConfig::da_moe(hidden, width, 3, 2) };
    config.importance.source = Source::External;
    config.importance.normalize = Normalize::None;
    config.experts_per_token = ExpertsPerToken::new(Policy::Fixed { k: 2 });
    config
}

/// Rows that start at multiples of 16 bytes: copied in the background.
fn aligned() -> Case {
    let lengths = vec![60];
    Case { dtype: DType::Bf16, lengths, biases: true, ..Case::plain(layer(200, 72, Activation::Swiglu)) }
}

fn anywhere() -> Case {
    let config = layer(37, 13, Activation::Gelu);
    Case { dtype: DType::F16, lengths: vec![50], keep: Keep::Recompute, ..Case::plain(config) }
}

fn in_f32() -> Case {
    Case { lengths: vec![40], biases: true, ..Case::plain(layer(37, 21, Activation::Reglu)) }
}

/// Rows that end in the middle of eight columns, though at a multiple of 128 bits.
fn in_fours() -> Case {
    Case { lengths: vec![40], biases: true, ..Case::plain(layer(36, 20, Activation::Reglu)) }
}

const BUGS: &[Bug] = &[
    // The way out of dh.
    Bug {
        file: "gemm/hidden_gradient.cuh",
        from: "h[i] = g * da * gate.slope * other;",
        to: "h[i] = da * gate.slope * other;",
        shows: Wrong,
        call: aligned,
    },
    Bug {
        file: "gemm/hidden_gradient.cuh",
        from: "a[i] = g * (gate.value * other);",
        to: "a[i] = gate.value * other;",
        shows: Wrong,
        call: aligned,
    },
    Bug {
        file: "gemm/hidden_gradient.cuh",
        from: "gate.value * other * da : 0.0f;",
        to: "g * gate.value * other * da : 0.0f;",
        shows: Wrong,
        call: in_f32,
    },
    Bug {
        file: "gemm/hidden_gradient.cuh",
        from: "distance = CHUNKS / 2;",
        to: "distance = CHUNKS / 4;",
        shows: Wrong,
        call: aligned,
    },
    Bug {
        file: "gemm/hidden_gradient.cuh",
        from: "to * p.hidden_stride + p.columns + column, count);",
        to: "to * p.hidden_stride + column, count);",
        shows: Wrong,
        call: in_f32,
    },
    Bug {
        file: "gemm/hidden_gradient.cuh",
        from: "store_chunk(dh + p.columns, up, count);",
        to: "store_chunk(dh, up, count);",
        shows: UNINITIALISED,
        call: aligned,
    },
    Bug {
        file: "gemm/activation.cuh",
        from: "h > 0.0f ? 1.0f : 0.0f",
        to: "h > 0.0f ? 1.0f : 0.01f",
        shows: Wrong,
        call: in_f32,
    },
    Bug {
        file: "gemm/activation.cuh",
        from: "distribution + h * 0.39894228f",
        to: "distribution + 0.39894228f",
        shows: Wrong,
        call: anywhere,
    },
    // Operands.
    Bug {
        file: "gemm/operands.cuh",
        from: "return k < p_.depth ? first + k * p_.b_stride : nullptr;",
        to: "return first + k * p_.b_stride;",
        shows: Report("out of bounds|uninitialised"),
        call: anywhere,
    },
    Bug {
        file: "gemm/operands.cuh",
        from: "tile_.expert * p_.b_expert_stride + tile_.column;",
        to: "tile_.expert * p_.b_expert_stride;",
        shows: Wrong,
        call: aligned,
    },
    Bug {
        file: "gemm/operands.cuh",
        from: "if (k >= rows_.count) {",
        to: "if (k > rows_.count) {",
        shows: Report("out of bounds|uninitialised"),
        call: aligned,
    },
    Bug {
        file: "gemm/operands.cuh",
        from: "from_.row_token == nullptr ? row : from_.row_token[row];",
        to: "row;",
        shows: Wrong,
        call: aligned,
    },
    Bug {
        file: "gemm/mma_operands.cuh",
        from: "lane / 16 * 8 + lane % 8;",
        to: "lane / 8 % 2 * 8 + lane % 8;",
        shows: Wrong,
        call: aligned,
    },
    Bug {
        file: "gemm/mma_operands.cuh",
        from: "place(k * 16 + lane % 16, first / CHUNK + lane / 16)",
        to: "place(k * 16 + lane % 16, first / CHUNK + lane / 8 % 2)",
        shows: Wrong,
        call: aligned,
    },
    Bug {
        file: "gemm/mma_operands.cuh",
        from: "find_rows(step + 1);",
        to: "find_rows(step);",
        shows: Wrong,
        call: aligned,
    },
    Bug {
        file: "gemm/mma_operands.cuh",
        from: "rows_[copy], first, from_.width() - first);",
        to: "rows_[copy], first, CHUNK);",
        shows: Report("out of bounds|uninitialised"),
        call: anywhere,
    },
    Bug {
        file: "gemm/f32_loop.cuh",
        from: "first + i < from_.width();",
        to: "first + i <= from_.width();",
        shows: Report("out of bounds|uninitialised"),
        call: in_f32,
    },
    Bug {
        file: "device/gradient.cuh",
        from: "if (beta != 0.0f) {",
        to: "if (beta == 0.0f) {",
        shows: UNINITIALISED,
        call: aligned,
    },
    // Gradients of weights.
    Bug {
        file: "gemm/weight_output.cuh",
        from: "index / rows % columns * TILE_COLUMNS",
        to: "index % columns * TILE_COLUMNS",
        shows: RACE,
        call: aligned,
    },
    Bug {
        file: "gemm/weight_output.cuh",
        from: "const int count = min(p_.right.columns - tile.column - from, OUTPUT_CHUNK);",
        to: "const int count = OUTPUT_CHUNK;",
        shows: Report("race|out of bounds"),
        call: anywhere,
    },
    Bug {
        file: "gemm/weight_output.cuh",
        from: "if (p_.beta != 0.0f) {",
        to: "if (p_.beta <= 0.0f) {",
        shows: UNINITIALISED,
        call: anywhere,
    },
    Bug {
        file: "weight_gradient_sm80.cu",
        from: "    const auto products = loop.products();\n    __syncthreads();",
        to: "    const auto products = loop.products();",
        shows: Report("race|uninitialised"),
        call: aligned,
    },
    Bug {
        file: "weight_gradient_sm80.cu",
        from: "p.left.columns - tile.row, rows.count);",
        to: "p.left.columns - tile.row, rows.count - 16);",
        shows: Wrong,
        call: in_f32,
    },
    // Sums beside the products.
    Bug {
        file: "experts_backward.cu",
        from: "const int i = start + lane_index() * WARPS;",
        to: "const int i = start + lane_index() * (WARPS + 1);",
        shows: Wrong,
        call: aligned,
    },
    Bug {
        file: "experts_backward.cu",
        from: "aligned && p.from.columns % BiasColumns<true>::COUNT == 0",
        to: "aligned",
        shows: Report("out of bounds"),
        call: in_fours,
    },
    Bug {
        file: "experts_backward.cu",
        from: "    __syncthreads();\n    const int column = static_cast<int>(blockIdx.x) * COLUMNS",
        to: "    const int column = static_cast<int>(blockIdx.x) * COLUMNS",
        shows: Report("race|uninitialised"),
        call: aligned,
    },
    Bug {
        file: "experts_backward.cu",
        from: "p.row_weight[row] : 1.0f;",
        to: "1.0f : 1.0f;",
        shows: Wrong,
        call: in_f32,
    },
    Bug {
        file: "experts_backward.cu",
        from: "p.bias == nullptr ? 0.0f : bias_product<S>(p, row);",
        to: "0.0f;",
        shows: Wrong,
        call: in_f32,
    },
    Bug {
        file: "experts_backward.cu",
        from: "offsets[middle] <= row ?",
        to: "offsets[middle] < row ?",
        shows: Wrong,
        call: in_f32,
    },
];

#[test]
fn every_planted_bug_is_found_in_every_order() {
    assert_all_found(BUGS, None);
}

#[test]
fn the_kernels_without_a_bug_pass_every_call() {
    [aligned, anywhere, in_f32].into_iter().for_each(assert_clean);
}
