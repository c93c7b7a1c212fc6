//! The checks of importance from a matrix, from logits and by rules over sequences can fail: bugs planted in their kernels.

use da_moe::{AttentionSource, Keep, Normalize, Source};
use da_moe_harness::case::{Attend, Case, attention_source, small_config};
use da_moe_harness::planted::Shows::{Report, Wrong};
use da_moe_harness::planted::{Bug, RACE, assert_all_found, assert_clean};

fn normalized(measure: AttentionSource, normalize: Normalize) -> Case {
    let mut config = small_config();
    config.importance.source = attention_source(measure);
    (config.importance.normalize, config.importance.allow_future) = (normalize, true);
    Case { attend: Attend::Probabilities, masked_every: 4, lengths: vec![40, 0, 3], ..Case::plain(config) }
}

fn received() -> Case {
    normalized(AttentionSource::ReceivedSum, Normalize::None)
}

/// Queries that come before a key, in the matrix too.
fn mean() -> Case {
    let mut case = normalized(AttentionSource::ReceivedMean, Normalize::None);
    case.config.importance.causal = true;
    Case { masked_every: 2, ..case }
}

fn given() -> Case {
    normalized(AttentionSource::GivenEntropy, Normalize::MinMax)
}

fn entropy() -> Case {
    normalized(AttentionSource::GivenEntropy, Normalize::None)
}

/// Rows that end within a vector of keys.
fn causal() -> Case {
    let mut case = entropy();
    case.config.importance.causal = true;
    Case { masked_every: 0, lengths: vec![43, 0, 3], ..case }
}

fn undecided() -> Case {
    let mut config = small_config();
    config.importance.source = Source::RouterEntropy;
    Case::plain(config)
}

fn ranked() -> Case {
    Case { lengths: vec![280, 7], ..normalized(AttentionSource::ReceivedMax, Normalize::Rank) }
}

/// Further than a block compares at once.
fn ranked_far() -> Case {
    let mut config = small_config();
    (config.importance.source, config.importance.normalize) = (Source::External, Normalize::Rank);
    Case { lengths: vec![1100], ..Case::plain(config) }
}

const BUGS: &[Bug] = &[
    Bug {
        file: "device/block.cuh",
        from: "        scratch[warp_index()] = of_warp;\n    }\n    __syncthreads();",
        to: "        scratch[warp_index()] = of_warp;\n    }",
        shows: Report("shared memory"),
        call: given,
    },
    Bug {
        file: "importance_probabilities.cu",
        from: "    __syncthreads();\n    const int i = static_cast<int>(threadIdx.x);",
        to: "    const int i = static_cast<int>(threadIdx.x);",
        shows: Report("shared memory"),
        call: received,
    },
    Bug {
        file: "importance_probabilities.cu",
        from: "    Received<VEC> mine = {};",
        to: "    if (key >= place.length) {\n        return;\n    }\n    Received<VEC> mine = {};",
        shows: Report("divergence"),
        call: received,
    },
    Bug {
        file: "importance_probabilities.cu",
        from: "__reduce_add_sync(FULL_WARP, mine.visible);",
        to: "lane_index() < 16 ? __reduce_add_sync(0xffffu, mine.visible) : mine.visible;",
        shows: Wrong,
        call: entropy,
    },
    Bug {
        file: "importance_probabilities.cu",
        from: "bits.fill(p.mask + place.first, first, block_end);\n            __syncthreads();",
        to: "bits.fill(p.mask + place.first, first, block_end);",
        shows: Report("shared memory"),
        call: entropy,
    },
    Bug {
        file: "importance_probabilities.cu",
        from: "const int there = min(max(end - key, 0), VEC);",
        to: "const int there = VEC;",
        shows: Wrong,
        call: causal,
    },
    Bug {
        file: "importance_probabilities.cu",
        from: "seen_by = -early;",
        to: "seen_by = 0;",
        shows: Wrong,
        call: mean,
    },
    Bug {
        file: "importance_probabilities.cu",
        from: "if (start < diagonal_end) {",
        to: "if (start + QUERIES * WARPS < diagonal_end) {",
        shows: Wrong,
        call: mean,
    },
    Bug {
        file: "importance.cu",
        from: "    total = warp_sum(total);",
        to: "    if (lane_index() < 20) {\n        total = warp_sum(total);\n    }",
        shows: Report("divergence"),
        call: undecided,
    },
    Bug {
        file: "importance.cu",
        from: "                alone[v].compare_all({values[v]}, others, own[v].first - tile, own[v].end - tile);\n            }\n        }\n        __syncthreads();",
        to: "                alone[v].compare_all({values[v]}, others, own[v].first - tile, own[v].end - tile);\n            }\n        }",
        shows: RACE,
        call: ranked_far,
    },
    Bug {
        file: "importance.cu",
        from: "static_cast<float>(ranks + 1)",
        to: "static_cast<float>(ranks)",
        shows: Wrong,
        call: ranked,
    },
    Bug {
        file: "importance.cu",
        from: "others += is_below(other, NOBODY);",
        to: "others += 1;",
        shows: Wrong,
        call: ranked,
    },
    Bug {
        file: "importance.cu",
        from: "max(first, 0) + own;",
        to: "max(first, 0) + own / 2 * 2;",
        shows: Wrong,
        call: ranked,
    },
];

#[test]
fn every_planted_bug_is_found_in_every_order() {
    assert_all_found(BUGS, Some(Keep::Nothing));
}

#[test]
fn the_kernels_without_a_bug_pass_every_call() {
    [received, mean, given, entropy, causal, undecided, ranked, ranked_far].into_iter().for_each(assert_clean);
}
