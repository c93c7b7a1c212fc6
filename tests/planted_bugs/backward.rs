//! The checks of the way back through combine, permute, gate and a given routing can fail: bugs planted in their kernels.

use da_moe::{ExpertsPerToken, LayerConfig, Losses, Normalize, NormalizeWeights, NullExpert, Policy, Scoring, Source};
use da_moe_harness::case::{Case, small_config};
use da_moe_harness::planted::Shows::{Report, Wrong};
use da_moe_harness::planted::{BOUNDS, Bug, RACE, UNINITIALISED, assert_all_found, assert_clean};

/// Every token has three or four of eight candidates, of which three are null experts.
fn layer(hidden: usize, kind: NullExpert) -> LayerConfig {
    let mut config = LayerConfig { num_null_experts: 3, null_expert: kind, ..LayerConfig::da_moe(hidden, 3, 5, 4) };
    config.importance.source = Source::External;
    config.importance.normalize = Normalize::None;
    config.experts_per_token = ExpertsPerToken::between(Policy::Proportional { scale: None }, 3, 4);
    config
}

/// Several chunks of tokens, not a multiple of any.
fn constants() -> Case {
    Case { lengths: vec![70], ..Case::plain(layer(5, NullExpert::Constant)) }
}

/// Columns that two blocks share.
fn wide_constants() -> Case {
    Case { lengths: vec![35], ..Case::plain(layer(301, NullExpert::Constant)) }
}

fn copies() -> Case {
    let mut config = layer(13, NullExpert::Copy);
    config.router.capacity_factor = Some(0.5);
    Case { lengths: vec![21], ..Case::plain(config) }
}

/// Rows in the second share of a token's columns.
fn wide() -> Case {
    Case { lengths: vec![9], ..Case::plain(layer(70, NullExpert::Zero)) }
}

fn with_losses(scoring: Scoring, normalize: NormalizeWeights) -> Case {
    let mut config = layer(7, NullExpert::Copy);
    (config.router.scoring, config.router.normalize, config.router.routed_scaling) = (scoring, normalize, 2.5);
    config.losses = Losses { balance: 2.0, z: 0.5 };
    Case { lengths: vec![21], masked_every: 4, skew: 1.0, ..Case::plain(config) }
}

fn softmax() -> Case {
    with_losses(Scoring::Softmax, NormalizeWeights::Candidates)
}

fn sigmoid() -> Case {
    with_losses(Scoring::Sigmoid, NormalizeWeights::Selected)
}

fn relu() -> Case {
    with_losses(Scoring::Relu, NormalizeWeights::None)
}

fn undivided() -> Case {
    with_losses(Scoring::Sigmoid, NormalizeWeights::None)
}

/// A shared expert beside a mask.
fn masked() -> Case {
    let config = LayerConfig { shared_intermediate_size: 5, ..small_config() };
    Case { lengths: vec![21], masked_every: 2, ..Case::plain(config) }
}

fn padded() -> Case {
    Case { routing: 1, lengths: vec![19], masked_every: 5, ..Case::plain(small_config()) }
}

fn compressed() -> Case {
    Case { routing: 2, ..padded() }
}

const BUGS: &[Bug] = &[
    // Null experts' weights.
    Bug {
        file: "combine_backward.cu",
        from: "    if (token >= p.tokens) {\n        return;\n    }\n",
        to: "",
        shows: BOUNDS,
        call: copies,
    },
    Bug {
        file: "combine_backward.cu",
        from: "VEC == SPAN || column < width",
        to: "VEC == SPAN || column <= width",
        shows: Report("out of bounds"),
        call: copies,
    },
    Bug {
        file: "combine_backward.cu",
        from: "d_weight = gives ? product : 0.0f;",
        to: "d_weight = product;",
        shows: Wrong,
        call: copies,
    },
    Bug {
        file: "combine_backward.cu",
        from: "lane_index() == lane ? product : d_weight;",
        to: "product;",
        shows: Wrong,
        call: constants,
    },
    Bug {
        file: "combine_backward.cu",
        from: "    return warp_sum(sum);",
        to: "    return sum;",
        shows: Wrong,
        call: copies,
    },
    // Their constants.
    Bug {
        file: "combine_backward.cu",
        from: "        __syncthreads();\n        return count;",
        to: "        return count;",
        shows: Report("race|uninitialised"),
        call: constants,
    },
    Bug {
        file: "combine_backward.cu",
        from: "min((chunk + 1) * p.chunk, p.tokens) * p.slots",
        to: "(chunk + 1) * p.chunk * p.slots",
        shows: BOUNDS,
        call: constants,
    },
    Bug {
        file: "combine_backward.cu",
        from: "sum.store(parts + static_cast<int64_t>(chunk) * p.width);",
        to: "sum.store(parts);",
        shows: RACE,
        call: constants,
    },
    Bug {
        file: "combine_backward.cu",
        from: "static_cast<int>(blockIdx.y)]) && mine)",
        to: "static_cast<int>(blockIdx.y)]))",
        shows: Report("out of bounds|uninitialised|race"),
        call: wide_constants,
    },
    Bug {
        file: "combine_backward.cu",
        from: "(static_cast<int>(blockIdx.y) * THREADS + static_cast<int>(threadIdx.x)) * VEC",
        to: "static_cast<int>(threadIdx.x) * VEC",
        shows: RACE,
        call: wide_constants,
    },
    Bug {
        file: "combine_backward.cu",
        from: "weight * to_float(dy.elements[v])",
        to: "to_float(dy.elements[v])",
        shows: Wrong,
        call: constants,
    },
    // Slots and rows.
    Bug {
        file: "combine/slots.cuh",
        from: "const bool mine = slot < p.slots;",
        to: "const bool mine = slot <= p.slots;",
        shows: BOUNDS,
        call: wide,
    },
    Bug {
        file: "permute_backward.cu",
        from: "if (blockIdx.y == 0) {",
        to: "if (blockIdx.y == 1) {",
        shows: Wrong,
        call: copies,
    },
    Bug {
        file: "permute_backward.cu",
        from: "    if (blockIdx.y == 0) {\n        write_weights(p, token);\n    }\n",
        to: "    write_weights(p, token);\n",
        shows: RACE,
        call: wide,
    },
    Bug {
        file: "permute_backward.cu",
        from: "sum.add(1.0f, static_cast<const Row*>(p.dx_rows)",
        to: "sum.add(weight, static_cast<const Row*>(p.dx_rows)",
        shows: Wrong,
        call: wide,
    },
    Bug {
        file: "permute_backward.cu",
        from: "p.null_kind == NULL_COPY",
        to: "p.null_kind == NULL_ZERO",
        shows: Wrong,
        call: copies,
    },
    Bug { file: "gate_dx.cu", from: "p.of_router != nullptr", to: "false", shows: Wrong, call: softmax },
    // From weights to logits.
    Bug {
        file: "gate_backward.cu",
        from: "    __syncwarp();\n    for (int first",
        to: "    for (int first",
        shows: RACE,
        call: softmax,
    },
    Bug {
        file: "gate_backward.cu",
        from: "        __syncwarp();\n    }\n    Members summed",
        to: "    }\n    Members summed",
        shows: RACE,
        call: softmax,
    },
    Bug {
        file: "gate_backward.cu",
        from: "first_named && expert >= 0 &&",
        to: "first_named &&",
        shows: Report("out of bounds|race|uninitialised"),
        call: softmax,
    },
    Bug {
        file: "gate_backward.cu",
        from: "p.mask == nullptr || p.mask[token] != 0",
        to: "true",
        shows: Wrong,
        call: softmax,
    },
    Bug {
        file: "gate_backward.cu",
        from: "    __syncthreads();\n}",
        to: "}",
        shows: Report("race|uninitialised"),
        call: softmax,
    },
    Bug {
        file: "gate_backward.cu",
        from: "p.balance / (selections * unmasked)",
        to: "p.balance / selections",
        shows: Wrong,
        call: softmax,
    },
    Bug { file: "gate_backward.cu", from: "2.0f * p.z", to: "p.z", shows: Wrong, call: relu },
    Bug {
        file: "gate_backward.cu",
        from: "factor * (powers.values[i] / powers.sum)",
        to: "factor * powers.values[i]",
        shows: Wrong,
        call: sigmoid,
    },
    Bug { file: "gate/slopes.cuh", from: "(v[i] - origin) - mean", to: "v[i] - mean", shows: Wrong, call: softmax },
    Bug {
        file: "gate_backward.cu",
        from: "p.divisor == DIVISOR_NONE ? all : summed",
        to: "all",
        shows: Wrong,
        call: sigmoid,
    },
    Bug {
        file: "gate_backward.cu",
        from: "slopes[i] *= p.routed_scaling;",
        to: "slopes[i] *= 1.0f;",
        shows: Wrong,
        call: softmax,
    },
    Bug {
        file: "gate/slopes.cuh",
        from: "v[i] / shares.origin / shares.sum",
        to: "v[i] / shares.sum",
        shows: Wrong,
        call: relu,
    },
    Bug {
        file: "gate/slopes.cuh",
        from: "SCORING_SIGMOID ? sigmoid_complement(logit) : 1.0f",
        to: "SCORING_SIGMOID ? 1.0f : 1.0f",
        shows: Wrong,
        call: sigmoid,
    },
    Bug {
        file: "gate/slopes.cuh",
        from: "slopes[i] * s * complement",
        to: "slopes[i] * complement",
        shows: Wrong,
        call: undivided,
    },
    Bug { file: "permute_backward.cu", from: " && shared_row >= 0", to: "", shows: BOUNDS, call: masked },
    Bug { file: "gate/slopes.cuh", from: "s > 0.0f ? slopes[i] : 0.0f", to: "slopes[i]", shows: Wrong, call: relu },
    // Back into a caller's routing.
    Bug {
        file: "routing_backward.cu",
        from: "        gradients[place] = 0.0f;\n",
        to: "",
        shows: UNINITIALISED,
        call: padded,
    },
    Bug {
        file: "routing_backward.cu",
        from: "        __syncwarp();\n    }\n    const bool padded",
        to: "    }\n    const bool padded",
        shows: RACE,
        call: padded,
    },
    Bug {
        file: "routing_backward.cu",
        from: "EntryRange{token * p.columns,",
        to: "EntryRange{0,",
        shows: RACE,
        call: padded,
    },
    Bug {
        file: "routing_backward.cu",
        from: "p.d_routing[range.first + place]",
        to: "p.d_routing[padded ? range.first + place : place]",
        shows: RACE,
        call: compressed,
    },
];

#[test]
fn every_planted_bug_is_found_in_every_order() {
    assert_all_found(BUGS, None);
}

#[test]
fn the_kernels_without_a_bug_pass_every_call() {
    let calls =
        [constants, wide_constants, copies, wide, softmax, sigmoid, relu, undivided, masked, padded, compressed];
    calls.into_iter().for_each(assert_clean);
}
