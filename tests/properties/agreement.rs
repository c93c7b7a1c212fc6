//! Every backend computes what SPEC.md says: forward and backward, on any valid call, within SPEC §8.

use da_moe::{
    Activation, AttentionSource, DType, ExpertsPerToken, Keep, LayerConfig, Normalize, Policy, Source, Threshold,
};
use da_moe_harness::case::{Attend, Case, attention_source, case, small_config};
use da_moe_harness::{assert_agrees, subjects, taking_turns};
use proptest::prelude::*;

proptest! {
    #![proptest_config(da_moe_harness::cases(400))]

    #[test]
    fn any_call_agrees_with_the_oracle(case in case()) {
        for subject in subjects() {
            assert_agrees(&*subject, &case);
        }
    }
}

/// Runs a case in every storage type.
fn everywhere(case: &Case) {
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        for subject in subjects() {
            assert_agrees(&*subject, &Case { dtype, ..case.clone() });
        }
    }
}

/// The same for one of very many cases, counting calls.
fn in_turn(case: &Case, calls: &mut usize) {
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        taking_turns(*calls).iter().for_each(|subject| assert_agrees(&**subject, &Case { dtype, ..case.clone() }));
        *calls += 1;
    }
}

#[test]
fn every_source_and_normalisation() {
    let sources = AttentionSource::ALL.map(attention_source);
    let sources = sources.into_iter().chain([Source::External, Source::TokenFrequency, Source::RouterEntropy]);
    let rules = [
        Normalize::None,
        Normalize::Max,
        Normalize::MinMax,
        Normalize::Rank,
        Normalize::Affine { a: 2.0, b: -0.1 },
        Normalize::Running { momentum: 0.9 },
    ];
    let mut calls = 0;
    for source in sources {
        for normalize in rules {
            for causal in [false, true] {
                let mut config = small_config();
                config.importance.source = source.clone();
                config.importance.normalize = normalize;
                (config.importance.causal, config.importance.allow_future) = (causal, true);
                for attend in [Attend::QueryKey, Attend::WithLse, Attend::Probabilities] {
                    let case = Case { attend, masked_every: 4, keep: Keep::Nothing, ..Case::plain(config.clone()) };
                    in_turn(&case, &mut calls);
                }
            }
        }
    }
}

#[test]
fn every_policy() {
    let policies = [
        Policy::Fixed { k: 2 },
        Policy::Proportional { scale: None },
        Policy::Thresholds { thresholds: vec![0.2, 0.5, 0.9] },
        Policy::Budget { mean_k: 2.3 },
        Policy::BudgetRunning { mean_k: 2.3, momentum: 0.9 },
        Policy::TopP { p: 0.6 },
        Policy::ScoreThreshold { threshold: Threshold::All(0.2) },
        Policy::ScoreThreshold { threshold: Threshold::Each(vec![0.1, 0.3, 0.0, 0.2, 0.5, 0.1]) },
        Policy::Given,
    ];
    for policy in policies {
        for min in [0, 1] {
            let experts_per_token = ExpertsPerToken::between(policy.clone(), min, 4);
            everywhere(&Case::plain(LayerConfig { experts_per_token, ..small_config() }));
        }
    }
}

#[test]
fn every_activation_with_and_without_biases() {
    for hidden_act in Activation::ALL {
        for biases in [false, true] {
            let config = LayerConfig { hidden_act, shared_intermediate_size: 7, ..small_config() };
            everywhere(&Case { biases, ..Case::plain(config) });
        }
    }
}

#[test]
fn sizes_that_cross_every_block_boundary() {
    // 700 tokens on few experts: several row blocks, several depth steps of the weight gradients, ragged tails.
    let mut config = LayerConfig::da_moe(33, 17, 3, 3);
    config.shared_intermediate_size = 5;
    let case = Case { lengths: vec![1, 450, 249], skew: 4.0, ..Case::plain(config) };
    // The kernels' own block boundaries are nearer: tests/kernels/forward.rs and its neighbours.
    in_turn(&case, &mut 0);
    // Wider than a panel of widened weights.
    everywhere(&Case { lengths: vec![6], ..Case::plain(LayerConfig::da_moe(530, 300, 2, 2)) });
}

#[test]
fn the_sentence_of_the_methods_summary() {
    // "The movie was incredibly inspiring.": 0.3 0.3 0.3 0.7 0.7.
    use da_moe_harness::data::Data;
    let mut config = LayerConfig::da_moe(8, 6, 8, 8);
    config.importance.source = Source::External;
    config.importance.normalize = Normalize::None;
    let case = Case { lengths: vec![5], ..Case::plain(config) };
    for subject in subjects() {
        let mut data = Data::new(&case);
        data.importance = vec![0.3f32, 0.3, 0.3, 0.7, 0.7].into();
        let outcome = subject.run(&data, &case).unwrap();
        assert_eq!(outcome.k, [3, 3, 3, 6, 6], "{}: ceil(I · 8)", subject.name());
        da_moe_harness::judge(&data, &outcome).unwrap();
    }
}
