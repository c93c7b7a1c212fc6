//! The kernels alone, where their own blocks, warps and registers end: sizes that the layer's random calls are too small
//! for, and parameters that host code chooses by size.

use da_moe::cuda::{Device, Staged};
use da_moe::{
    AttentionSource, Buffer, DType, Drop, ExpertsPerToken, Heads, Keep, LayerConfig, Normalize, NullExpert, Policy,
    Scoring, Source, Threshold,
};
use da_moe_harness::case::{Attend, Case, attention_source, small_config};
use da_moe_harness::data::Data;
use da_moe_harness::kernels::{on_each, subjects};
use da_moe_harness::{Subject, Through, assert_agrees, assert_data_agrees};

/// Runs a case on the kernels wherever they run, forward: tests/kernels/backward.rs has the way back.
fn agrees(case: &Case) {
    let case = Case { keep: Keep::Nothing, ..case.clone() };
    subjects().iter().for_each(|subject| assert_agrees(&**subject, &case));
}

/// A layer whose experts cost nothing, so that the gate and the plan are what is tested.
fn narrow(experts: usize, k_max: usize) -> LayerConfig {
    let mut config = LayerConfig::da_moe(5, 2, experts, k_max);
    config.importance.source = Source::External;
    config.importance.normalize = Normalize::None;
    config
}

#[test]
fn candidates_around_every_size_of_a_kernel() {
    for experts in [1, 31, 32, 33, 64, 65, 127, 129, 255, 257, 512] {
        for (scoring, min, max) in [(Scoring::Softmax, 0, 3), (Scoring::Sigmoid, 1, 40), (Scoring::Relu, 2, 8)] {
            let mut config = narrow(experts, 1);
            let (min, max) = (min.min(experts), max.min(experts));
            config.experts_per_token = ExpertsPerToken::between(Policy::Proportional { scale: Some(50.0) }, min, max);
            config.router.scoring = scoring;
            agrees(&Case { lengths: vec![11], router_bias: true, ..Case::plain(config) });
        }
    }
}

#[test]
fn every_expert_for_every_token() {
    for experts in [40, 300, 512] {
        let mut config = narrow(experts, experts);
        config.experts_per_token = ExpertsPerToken::new(Policy::Fixed { k: experts });
        agrees(&Case { lengths: vec![3], ..Case::plain(config.clone()) });
        agrees(&Case { lengths: vec![3], routing: 1, ..Case::plain(config.clone()) });
        agrees(&Case { lengths: vec![3], routing: 2, ..Case::plain(config) });
    }
}

#[test]
fn groups_of_every_size() {
    for (groups, chosen) in [(2, 1), (8, 3), (32, 10), (96, 5)] {
        let mut config = narrow(80, 4);
        (config.num_null_experts, config.null_expert) = (16, NullExpert::Copy);
        (config.router.n_group, config.router.topk_group) = (groups, chosen);
        config.experts_per_token = ExpertsPerToken::between(Policy::TopP { p: 0.5 }, 1, 4);
        agrees(&Case { lengths: vec![20], router_bias: true, ..Case::plain(config.clone()) });
        let threshold = Threshold::Each((0..96).map(|e| f64::from(e) * 1e-3).collect());
        config.experts_per_token = ExpertsPerToken::between(Policy::ScoreThreshold { threshold }, 0, 4);
        agrees(&Case { lengths: vec![20], ..Case::plain(config) });
    }
}

#[test]
fn plans_over_several_blocks_with_every_kind_of_skew() {
    for (skew, lengths) in [(0.0, vec![1030]), (3.0, vec![600, 0, 90]), (60.0, vec![1, 800])] {
        for capacity in [None, Some(0.0), Some(0.3), Some(1.0), Some(50.0)] {
            for drop in [Drop::Weight, Drop::Token] {
                let mut config = narrow(7, 4);
                (config.num_null_experts, config.null_expert) = (2, NullExpert::Zero);
                (config.router.capacity_factor, config.router.drop) = (capacity, drop);
                let case = Case { skew, lengths: lengths.clone(), masked_every: 9, ..Case::plain(config) };
                agrees(&case);
            }
        }
    }
}

#[test]
fn equal_weights_are_dropped_in_token_order() {
    let mut config = narrow(3, 2);
    config.router.capacity_factor = Some(0.6);
    config.experts_per_token = ExpertsPerToken::new(Policy::Fixed { k: 2 });
    let case = Case { lengths: vec![900], ..Case::plain(config) };
    let mut data = Data::new(&case);
    data.router = Buffer::zeros(DType::F32, data.router.len());
    for subject in subjects() {
        let outcome = assert_data_agrees(&*subject, &data, &case);
        // 1800 selections of experts 0 and 1; each keeps ceil(0.6 · 1800 / 3) rows, the earliest.
        assert_eq!(outcome.counts, [360, 360, 0]);
        assert_eq!(outcome.row_token[..360], (0..360).collect::<Vec<i64>>());
    }
}

#[test]
fn a_budget_over_several_blocks_with_ties() {
    for values in [vec![0.5f32], vec![0.0], vec![1.0, 0.5, 0.25], vec![1e-40, 0.3], vec![f32::INFINITY, 1.0]] {
        for (mean_k, min, max) in [(1.3, 0, 5), (2.0, 1, 3), (0.0, 0, 4), (4.0, 1, 4)] {
            let mut config = narrow(6, 5);
            config.experts_per_token = ExpertsPerToken::between(Policy::Budget { mean_k }, min, max);
            let case = Case { lengths: vec![300, 217], masked_every: 7, ..Case::plain(config) };
            let mut data = Data::new(&case);
            data.importance = (0..data.tokens).map(|t| values[t % values.len()]).collect::<Vec<f32>>().into();
            for subject in subjects() {
                assert_data_agrees(&*subject, &data, &case);
            }
        }
    }
}

#[test]
fn attention_wider_than_a_tile_in_every_type_and_alignment() {
    for measure in AttentionSource::ALL {
        for (dtype, longest) in [(DType::F32, 131), (DType::F32, 130), (DType::Bf16, 263), (DType::F16, 70)] {
            for causal in [false, true] {
                let mut config = small_config();
                config.importance.source = Source::Attention { measure, heads: Heads::Max, scale: None };
                (config.importance.causal, config.importance.allow_future) = (causal, true);
                // The side of the matrix is one more than the longest sequence: a multiple of 128 bits, or not.
                let case = Case {
                    dtype,
                    lengths: vec![longest, 0, 5],
                    attend: Attend::Probabilities,
                    masked_every: if causal { 3 } else { 0 },
                    heads: [3, 3, 5],
                    ..Case::plain(config)
                };
                agrees(&case);
            }
        }
    }
}

/// More keys than a block knows at once which of them take part.
#[test]
fn masks_longer_than_a_block_holds() {
    for (measure, dtype) in [(AttentionSource::GivenEntropy, DType::Bf16), (AttentionSource::GivenPeak, DType::F32)] {
        let mut config = narrow(4, 3);
        config.importance.source = attention_source(measure);
        (config.importance.causal, config.importance.allow_future) = (dtype == DType::F32, true);
        let attend = Attend::Probabilities;
        let keep = Keep::Nothing;
        let case = Case { dtype, lengths: vec![2055], attend, heads: [1, 1, 1], keep, ..Case::plain(config) };
        let mut data = Data::new(&case);
        let takes_part = |t: usize| u8::from(t % 401 == 3 || t > 2045);
        data.mask = Some((0..data.tokens).map(takes_part).collect::<Vec<u8>>().into());
        for subject in subjects() {
            assert_data_agrees(&*subject, &data, &case);
        }
    }
}

#[test]
fn ranks_across_tiles_and_sequences() {
    for lengths in [vec![700], vec![100, 0, 200, 1, 300], vec![0, 256, 256, 0]] {
        let mut config = narrow(4, 3);
        config.importance.source = attention_source(AttentionSource::GivenSelf);
        (config.importance.normalize, config.importance.allow_future) = (Normalize::Rank, true);
        let case = Case { lengths, masked_every: 4, ..Case::plain(config.clone()) };
        agrees(&case);
        config.importance.source = Source::TokenFrequency;
        agrees(&Case { config, ..case });
    }
}

#[test]
fn rows_wider_than_a_warp_in_every_type() {
    for (dtype, width) in [(DType::F32, 300), (DType::F32, 301), (DType::Bf16, 520), (DType::F16, 516)] {
        let mut config = LayerConfig::da_moe(width, 3, 4, 3);
        (config.num_null_experts, config.null_expert) = (2, NullExpert::Constant);
        config.shared_intermediate_size = 2;
        agrees(&Case { dtype, lengths: vec![19], ..Case::plain(config) });
    }
}

#[test]
fn warps_with_several_tokens_add_up_to_the_same_totals() {
    on_each(check_tokens_per_warp, check_tokens_per_warp);
}

fn check_tokens_per_warp<D: Device>(kernels: Staged<D>) {
    for routing in [0, 1] {
        let mut config = small_config();
        config.experts_per_token = ExpertsPerToken::between(Policy::BudgetRunning { mean_k: 2.0, momentum: 0.5 }, 0, 4);
        let case = Case { lengths: vec![101], masked_every: 6, training: true, routing, ..Case::plain(config) };
        let data = Data::new(&case);
        // As for tens of thousands of tokens; 13 leaves some warps without any, 200 all but one.
        for tokens_per_warp in [1, 2, 3, 13, 200] {
            let kernels = Staged::new(kernels.kernels().clone().tokens_per_warp(tokens_per_warp));
            let outcome = Through(kernels).run(&data, &case).unwrap();
            da_moe_harness::judge(&data, &outcome).unwrap();
        }
    }
}
