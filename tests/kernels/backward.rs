//! The way back through combine, permute, gate and a given routing on the kernels: where blocks, warps and registers end, for
//! every kind of null expert, score, normalisation and loss.

use da_moe::{
    Activation, DType, ExpertsPerToken, LayerConfig, Losses, Normalize, NormalizeWeights, NullExpert, Policy, Scoring,
    Source,
};
use da_moe_harness::assert_agrees;
use da_moe_harness::case::Case;
use da_moe_harness::kernels::subjects;

const SCORINGS: [Scoring; 3] = [Scoring::Softmax, Scoring::Sigmoid, Scoring::Relu];
const DIVISORS: [NormalizeWeights; 3] =
    [NormalizeWeights::None, NormalizeWeights::Selected, NormalizeWeights::Candidates];
const LOSSES: [Losses; 4] = [
    Losses { balance: 0.0, z: 0.0 },
    Losses { balance: 0.5, z: 0.0 },
    Losses { balance: 0.0, z: 0.25 },
    Losses { balance: 0.3, z: 0.1 },
];

/// Runs a case on the kernels wherever they run.
fn agrees(case: &Case) {
    subjects().iter().for_each(|subject| assert_agrees(&**subject, case));
}

/// The same in every storage type.
fn agrees_in_every_type(case: &Case) {
    [DType::F32, DType::Bf16, DType::F16].into_iter().for_each(|dtype| agrees(&Case { dtype, ..case.clone() }));
}

/// A layer whose experts cost nothing, with so many of them chosen by importance.
fn narrow(hidden: usize, experts: usize, most: usize) -> LayerConfig {
    let mut config = LayerConfig { hidden_act: Activation::Silu, ..LayerConfig::da_moe(hidden, 1, experts, 1) };
    config.importance.source = Source::External;
    config.importance.normalize = Normalize::None;
    config.experts_per_token = ExpertsPerToken::between(Policy::Proportional { scale: Some(most as f64) }, 0, most);
    config
}

/// The same with null experts, which take about as many tokens as the others.
fn with_nulls(hidden: usize, [experts, nulls, most]: [usize; 3], kind: NullExpert) -> LayerConfig {
    let mut config = narrow(hidden, experts, most);
    (config.num_null_experts, config.null_expert) = (nulls, kind);
    config
}

#[test]
fn every_score_normalisation_and_loss() {
    for (i, scoring) in SCORINGS.into_iter().enumerate() {
        for (j, normalize) in DIVISORS.into_iter().enumerate() {
            for (k, losses) in LOSSES.into_iter().enumerate() {
                let mut config = with_nulls(7, [5, 2, 4], NullExpert::Copy);
                (config.router.scoring, config.router.normalize, config.losses) = (scoring, normalize, losses);
                config.router.routed_scaling = 2.5;
                config.router.capacity_factor = (k % 2 == 1).then_some(0.7);
                let dtype = [DType::F32, DType::Bf16, DType::F16][(i + j + k) % 3];
                agrees(&Case { dtype, lengths: vec![21], masked_every: 5, ..Case::plain(config) });
            }
        }
    }
}

#[test]
fn candidates_around_every_size_of_a_kernel() {
    for (n, candidates) in [1, 31, 32, 33, 63, 65, 127, 129, 255, 257, 511, 512].into_iter().enumerate() {
        for (i, scoring) in SCORINGS.into_iter().enumerate() {
            // Few of them with rows of their own, whose gradients are not what is tested.
            let routed = candidates.min(3);
            let sizes = [routed, candidates - routed, candidates.min(7)];
            let mut config = with_nulls(5, sizes, NullExpert::Copy);
            (config.router.scoring, config.router.normalize) = (scoring, DIVISORS[(n + i) % 3]);
            config.losses = Losses { balance: 0.3, z: 0.1 };
            agrees(&Case { lengths: vec![10], masked_every: 6, ..Case::plain(config) });
        }
    }
}

#[test]
fn as_many_slots_as_candidates() {
    for (experts, nulls, kind) in [(40, 0, NullExpert::Zero), (60, 30, NullExpert::Copy)] {
        for normalize in DIVISORS {
            let mut config = with_nulls(5, [experts, nulls, experts + nulls], kind);
            config.router.normalize = normalize;
            agrees(&Case { lengths: vec![4], ..Case::plain(config.clone()) });
            agrees(&Case { lengths: vec![4], routing: 1, ..Case::plain(config.clone()) });
            agrees(&Case { lengths: vec![4], routing: 2, ..Case::plain(config) });
        }
    }
    let all = with_nulls(5, [12, 500, 512], NullExpert::Constant);
    agrees(&Case { lengths: vec![3], ..Case::plain(all) });
}

#[test]
fn scores_that_are_nearly_one() {
    // All but one of a token's differences cancel; the bounds are relative to what is left.
    for scoring in SCORINGS {
        for normalize in DIVISORS {
            let mut config = narrow(6, 40, 3);
            (config.router.scoring, config.router.normalize) = (scoring, normalize);
            config.losses = Losses { balance: 0.5, z: 0.0 };
            agrees(&Case { lengths: vec![17], skew: 30.0, ..Case::plain(config) });
        }
    }
}

#[test]
fn rows_around_every_vector_and_share() {
    for (kind, widths) in [
        (NullExpert::Zero, [1, 4, 64, 128, 264]),
        (NullExpert::Copy, [3, 8, 65, 132, 513]),
        (NullExpert::Constant, [2, 63, 127, 255, 520]),
    ] {
        for hidden in widths {
            let mut config = with_nulls(hidden, [2, 3, 3], kind);
            config.shared_intermediate_size = hidden % 2;
            let lengths = vec![if hidden > 64 { 3 } else { 9 }];
            agrees_in_every_type(&Case { lengths, ..Case::plain(config) });
        }
    }
}

#[test]
fn constants_over_several_chunks_steps_and_shares() {
    // A block of constants has 32 tokens at least, 1024 slots a step, and 256 vectors of columns.
    for (dtype, hidden, tokens, most) in [
        (DType::F32, 5, 32, 3),
        (DType::F32, 4, 33, 3),
        (DType::F16, 8, 70, 40),
        (DType::Bf16, 3, 37, 33),
        (DType::F32, 257, 40, 2),
        (DType::F32, 1028, 40, 2),
        (DType::Bf16, 2056, 5, 2),
    ] {
        for skew in [0.0, 20.0] {
            let config = with_nulls(hidden, [most, 3, most], NullExpert::Constant);
            agrees(&Case { dtype, lengths: vec![tokens], skew, masked_every: 7, ..Case::plain(config) });
        }
    }
}

#[test]
fn constants_that_nobody_chooses() {
    let mut config = with_nulls(6, [3, 2, 2], NullExpert::Constant);
    config.experts_per_token = ExpertsPerToken::between(Policy::Fixed { k: 0 }, 0, 2);
    for lengths in [vec![], vec![9]] {
        agrees_in_every_type(&Case { lengths, ..Case::plain(config.clone()) });
    }
}

#[test]
fn no_tokens_one_token_and_only_padding() {
    for kind in [NullExpert::Zero, NullExpert::Copy, NullExpert::Constant] {
        for (lengths, masked_every) in [(vec![], 0), (vec![0, 0], 1), (vec![1], 0), (vec![1], 1), (vec![13], 1)] {
            for routing in [0, 1, 2] {
                let mut config = with_nulls(6, [3, 2, 3], kind);
                config.losses = Losses { balance: 0.3, z: 0.1 };
                agrees(&Case { lengths: lengths.clone(), masked_every, routing, ..Case::plain(config) });
            }
        }
    }
}

#[test]
fn rows_that_lie_apart() {
    for kind in [NullExpert::Copy, NullExpert::Constant] {
        for padding in [3, 8] {
            let config = with_nulls(24, [3, 2, 3], kind);
            agrees_in_every_type(&Case { lengths: vec![11], padding, ..Case::plain(config) });
        }
    }
}

#[test]
fn slots_that_were_dropped() {
    for capacity in [0.0, 0.4, 1.0] {
        for kind in [NullExpert::Zero, NullExpert::Copy, NullExpert::Constant] {
            let mut config = with_nulls(9, [4, 2, 5], kind);
            config.router.capacity_factor = Some(capacity);
            agrees(&Case { lengths: vec![40], skew: 2.0, ..Case::plain(config) });
        }
    }
}

#[test]
fn routings_of_more_entries_than_lanes() {
    for routing in [1, 2] {
        for experts in [33, 65, 300] {
            let config = with_nulls(4, [4, experts, experts], NullExpert::Copy);
            agrees(&Case { lengths: vec![19], masked_every: 4, routing, ..Case::plain(config) });
        }
    }
}
