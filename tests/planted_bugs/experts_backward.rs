//! The checks of the experts' way back can fail: bugs planted in its operands, its ways out and its sums.

use da_moe::{Activation, DType, ExpertsPerToken, Keep, LayerConfig, Normalize, Policy, Source};
use da_moe_harness::case::Case;
use da_moe_harness::planted::Shows::{Report, Wrong};
use da_moe_harness::planted::{Bug, RACE, UNINITIALISED, assert_all_found, assert_clean};

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
    Case { dtype: DType::Bf16, lengths, biases: true, ..Case::plain(layer(272, 72, Activation::Swiglu)) }
}

fn anywhere() -> Case {
    let config = layer(37, 13, Activation::Gelu);
    Case { dtype: DType::F16, lengths: vec![50], keep: Keep::Recompute, ..Case::plain(config) }
}

fn in_f32() -> Case {
    Case { lengths: vec![40], biases: true, ..Case::plain(layer(37, 21, Activation::Reglu)) }
}

/// Tokens enough to divide the router's gradient.
fn many() -> Case {
    Case { lengths: vec![531], ..Case::plain(layer(9, 7, Activation::Relu)) }
}

/// Rows that end in the middle of eight columns, though at a multiple of 128 bits.
fn in_fours() -> Case {
    Case { lengths: vec![40], biases: true, ..Case::plain(layer(36, 20, Activation::Reglu)) }
}

const BUGS: &[Bug] = &[
    // The way out of dh.
    Bug {
        file: "experts/hidden_gradient.cuh",
        from: "h[i] = g * da[i] * gate.slope * other;",
        to: "h[i] = da[i] * gate.slope * other;",
        shows: Wrong,
        call: aligned,
    },
    Bug {
        file: "experts/hidden_gradient.cuh",
        from: "a[i] = g * (gate.value * other);",
        to: "a[i] = gate.value * other;",
        shows: Wrong,
        call: aligned,
    },
    Bug {
        file: "experts/hidden_gradient.cuh",
        from: "gate.value * other * da[i] : 0.0f;",
        to: "g * gate.value * other * da[i] : 0.0f;",
        shows: Wrong,
        call: in_f32,
    },
    Bug {
        file: "experts/hidden_gradient.cuh",
        from: "distance = CHUNKS / 2;",
        to: "distance = CHUNKS / 8;",
        shows: Wrong,
        call: aligned,
    },
    Bug {
        file: "experts/hidden_gradient.cuh",
        from: "from * p.hidden_stride + p.columns + column, count);",
        to: "from * p.hidden_stride + column, count);",
        shows: Wrong,
        call: in_f32,
    },
    Bug {
        file: "experts/hidden_gradient.cuh",
        from: "store_chunk(dh + p.columns, up, count);",
        to: "store_chunk(dh, up, count);",
        shows: UNINITIALISED,
        call: aligned,
    },
    Bug {
        file: "experts/activation.cuh",
        from: "h > 0.0f ? 1.0f : 0.0f",
        to: "h > 0.0f ? 1.0f : 0.01f",
        shows: Wrong,
        call: in_f32,
    },
    Bug {
        file: "experts/activation.cuh",
        from: "distribution + h * 0.39894228f",
        to: "distribution + 0.39894228f",
        shows: Wrong,
        call: anywhere,
    },
    // Operands.
    Bug {
        file: "experts/operands.cuh",
        from: "return k < p_.depth ? k : -1;",
        to: "return k;",
        shows: Report("out of bounds|uninitialised"),
        call: anywhere,
    },
    Bug {
        file: "experts/operands.cuh",
        from: "tile_.expert * p_.b_expert_stride + tile_.column;",
        to: "tile_.expert * p_.b_expert_stride;",
        shows: Wrong,
        call: aligned,
    },
    Bug {
        file: "experts/operands.cuh",
        from: "if (k >= rows_.count) {",
        to: "if (k > rows_.count) {",
        shows: Report("out of bounds|uninitialised"),
        call: aligned,
    },
    Bug {
        file: "experts/operands.cuh",
        from: "from_.row_token == nullptr ? row : from_.row_token[row];",
        to: "row;",
        shows: Wrong,
        call: aligned,
    },
    Bug {
        file: "experts/portable/mma_operands.cuh",
        from: "const int row = Side::last_half() * 8",
        to: "const int row = Side::last_vectors() * 8",
        shows: Wrong,
        call: aligned,
    },
    Bug {
        file: "experts/portable/mma_operands.cuh",
        from: "warp * MMA_FRAGMENT / Copy::CHUNK + Side::last_vectors());",
        to: "warp * MMA_FRAGMENT / Copy::CHUNK + Side::last_half());",
        shows: Wrong,
        call: aligned,
    },
    Bug {
        file: "experts/portable/mma_operands.cuh",
        from: "from_.pick((step + 1) * DEPTH + copied_row());",
        to: "from_.pick(step * DEPTH + copied_row());",
        shows: Wrong,
        call: aligned,
    },
    Bug {
        file: "experts/portable/mma_operands.cuh",
        from: "chunk, width - first);",
        to: "chunk, CHUNK);",
        shows: Report("out of bounds|uninitialised"),
        call: anywhere,
    },
    Bug {
        file: "experts/portable/mma_operands.cuh",
        from: "lane_ ^ turned * 16",
        to: "lane_ + turned * 16",
        shows: Wrong,
        call: aligned,
    },
    Bug {
        file: "experts/f32/f32_loop.cuh",
        from: "picked_ = from_.pick(step + STEP + k(thread));",
        to: "picked_ = from_.pick(step + k(thread));",
        shows: Wrong,
        call: in_f32,
    },
    Bug {
        file: "experts/f32/f32_loop.cuh",
        from: "max(from_.width() - first(thread), 0)",
        to: "max(from_.width() - first(thread) + 1, 0)",
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
        file: "experts/weight_output.cuh",
        from: "index / rows % columns * TILE_COLUMNS",
        to: "index % columns * TILE_COLUMNS",
        shows: RACE,
        call: aligned,
    },
    Bug {
        file: "experts/weight_output.cuh",
        from: "const int count = min(p_.right.columns - tile.column - from, OUTPUT_CHUNK);",
        to: "const int count = OUTPUT_CHUNK;",
        shows: Report("race|out of bounds"),
        call: anywhere,
    },
    Bug {
        file: "experts/weight_output.cuh",
        from: "if (p_.beta != 0.0f) {",
        to: "if (p_.beta <= 0.0f) {",
        shows: UNINITIALISED,
        call: anywhere,
    },
    Bug {
        file: "experts/portable/weight_gradient.cu",
        from: "height, rows.count);",
        to: "height, rows.count - 16);",
        shows: Wrong,
        call: in_f32,
    },
    // Parts of the router's gradient.
    Bug {
        file: "experts/scheduler.cuh",
        from: "const int first = min(index * share, rows);",
        to: "const int first = min(index * (share - 16), rows);",
        shows: Wrong,
        call: many,
    },
    Bug {
        file: "experts/portable/weight_gradient.cu",
        from: "p.parts[(first + i) * p.elements + element]",
        to: "p.parts[first * p.elements + element]",
        shows: Wrong,
        call: many,
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
    [aligned, anywhere, in_f32, many].into_iter().for_each(assert_clean);
}
