//! SPEC §7: what is small, empty, full or extreme is valid, and computed like everything else.

use da_moe::{
    AttentionSource, Buffer, DType, Drop, ExpertsPerToken, Keep, LayerConfig, Losses, Normalize, NormalizeWeights,
    NullExpert, Policy, Scoring, Source,
};
use da_moe_harness::case::{Attend, Case, attention_source, small_config};
use da_moe_harness::data::Data;
use da_moe_harness::{assert_agrees, assert_data_agrees, subjects, taking_turns};
use da_moe_reference::check::Outcome;

/// Runs a case on every subject in every storage type, with its tensors changed, and looks at what came out.
fn check(case: &Case, change: impl Fn(&mut Data), look: impl Fn(&Data, &Outcome)) {
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        let case = Case { dtype, ..case.clone() };
        let mut data = Data::new(&case);
        change(&mut data);
        for subject in subjects() {
            look(&data, &assert_data_agrees(&*subject, &data, &case));
        }
    }
}

fn agrees(case: &Case) {
    check(case, |_| {}, |_, _| {});
}

fn external(policy: Policy, min: usize, max: usize) -> LayerConfig {
    let mut config = small_config();
    config.importance.source = Source::External;
    config.importance.normalize = Normalize::None;
    config.experts_per_token = ExpertsPerToken::between(policy, min, max);
    config
}

/// Layers that between them have every optional part.
fn layers() -> Vec<LayerConfig> {
    let mut full = LayerConfig { shared_intermediate_size: 5, num_null_experts: 2, ..small_config() };
    full.null_expert = NullExpert::Constant;
    full.router.capacity_factor = Some(1.0);
    let budget = LayerConfig {
        experts_per_token: ExpertsPerToken::new(Policy::Budget { mean_k: 2.5 }),
        null_expert: NullExpert::Copy,
        ..full.clone()
    };
    vec![small_config(), full, budget, LayerConfig::switch(4, 4, 3), LayerConfig::top_p(4, 4, 3, 0.5)]
}

fn is_zero(values: &[f64]) -> bool {
    values.iter().all(|value| *value == 0.0)
}

#[test]
fn no_tokens() {
    let empty = |data: &Data, outcome: &Outcome| {
        let gradients = outcome.gradients.as_ref().unwrap();
        assert!(outcome.y.is_empty() && gradients.x.is_empty());
        assert!(is_zero(gradients.router.as_ref().unwrap()) && is_zero(&outcome.losses));
        assert!(is_zero(&gradients.experts.w_in) && is_zero(&gradients.experts.w_out));
        assert!(gradients.shared.iter().all(|shared| is_zero(&shared.w_in) && is_zero(&shared.w_out)));
        assert_eq!(outcome.offsets, vec![0; data.config.num_experts + 1]);
    };
    for config in layers() {
        for lengths in [vec![], vec![0], vec![0, 0, 0]] {
            for attend in [Attend::QueryKey, Attend::WithLse, Attend::Probabilities] {
                let case = Case { lengths: lengths.clone(), attend, biases: true, ..Case::plain(config.clone()) };
                check(&case, |_| {}, empty);
            }
        }
        let case = Case { lengths: vec![0], ..Case::plain(config) };
        check(&case, |data| data.cu_seqlens = None, empty);
    }
}

#[test]
fn one_sequence_need_not_be_named() {
    for attend in [Attend::QueryKey, Attend::WithLse, Attend::Probabilities] {
        let case = Case { lengths: vec![7], attend, ..Case::plain(small_config()) };
        check(&case, |data| data.cu_seqlens = None, |_, _| {});
    }
}

#[test]
fn empty_sequences_first_between_and_last() {
    for lengths in [vec![0, 6, 3], vec![6, 0, 3], vec![6, 3, 0], vec![0, 0, 5, 0, 0, 4, 0]] {
        for attend in [Attend::QueryKey, Attend::WithLse, Attend::Probabilities] {
            for normalize in [Normalize::None, Normalize::Max, Normalize::MinMax, Normalize::Rank] {
                let mut config = small_config();
                config.importance.normalize = normalize;
                agrees(&Case { lengths: lengths.clone(), attend, ..Case::plain(config) });
            }
        }
    }
}

#[test]
fn one_token() {
    for source in AttentionSource::ALL {
        for (causal, normalize) in [(false, Normalize::MinMax), (true, Normalize::Rank), (true, Normalize::None)] {
            let mut config = small_config();
            config.importance.source = attention_source(source);
            config.importance.normalize = normalize;
            (config.importance.causal, config.importance.allow_future) = (causal, true);
            agrees(&Case { lengths: vec![1], ..Case::plain(config) });
        }
    }
    layers().into_iter().for_each(|config| agrees(&Case { lengths: vec![1], biases: true, ..Case::plain(config) }));
}

#[test]
fn one_expert() {
    for scoring in [Scoring::Softmax, Scoring::Sigmoid, Scoring::Relu] {
        for normalize in [NormalizeWeights::None, NormalizeWeights::Selected, NormalizeWeights::Candidates] {
            let mut config = LayerConfig::da_moe(5, 4, 1, 1);
            (config.router.scoring, config.router.normalize) = (scoring, normalize);
            agrees(&Case::plain(config));
        }
    }
    let mut config = LayerConfig::da_moe(5, 4, 1, 1);
    config.importance.source = Source::RouterEntropy;
    config.importance.normalize = Normalize::None;
    check(&Case::plain(config), |_| {}, |_, outcome| assert!(is_zero(&outcome.importance)));
}

#[test]
fn as_many_experts_as_there_may_be() {
    let mut calls = 0;
    let policies = [Policy::Fixed { k: 512 }, Policy::Proportional { scale: None }, Policy::TopP { p: 0.9 }];
    for (experts, nulls) in [(512, 0), (1, 511), (500, 12)] {
        for policy in policies.clone() {
            let mut config = LayerConfig::da_moe(2, 1, experts, 512);
            config.num_null_experts = nulls;
            config.null_expert = NullExpert::Copy;
            config.experts_per_token = ExpertsPerToken::between(policy, 0, 512);
            for dtype in [DType::F32, DType::Bf16, DType::F16] {
                let case = Case { dtype, lengths: vec![2, 1], ..Case::plain(config.clone()) };
                // Hundreds of experts make hundreds of thousands of threads, which the emulator runs one by one.
                taking_turns(calls).iter().for_each(|subject| assert_agrees(&**subject, &case));
                calls += 1;
            }
        }
    }
}

#[test]
fn experts_without_rows_have_zero_gradient() {
    let mut config = LayerConfig::da_moe(3, 2, 512, 1);
    config.experts_per_token = ExpertsPerToken::new(Policy::Fixed { k: 1 });
    let case = Case { lengths: vec![70, 13], skew: 60.0, biases: true, ..Case::plain(config) };
    check(
        &case,
        |_| {},
        |data, outcome| {
            assert_eq!(outcome.counts[0], data.tokens as i64, "every token on expert 0");
            let gradients = &outcome.gradients.as_ref().unwrap().experts;
            let biases = [gradients.b_in.as_ref().unwrap(), gradients.b_out.as_ref().unwrap()];
            for gradient in [&gradients.w_in, &gradients.w_out, biases[0], biases[1]] {
                let of_first = gradient.len() / 512;
                assert!(!is_zero(&gradient[..of_first]) && is_zero(&gradient[of_first..]), "written, not skipped");
            }
        },
    );
}

#[test]
fn nobody_important_and_no_minimum() {
    for shared in [0, 5] {
        let mut config = external(Policy::Proportional { scale: None }, 0, 4);
        config.shared_intermediate_size = shared;
        check(
            &Case { biases: true, ..Case::plain(config) },
            |data| data.importance = vec![0.0f32; data.tokens].into(),
            |_, outcome| {
                assert_eq!(outcome.offsets.last(), Some(&0), "R = 0");
                assert_eq!(is_zero(&outcome.y), shared == 0);
                assert_eq!(outcome.losses[0], 0.0, "no selections, no balance loss");
                let gradients = outcome.gradients.as_ref().unwrap();
                assert!(is_zero(&gradients.experts.w_in) && is_zero(&gradients.experts.w_out));
            },
        );
    }
}

#[test]
fn everything_masked() {
    for config in layers() {
        check(
            &Case { masked_every: 1, ..Case::plain(config) },
            |data| data.mask = Some(vec![0u8; data.tokens].into()),
            |_, outcome| {
                assert!(outcome.k.iter().all(|k| *k == 0) && is_zero(&outcome.losses) && is_zero(&outcome.importance));
                let gradients = outcome.gradients.as_ref().unwrap();
                assert!(is_zero(&outcome.y) && is_zero(&gradients.x));
                assert!(is_zero(gradients.router.as_ref().unwrap()) && is_zero(&gradients.experts.w_in));
                assert!(gradients.shared.iter().all(|shared| is_zero(&shared.w_in) && is_zero(&shared.w_out)));
            },
        );
    }
}

#[test]
fn a_budget_may_be_all_or_nothing() {
    for (mean_k, everyone) in [(1.0, 1), (4.0, 4)] {
        let case = Case::plain(external(Policy::Budget { mean_k }, 1, 4));
        check(&case, |_| {}, |_, outcome| assert!(outcome.k.iter().all(|k| *k == everyone), "mean {mean_k}"));
    }
}

#[test]
fn capacity_for_nothing() {
    for drop in [Drop::Token, Drop::Weight] {
        let mut config = LayerConfig { num_null_experts: 2, null_expert: NullExpert::Copy, ..small_config() };
        (config.router.capacity_factor, config.router.drop) = (Some(0.0), drop);
        check(
            &Case::plain(config),
            |_| {},
            |data, outcome| {
                let routed: i64 = outcome.load[..data.config.num_experts].iter().sum();
                assert_eq!(outcome.dropped, [routed], "every selection of a routed expert");
                assert_eq!(outcome.offsets.last(), Some(&0));
                assert!(is_zero(&outcome.gradients.as_ref().unwrap().experts.w_in));
            },
        );
    }
}

#[test]
fn narrowest_layers() {
    for (d, f) in [(1, 6), (6, 1), (1, 1)] {
        let shared = LayerConfig { shared_intermediate_size: 1, ..LayerConfig::da_moe(d, f, 3, 2) };
        agrees(&Case { biases: true, ..Case::plain(shared) });
    }
}

/// Every tensor that is scaled in these tests, as the type it has.
fn scaled(buffer: &Buffer, factor: f32) -> Buffer {
    Buffer::from_f32(buffer.dtype(), &buffer.to_f32().iter().map(|v| v * factor).collect::<Vec<_>>())
}

#[test]
fn scores_that_saturate() {
    for scoring in [Scoring::Softmax, Scoring::Sigmoid, Scoring::Relu] {
        let mut config = small_config();
        config.router.scoring = scoring;
        config.num_null_experts = 1;
        check(
            &Case { router_f32: true, ..Case::plain(config) },
            |data| data.router = scaled(&data.router, 1e5),
            |_, outcome| {
                assert!(outcome.y.iter().all(|y| y.is_finite()));
                assert!(scoring == Scoring::Relu || outcome.weights.iter().all(|w| (0.0..=1.0).contains(w)));
            },
        );
    }
}

/// One token of which these are the logits, with these biases.
fn with_logits(scoring: Scoring, k: usize, logits: &[f32], biases: &[f32]) -> (Case, impl Fn(&mut Data) + use<>) {
    let mut config = LayerConfig { num_experts: logits.len(), ..external(Policy::Fixed { k }, 0, k) };
    config.router.scoring = scoring;
    let width = config.hidden_size;
    let mut router = vec![0.0f32; logits.len() * width];
    // The first column of x is 1.
    router.chunks_mut(width).zip(logits).for_each(|(row, logit)| row[0] = *logit);
    let biases = biases.to_vec();
    let case = Case { lengths: vec![1], router_f32: true, keep: Keep::Nothing, ..Case::plain(config) };
    let change = move |data: &mut Data| {
        data.router = router.clone().into();
        data.router_bias = Some(biases.clone().into());
    };
    (case, change)
}

#[test]
fn an_infinite_bias_decides_beside_any_logit() {
    let inf = f32::INFINITY;
    let ranks = |scoring, logits: &[f32], biases: &[f32], order: &[i64]| {
        let (case, change) = with_logits(scoring, logits.len(), logits, biases);
        check(&case, change, |_, outcome| assert_eq!(outcome.ranked, order, "{scoring:?}"));
    };
    for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
        // Forced though no score is smaller; forbidden after a score of 0.
        ranks(scoring, &[-inf, 1.0, -inf, 0.0, -200.0], &[inf, 0.0, 0.0, -inf, 0.0], &[0, 1, 4, 2, 3]);
    }
    ranks(Scoring::Sigmoid, &[inf, 0.0, inf, 1.0], &[-inf, 0.0, 0.0, inf], &[3, 2, 1, 0]);
}

/// The sum with what is forbidden is -∞, and equal for both groups.
/// What is forbidden has no part in a weight, although there is room for it among the first `k_max` candidates.
#[test]
fn a_forbidden_favourite_is_in_no_divisor() {
    for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
        let mut config = external(Policy::Fixed { k: 1 }, 1, 3);
        (config.num_experts, config.router.scoring) = (3, scoring);
        let case = Case::plain(config);
        check(
            &case,
            |data| {
                let mut router = vec![0.0f32; data.router.len()];
                // The first column of x is 1: logits of 200, -150 and -149.
                router.chunks_mut(data.config.hidden_size).zip([200.0, -150.0, -149.0]).for_each(|(row, z)| row[0] = z);
                data.router = Buffer::from_f32(data.router.dtype(), &router);
                data.router_bias = Some(vec![f32::NEG_INFINITY, 0.0, 0.0].into());
            },
            |data, outcome| {
                let share = 1.0 / (1.0 + (-1.0f64).exp());
                for t in 0..data.tokens {
                    assert_eq!((outcome.experts[t * 3], &outcome.ranked[t * 3..][..3]), (2, &[2, 1, -1][..]));
                    assert!((outcome.weights[t * 3] - share).abs() < 1e-5, "{scoring:?}: {}", outcome.weights[t * 3]);
                }
            },
        );
    }
}

#[test]
fn forbidden_favourites_make_their_groups_equal() {
    let forbid = f32::NEG_INFINITY;
    for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
        for favourite in [1.0, 40.0, 300.0, 1e30] {
            let (mut case, change) =
                with_logits(scoring, 1, &[favourite, -200.0, 1.0, -199.0], &[forbid, 0.0, forbid, 0.0]);
            (case.config.router.n_group, case.config.router.topk_group) = (2, 1);
            check(&case, change, |_, outcome| assert_eq!(outcome.experts, [1], "{scoring:?}, {favourite}"));
        }
    }
}

/// Beside sigmoid and relu the log-sum-exp is of nobody's concern without the loss of it.
#[test]
fn without_a_z_loss_an_infinite_log_sum_exp_reaches_no_gradient() {
    let none = f32::NEG_INFINITY;
    for scoring in [Scoring::Sigmoid, Scoring::Relu] {
        let (mut case, change) = with_logits(scoring, 2, &[none; 4], &[0.0; 4]);
        (case.keep, case.config.losses) = (Keep::Hidden, Losses { balance: 0.5, z: 0.0 });
        check(&case, change, |_, outcome| {
            let router = outcome.gradients.as_ref().unwrap().router.as_ref().unwrap();
            assert!(is_zero(&outcome.weights) && is_zero(&outcome.y) && is_zero(router), "{scoring:?}");
        });
    }
}

#[test]
fn subnormal_numbers() {
    let case = Case::plain(small_config());
    let least = |dtype| if dtype == DType::F16 { 1e-7 } else { 1e-40 };
    check(&case, |data| data.x = scaled(&data.x, least(data.dtype)), |_, _| {});
    check(&case, |data| data.dy = scaled(&data.dy, least(data.dtype)), |_, _| {});
    // Quotients of subnormal importance are ordinary numbers.
    let mut config = external(Policy::Proportional { scale: None }, 0, 6);
    config.importance.normalize = Normalize::Max;
    check(
        &Case { lengths: vec![3], ..Case::plain(config) },
        |data| data.importance = vec![4e-40f32, 2e-40, 1e-40].into(),
        |_, outcome| assert_eq!(outcome.k, [6, 3, 2]),
    );
}

/// Zeros of both signs, the smallest numbers there are, and what counts as 0, by every rule and policy that reads importance.
#[test]
fn importance_at_the_low_end_of_f32() {
    let least = f32::from_bits(1);
    let ends =
        [0.0, -0.0, least, 3.0 * least, -least, 1e-40, f32::MIN_POSITIVE, f32::NAN, -1.0, 1e-40, 2.0 * least, 0.5];
    let policies = [
        Policy::Proportional { scale: None },
        Policy::Thresholds { thresholds: vec![0.0, f64::from(least), 1e-40, 0.5] },
        Policy::Budget { mean_k: 2.0 },
        Policy::BudgetRunning { mean_k: 2.0, momentum: 0.5 },
    ];
    let rules = [
        Normalize::None,
        Normalize::Max,
        Normalize::MinMax,
        Normalize::Rank,
        Normalize::Affine { a: -1.0, b: 0.0 },
        Normalize::Running { momentum: 0.5 },
    ];
    for policy in policies {
        for normalize in rules {
            for count in [ends.len(), ends.len() - 1] {
                let mut config = external(policy.clone(), 0, 6);
                config.importance.normalize = normalize;
                let case = Case { lengths: vec![5, count - 5], keep: Keep::Nothing, ..Case::plain(config) };
                check(
                    &case,
                    |data| data.importance = ends[..count].to_vec().into(),
                    |_, outcome| assert!(outcome.importance.iter().all(|i| i.is_sign_positive()), "{normalize:?}"),
                );
            }
        }
    }
}

#[test]
fn a_threshold_is_reached_by_equality() {
    let thresholds = vec![0.1, 0.3, 0.7];
    let case = Case { lengths: vec![6], ..Case::plain(external(Policy::Thresholds { thresholds }, 1, 4)) };
    check(
        &case,
        |data| data.importance = vec![0.1f32.next_down(), 0.1, 0.3f32.next_down(), 0.3, 0.7f32.next_down(), 0.7].into(),
        |_, outcome| assert_eq!(outcome.k, [1, 2, 2, 3, 3, 4], "compared in f32"),
    );
}

#[test]
fn equal_logits_go_to_the_lower_experts() {
    for (groups, chosen) in [(1, 1), (3, 2)] {
        let mut config = LayerConfig { num_null_experts: 3, ..small_config() };
        config.experts_per_token = ExpertsPerToken::new(Policy::Fixed { k: 4 });
        (config.router.n_group, config.router.topk_group) = (groups, chosen);
        for scoring in [Scoring::Softmax, Scoring::Sigmoid, Scoring::Relu] {
            config.router.scoring = scoring;
            check(
                &Case::plain(config.clone()),
                |data| data.router = Buffer::zeros(data.router.dtype(), data.router.len()),
                |_, outcome| assert!(outcome.experts.chunks(4).all(|slots| slots == [0, 1, 2, 3])),
            );
        }
    }
}

#[test]
fn equal_importance_is_apportioned_by_level_then_token() {
    let case = |min| Case { lengths: vec![2, 3], ..Case::plain(external(Policy::Budget { mean_k: 1.4 }, min, 3)) };
    for importance in [1.0f32, 0.0, f32::INFINITY] {
        let change = |data: &mut Data| data.importance = vec![importance; 5].into();
        // Without weight, or with infinite weight, every level's key is the same.
        check(&case(0), change, |_, outcome| assert_eq!(outcome.k, [2, 2, 1, 1, 1], "importance {importance}"));
        check(&case(1), change, |_, outcome| assert_eq!(outcome.k, [2, 2, 1, 1, 1], "importance {importance}"));
    }
}
