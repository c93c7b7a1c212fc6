//! The checks of gate, permute, combine and a given routing can fail: bugs planted in their kernels and in what all kernels use.

use da_moe::{
    DType, ExpertsPerToken, Keep, LayerConfig, Normalize, NormalizeWeights, NullExpert, Policy, Scoring, Source,
    Threshold,
};
use da_moe_harness::case::{Case, small_config};
use da_moe_harness::planted::Shows::{Report, Unwritten, Wrong};
use da_moe_harness::planted::{BOUNDS, Bug, RACE, UNINITIALISED, assert_all_found, assert_clean};

fn with_policy(policy: Policy) -> LayerConfig {
    let mut config = small_config();
    config.importance.source = Source::External;
    config.importance.normalize = Normalize::None;
    config.experts_per_token = ExpertsPerToken::between(policy, 0, 4);
    config
}

/// Several blocks of tokens in the gate, not a multiple of any block.
fn plain() -> Case {
    Case { lengths: vec![9, 0, 12], ..Case::plain(with_policy(Policy::Proportional { scale: None })) }
}

fn thresholds() -> Case {
    Case::plain(with_policy(Policy::Thresholds { thresholds: vec![0.2, 0.4, 0.8] }))
}

fn above_scores() -> Case {
    Case::plain(with_policy(Policy::ScoreThreshold { threshold: Threshold::All(0.15) }))
}

fn top_p() -> Case {
    Case::plain(with_policy(Policy::TopP { p: 0.7 }))
}

/// Two blocks of tokens in the search for the price, with ties.
fn budget() -> Case {
    Case { lengths: vec![200, 101], ..Case::plain(with_policy(Policy::Budget { mean_k: 1.7 })) }
}

fn groups() -> Case {
    let mut config = with_policy(Policy::Fixed { k: 2 });
    (config.router.n_group, config.router.topk_group) = (3, 2);
    Case::plain(config)
}

/// Two blocks of entries in the plan, and experts over their capacity.
fn capacity() -> Case {
    let mut config = with_policy(Policy::Fixed { k: 4 });
    config.router.capacity_factor = Some(0.75);
    Case { lengths: vec![700], skew: 2.0, ..Case::plain(config) }
}

fn many_entries() -> Case {
    Case { lengths: vec![601], ..Case::plain(with_policy(Policy::Proportional { scale: None })) }
}

/// A shared expert beside a mask.
fn masked() -> Case {
    let config = LayerConfig { shared_intermediate_size: 5, ..small_config() };
    Case { lengths: vec![45], masked_every: 2, ..Case::plain(config) }
}

fn far(experts: usize, scoring: Scoring) -> Case {
    let mut config = LayerConfig::da_moe(12, 10, experts, experts);
    config.importance.source = Source::External;
    (config.router.scoring, config.router.normalize) = (scoring, NormalizeWeights::Selected);
    Case { far: true, lengths: vec![40], ..Case::plain(config) }
}

/// Of one expert, whose weight is 1 whatever its score is.
fn far_below() -> Case {
    Case { skew: -300.0, ..far(1, Scoring::Sigmoid) }
}

fn far_softmax() -> Case {
    far(6, Scoring::Softmax)
}

fn far_relu() -> Case {
    far(6, Scoring::Relu)
}

fn copies() -> Case {
    let config = LayerConfig { num_null_experts: 2, null_expert: NullExpert::Copy, ..small_config() };
    Case { dtype: DType::Bf16, ..Case::plain(config) }
}

fn padded() -> Case {
    Case { routing: 1, masked_every: 5, ..Case::plain(small_config()) }
}

const BUGS: &[Bug] = &[
    // The last block to arrive.
    Bug {
        file: "device/block.cuh",
        from: "        __threadfence();\n        last[0]",
        to: "        last[0]",
        shows: RACE,
        call: plain,
    },
    Bug {
        file: "device/block.cuh",
        from: "        // Acquires the other blocks'.\n        __threadfence();",
        to: "",
        shows: RACE,
        call: plain,
    },
    Bug {
        file: "device/block.cuh",
        from: "    SHARED_ARRAY(uint32_t, last, 1);\n    __syncthreads();",
        to: "    SHARED_ARRAY(uint32_t, last, 1);",
        shows: RACE,
        call: plain,
    },
    Bug {
        file: "device/block.cuh",
        from: "last[0] = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;",
        to: "last[0] = (*ticket)++ == gridDim.x - 1;",
        shows: RACE,
        call: plain,
    },
    // Sums of a block.
    Bug {
        file: "device/block.cuh",
        from: "        scratch[warp_index()] = inclusive;\n    }\n    __syncthreads();",
        to: "        scratch[warp_index()] = inclusive;\n    }",
        shows: Report("shared memory"),
        call: many_entries,
    },
    Bug {
        file: "device/block.cuh",
        from: "    __syncthreads();\n    return before + inclusive - value;",
        to: "    return before + inclusive - value;",
        shows: RACE,
        call: capacity,
    },
    // The gate.
    Bug {
        file: "gate.cu",
        from: "if (lane_index() == 0 && p.policy != POLICY_BUDGET)",
        to: "if (lane_index() == 0)",
        shows: RACE,
        call: budget,
    },
    Bug {
        file: "gate.cu",
        from: "    __syncthreads();\n    write_part(p, part, load, of_warps);",
        to: "    write_part(p, part, load, of_warps);",
        shows: RACE,
        call: groups,
    },
    Bug {
        file: "gate.cu",
        from: "const int end = min(first + p.tokens_per_warp, p.tokens);",
        to: "const int end = first + p.tokens_per_warp;",
        shows: BOUNDS,
        call: plain,
    },
    Bug {
        file: "gate.cu",
        from: "        thresholds[e] = p.thresholds[e];\n",
        to: "",
        shows: UNINITIALISED,
        call: thresholds,
    },
    Bug { file: "gate.cu", from: "        load[e] = 0;\n", to: "", shows: UNINITIALISED, call: plain },
    Bug {
        file: "gate.cu",
        from: "atomicAdd(&load[candidate_of(i)], 1);",
        to: "load[candidate_of(i)] += 1;",
        shows: RACE,
        call: plain,
    },
    Bug {
        file: "gate.cu",
        from: "for (int slot = k + lane_index(); slot < p.k_max; slot += WARP)",
        to: "for (int slot = k + 1 + lane_index(); slot < p.k_max; slot += WARP)",
        shows: Unwritten,
        call: plain,
    },
    Bug {
        file: "gate.cu",
        from: "counts && place < sum_places",
        to: "counts && place + 1 < sum_places",
        shows: Wrong,
        call: plain,
    },
    Bug {
        file: "gate/select.cuh",
        from: "        if (sum >= p.p) {",
        to: "        if (sum >= p.p && lane_index() != 7) {",
        shows: Report("divergence|deadlock"),
        call: top_p,
    },
    Bug {
        file: "gate/select.cuh",
        from: "            scratch.keys[candidate_of(i)] = keys[i];\n        }\n    }\n    __syncwarp();",
        to: "            scratch.keys[candidate_of(i)] = keys[i];\n        }\n    }",
        shows: Report("shared memory"),
        call: groups,
    },
    Bug {
        file: "gate/select.cuh",
        from: "            scratch.chosen[group] = 1;\n        }\n    }\n    __syncwarp();",
        to: "            scratch.chosen[group] = 1;\n        }\n    }",
        shows: RACE,
        call: groups,
    },
    Bug {
        file: "gate/select.cuh",
        from: "key > thresholds[e]",
        to: "key >= thresholds[e] - 0.05f",
        shows: Wrong,
        call: above_scores,
    },
    // Scores that have no f32.
    Bug {
        file: "gate/scores.cuh",
        from: "expf(negative(logit) - negative(origin))",
        to: "expf(negative(logit))",
        shows: Wrong,
        call: far_below,
    },
    Bug { file: "gate/scores.cuh", from: "expf(logit - origin)", to: "expf(logit)", shows: Wrong, call: far_softmax },
    Bug {
        file: "gate/select.cuh",
        from: "by_logits ? biased(logits[e], bias_of(p, e)) : key;",
        to: "key;",
        shows: Wrong,
        call: far_softmax,
    },
    Bug {
        file: "gate/select.cuh",
        from: "bool plain = p.scoring != SCORING_RELU;",
        to: "bool plain = true;",
        shows: Wrong,
        call: far_relu,
    },
    Bug {
        file: "gate/demand.cuh",
        from: "reached += importance >= thresholds[i];",
        to: "reached += importance >= 0.5f * thresholds[i];",
        shows: Wrong,
        call: thresholds,
    },
    // The budget.
    Bug {
        file: "budget.cu",
        from: "atomicAdd(&p.histogram[i], bins[i]);",
        to: "p.histogram[i] += bins[i];",
        shows: RACE,
        call: budget,
    },
    Bug { file: "budget.cu", from: "        p.histogram[top - i] = 0;\n", to: "", shows: Wrong, call: budget },
    Bug {
        file: "budget.cu",
        from: "won += bits > price ||",
        to: "won += bits >= price ||",
        shows: Wrong,
        call: budget,
    },
    Bug {
        file: "budget.cu",
        from: "return token < p.tokens && (p.mask",
        to: "return token <= p.tokens && (p.mask",
        shows: BOUNDS,
        call: budget,
    },
    // The plan.
    Bug {
        file: "permute.cu",
        from: "    const int before = candidate == NOBODY ? 0 : counts[candidate];\n    __syncwarp();",
        to: "    const int before = candidate == NOBODY ? 0 : counts[candidate];",
        shows: RACE,
        call: many_entries,
    },
    Bug {
        file: "permute.cu",
        from: "        counts[candidate] = before + __popc(equal);\n    }\n    __syncwarp();",
        to: "        counts[candidate] = before + __popc(equal);\n    }",
        shows: RACE,
        call: many_entries,
    },
    Bug {
        file: "permute.cu",
        from: "            row += count;\n        }\n    }\n    __syncthreads();",
        to: "            row += count;\n        }\n    }",
        shows: RACE,
        call: many_entries,
    },
    Bug {
        file: "permute.cu",
        from: "exists(p, round) ? p.experts[place] : NOBODY;",
        to: "p.experts[place];",
        // What lies there is a matter of luck, and may be shared memory.
        shows: Report("out of bounds|uninitialised"),
        call: plain,
    },
    Bug { file: "permute.cu", from: "            p.token_row[entry] = -1;\n", to: "", shows: Unwritten, call: plain },
    Bug {
        file: "permute.cu",
        from: "return before + __popc(equal & lanes_below());",
        to: "return before + __popc(equal & ~lanes_below()) - 1;",
        shows: Wrong,
        call: many_entries,
    },
    Bug {
        file: "permute.cu",
        from: "            bins[threadIdx.x] = 0;\n        }\n        __syncthreads();",
        to: "            bins[threadIdx.x] = 0;\n        }",
        shows: Report("shared memory"),
        call: capacity,
    },
    Bug {
        file: "permute.cu",
        from: "by_weight = p.by_weight &&",
        to: "by_weight = !p.by_weight &&",
        shows: Wrong,
        call: capacity,
    },
    Bug {
        file: "permute.cu",
        from: "    for (int round = 0; round < ROUNDS; round++) {\n        // Null",
        to: "    for (int round = 0; round <= ROUNDS; round++) {\n        // Null",
        shows: BOUNDS,
        call: plain,
    },
    // The rows of the shared expert.
    Bug {
        file: "permute.cu",
        from: "const bool is_there = i < mine && p.mask[first + i] != 0;",
        to: "const bool is_there = p.mask[first + i] != 0;",
        shows: Report("out of bounds|uninitialised"),
        call: masked,
    },
    Bug { file: "permute.cu", from: "            row += is_there ? 1 : 0;\n", to: "", shows: Wrong, call: masked },
    Bug { file: "permute.cu", from: "        p.offsets[1] = rows.before;\n", to: "", shows: Unwritten, call: masked },
    Bug { file: "combine.cu", from: " && shared_row >= 0", to: "", shows: BOUNDS, call: masked },
    // Combine.
    Bug {
        file: "combine.cu",
        from: "    if (token >= p.tokens) {\n        return;\n    }\n",
        to: "",
        shows: BOUNDS,
        call: plain,
    },
    Bug {
        file: "device/columns.cuh",
        from: "            if (column < width) {\n                Vector<S, VEC> vector;",
        to: "            if (column <= width) {\n                Vector<S, VEC> vector;",
        shows: Report("race|out of bounds"),
        call: plain,
    },
    Bug {
        file: "device/columns.cuh",
        from: "Vector<S, VEC>::load(row + column)",
        to: "Vector<S, VEC>::load(row + column + 1)",
        shows: Report("misaligned"),
        call: plain,
    },
    Bug {
        file: "combine.cu",
        from: "static_cast<S*>(p.y)",
        to: "const_cast<S*>(static_cast<const S*>(p.x))",
        shows: Report("read-only"),
        call: copies,
    },
    Bug {
        file: "combine.cu",
        from: "p.null_kind == NULL_COPY",
        to: "p.null_kind == NULL_ZERO",
        shows: Wrong,
        call: copies,
    },
    // A routing from the caller.
    Bug { file: "routing.cu", from: "        p.ranked[first + slot] = -1;\n", to: "", shows: Unwritten, call: padded },
    Bug {
        file: "routing.cu",
        from: "if (expert >= 0 && expert < p.candidates) {",
        to: "if (expert >= 0) {",
        shows: UNINITIALISED,
        call: padded,
    },
];

#[test]
fn every_planted_bug_is_found_in_every_order() {
    assert_all_found(BUGS, Some(Keep::Nothing));
}

#[test]
fn the_kernels_without_a_bug_pass_every_call() {
    let gates = [plain, thresholds, above_scores, top_p, budget, groups];
    let plans = [capacity, many_entries, masked, copies, padded];
    let scores = [far_below, far_softmax, far_relu];
    [&gates[..], &plans, &scores].concat().into_iter().for_each(assert_clean);
}
