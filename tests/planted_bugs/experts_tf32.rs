//! The checks of f16's way back can fail: bugs planted in the products of TF32 beside f16, and in what is rounded for them.

use da_moe::cuda::Architecture;
use da_moe::{Activation, DType, ExpertsPerToken, LayerConfig, Normalize, Policy, Source};
use da_moe_harness::case::Case;
use da_moe_harness::ends::Ends;
use da_moe_harness::planted::Shows::{Report, Wrong};
use da_moe_harness::planted::{Bug, UNINITIALISED, assert_clean_on, assert_found};

/// Several experts, steps and tiles, routed from outside.
fn layer(hidden: usize, width: usize, act: Activation) -> Ends {
    let mut config = LayerConfig { hidden_act: act, ..LayerConfig::da_moe(hidden, width, 3, 2) };
    config.importance.source = Source::External;
    config.importance.normalize = Normalize::None;
    config.experts_per_token = ExpertsPerToken::new(Policy::Fixed { k: 2 });
    let case = Case { dtype: DType::F16, lengths: vec![60], routing: 1, biases: true, ..Case::plain(config) };
    Ends { case, octaves: 0 }
}

/// A whole tile in `dx` and in the first matrix's gradient, after which there are more columns.
fn hidden() -> Ends {
    layer(272, 64, Activation::Swiglu)
}

/// A whole tile's columns in the second's.
fn wide() -> Ends {
    layer(40, 264, Activation::Gelu)
}

/// Rows that start anywhere.
fn anywhere() -> Ends {
    layer(101, 37, Activation::Reglu)
}

/// Gradients that f16 has no number for.
fn large() -> Ends {
    Ends { octaves: 14, ..hidden() }
}

fn small() -> Ends {
    Ends { octaves: -21, ..hidden() }
}

const BUGS: &[Bug<Ends>] = &[
    // What passes between the products.
    Bug {
        file: "device/tf32.cuh",
        from: "ptx::round_tf32(__float_as_uint(value))",
        to: "__float_as_uint(value)",
        shows: Wrong,
        call: hidden,
    },
    Bug {
        file: "device/tf32.cuh",
        from: "ptx::round_tf32(__float_as_uint(value))",
        to: "(ptx::round_tf32(__float_as_uint(value)) & 0xffffc000u)",
        shows: Wrong,
        call: wide,
    },
    Bug {
        file: "device/tf32.cuh",
        from: "ptx::round_tf32(__float_as_uint(value))",
        to: "__float_as_uint(to_float(from_float<f16>(value)))",
        shows: Wrong,
        call: large,
    },
    Bug {
        file: "device/tf32.cuh",
        from: "ptx::round_tf32(__float_as_uint(value))",
        to: "__float_as_uint(to_float(from_float<f16>(value)))",
        shows: Wrong,
        call: small,
    },
    Bug {
        file: "experts/grouped.cuh",
        from: "using Type = tf32;",
        to: "using Type = f16;",
        shows: UNINITIALISED,
        call: hidden,
    },
    // Words of a fragment.
    Bug {
        file: "experts/portable/tf32_operands.cuh",
        from: "last_vectors + 2 * second :",
        to: "2 * last_vectors + second :",
        shows: Wrong,
        call: hidden,
    },
    Bug {
        file: "experts/portable/tf32_operands.cuh",
        from: ": 2 * last_vectors + second;",
        to: ": last_vectors + 2 * second;",
        shows: Wrong,
        call: wide,
    },
    Bug {
        file: "experts/portable/tf32_operands.cuh",
        from: "lane_ ^ last_vectors * 2 * 16",
        to: "lane_ + last_vectors * 2 * 16",
        shows: Report("race|asynchronous|uninitialised"),
        call: wide,
    },
    Bug {
        file: "experts/portable/tf32_operands.cuh",
        from: "(k * 8 + second * 4) * Copy::CHUNKS",
        to: "(k * 8 + second * 2) * Copy::CHUNKS",
        shows: Wrong,
        call: wide,
    },
    Bug {
        file: "experts/portable/tf32_operands.cuh",
        from: "Copy::place(lane_index() % 4, vector / Copy::CHUNK)",
        to: "Copy::place(lane_index() / 8, vector / Copy::CHUNK)",
        shows: Wrong,
        call: hidden,
    },
    Bug {
        file: "experts/portable/tf32_operands.cuh",
        from: "vector % Copy::CHUNK * Copy::SIZE;",
        to: "vector / 8 % Copy::CHUNK * Copy::SIZE;",
        shows: Wrong,
        call: anywhere,
    },
    // Of f16, the majorness and the order of what ldmatrix turns.
    Bug {
        file: "experts/portable/tf32_operands.cuh",
        from: "ptx::ldmatrix_x4_trans(words,",
        to: "ptx::ldmatrix_x4(words,",
        shows: Wrong,
        call: hidden,
    },
    Bug {
        file: "experts/portable/tf32_operands.cuh",
        from: "Copy::place(row / 2 + row % 2 * 4, chunk);",
        to: "Copy::place(row, chunk);",
        shows: Wrong,
        call: anywhere,
    },
    Bug {
        file: "experts/portable/tf32_operands.cuh",
        from: "matrix % 2 + matrix / 2 * CHUNKS_APART;",
        to: "matrix / 2 + matrix % 2 * CHUNKS_APART;",
        shows: Wrong,
        call: hidden,
    },
    Bug {
        file: "experts/portable/tf32_operands.cuh",
        from: "f * CHUNKS_APART + k * 8 * Copy::CHUNKS;",
        to: "f * CHUNKS_APART;",
        shows: Wrong,
        call: wide,
    },
    Bug {
        file: "experts/portable/tf32_operands.cuh",
        from: "widened(both >> 16);",
        to: "widened(both & 0xffffu);",
        shows: Wrong,
        call: anywhere,
    },
    // Pairs of fragments.
    Bug {
        file: "experts/portable/mma_loop.cuh",
        from: "const int first = j + 1 - B::AT_ONCE;",
        to: "const int first = 0;",
        shows: Wrong,
        call: hidden,
    },
    Bug {
        file: "experts/portable/mma_loop.cuh",
        from: "held_b[j % B::AT_ONCE]",
        to: "held_b[0]",
        shows: Wrong,
        call: anywhere,
    },
    Bug {
        file: "experts/portable/mma_loop.cuh",
        from: "held_a[i % A::AT_ONCE]",
        to: "held_a[A::AT_ONCE - 1]",
        shows: Wrong,
        call: wide,
    },
    // Steps: their depth, the rows past the last, and when a stage is filled again.
    Bug {
        file: "experts/portable/mma_loop.cuh",
        from: "const int steps = (depth + STEP - 1) / STEP;",
        to: "const int steps = depth / STEP;",
        shows: Wrong,
        call: wide,
    },
    Bug {
        file: "experts/portable/mma_operands.cuh",
        from: "const int turn = SIZE == 2 ? row % 8 : row % 4 * 2;",
        to: "const int turn = SIZE == 2 ? row % 8 : row % 8 * 2;",
        shows: Wrong,
        call: hidden,
    },
    Bug {
        file: "experts/portable/mma_operands.cuh",
        from: "from_.pick((step + 1) * DEPTH + copied_row());",
        to: "from_.pick((step + 1) * 32 + copied_row());",
        shows: Wrong,
        call: hidden,
    },
    Bug {
        file: "experts/portable/mma_operands.cuh",
        from: "at + copy * THREADS_A_ROW * 16, chunk, row.is_there);",
        to: "at + copy * THREADS_A_ROW * 16, chunk, true);",
        shows: Wrong,
        call: hidden,
    },
    Bug {
        file: "experts/portable/mma_operands.cuh",
        from: "const int width = row.is_there ? from_.width() : 0;",
        to: "const int width = from_.width();",
        shows: Wrong,
        call: anywhere,
    },
    Bug {
        file: "experts/operands.cuh",
        from: "i >= tile_.rows ? -1 :",
        to: "i >= tile_.rows + 16 ? -1 :",
        shows: Report("uninitialised|out of bounds"),
        call: hidden,
    },
    Bug {
        file: "experts/portable/mma_loop.cuh",
        from: "            __syncthreads();\n            fill(step + STAGES);",
        to: "            fill(step + STAGES);\n            __syncthreads();",
        shows: Report("race|asynchronous"),
        call: wide,
    },
    Bug {
        file: "experts/portable/mma_loop.cuh",
        from: "ptx::cp_async_wait<STAGES - 2>();",
        to: "ptx::cp_async_wait<STAGES - 1>();",
        shows: Report("asynchronous|cp.async|race|uninitialised"),
        call: wide,
    },
];

#[test]
fn every_planted_bug_is_found_in_every_order() {
    assert_found(BUGS, |ends| ends);
}

#[test]
fn the_kernels_without_a_bug_pass_every_call() {
    for call in [hidden, wide, anywhere, large, small] {
        assert_clean_on(Architecture::Portable, &call());
    }
}
