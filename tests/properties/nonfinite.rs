//! SPEC §7: NaN and infinity stay in the rows that use them; nothing hangs, panics or is indexed out of bounds.

use da_moe::{
    AttentionSource, Buffer, DType, ExpertsPerToken, Keep, LayerConfig, Losses, Normalize, NullExpert, Policy, Scoring,
    Source,
};
use da_moe_harness::bits::assert_same_bits;
use da_moe_harness::case::{Attend, Case, attention_source, case, small_config};
use da_moe_harness::data::Data;
use da_moe_harness::{Subject, assert_data_agrees, subjects, taking_turns};
use da_moe_reference::check::Outcome;
use proptest::prelude::*;

const BAD: [f32; 3] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];

fn with(buffer: &Buffer, at: usize, value: f32) -> Buffer {
    let mut values = buffer.to_f32();
    values[at] = value;
    Buffer::from_f32(buffer.dtype(), &values)
}

fn run(subject: &dyn Subject, data: &Data, case: &Case) -> Outcome {
    subject.run(data, case).unwrap_or_else(|error| panic!("{}: {error}", subject.name()))
}

/// The bits of a matrix `[T, D]` without the row of one token.
fn others(values: &[f64], width: usize, token: usize) -> Vec<u64> {
    let rows = values.chunks(width).enumerate().filter(|(t, _)| *t != token);
    rows.flat_map(|(_, row)| row.iter().map(|v| v.to_bits())).collect()
}

/// Every other token's row of `y` and `dx` is the same with and without a token's bad number.
fn assert_contained(good: &Outcome, bad: &Outcome, width: usize, token: usize, what: &str) {
    let dx = |outcome: &Outcome| others(&outcome.gradients.as_ref().unwrap().x, width, token);
    assert_eq!(others(&good.y, width, token), others(&bad.y, width, token), "y, {what}");
    assert_eq!(dx(good), dx(bad), "dx, {what}");
    let used = bad.k[token] > 0 || width == 0;
    let row = &bad.y[token * width..][..width];
    assert!(!used || row.iter().any(|y| !y.is_finite()), "the token's own row of y shows it, {what}");
}

/// Every expert takes every token, so that the bad number moves no row: the balance loss, which sees all tokens through
/// the counts, and the position of a row in a matrix product then stay the same too.
fn everyone_everywhere(policy: Policy, scoring: Scoring) -> LayerConfig {
    let mut config = LayerConfig { shared_intermediate_size: 4, ..small_config() };
    config.importance.source = Source::External;
    config.importance.normalize = Normalize::None;
    config.experts_per_token = ExpertsPerToken::between(policy, 6, 6);
    config.router.scoring = scoring;
    config
}

#[test]
fn a_bad_number_in_x_stays_in_its_row() {
    for policy in [Policy::Fixed { k: 6 }, Policy::Proportional { scale: None }] {
        for scoring in [Scoring::Softmax, Scoring::Sigmoid, Scoring::Relu] {
            for dtype in [DType::F32, DType::Bf16, DType::F16] {
                let case = Case { dtype, biases: true, ..Case::plain(everyone_everywhere(policy.clone(), scoring)) };
                let data = Data::new(&case);
                let width = data.config.hidden_size;
                for subject in subjects() {
                    let good = run(&*subject, &data, &case);
                    for (value, token) in BAD.into_iter().zip([0, 8, 13]) {
                        let broken = Data { x: with(&data.x, token * width + 2, value), ..data.clone() };
                        let bad = assert_data_agrees(&*subject, &broken, &case);
                        let what = format!("{}, {value} in x, {dtype}, {scoring:?}", subject.name());
                        assert_contained(&good, &bad, width, token, &what);
                    }
                }
            }
        }
    }
}

#[test]
fn a_bad_number_in_x_stays_in_its_row_of_a_given_routing() {
    for routing in [1, 2] {
        for token in [0, 9, 13] {
            let case = Case { routing, ..Case::plain(small_config()) };
            let data = Data::new(&case);
            let width = data.config.hidden_size;
            for subject in subjects() {
                let good = run(&*subject, &data, &case);
                for value in BAD {
                    let broken = Data { x: with(&data.x, token * width, value), ..data.clone() };
                    let bad = assert_data_agrees(&*subject, &broken, &case);
                    assert_contained(&good, &bad, width, token, &subject.name());
                }
            }
        }
    }
}

#[test]
fn a_bad_number_in_x_stays_in_its_row_although_rows_move() {
    // NaN keys select the lowest experts, so that the rows of other tokens move; that changes no sum of theirs. The
    // balance loss does see all tokens, through the counts, and is left out.
    for (policy, skew) in [(Policy::Fixed { k: 2 }, 0.0), (Policy::Proportional { scale: Some(4.0) }, 1.0)] {
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            let mut config = LayerConfig { losses: Losses { balance: 0.0, z: 0.1 }, ..small_config() };
            config.importance.source = Source::External;
            config.importance.normalize = Normalize::None;
            config.experts_per_token = ExpertsPerToken::between(policy.clone(), 1, 4);
            let case = Case { dtype, skew, lengths: vec![90, 60], ..Case::plain(config) };
            let data = Data::new(&case);
            let width = data.config.hidden_size;
            for subject in subjects() {
                let good = run(&*subject, &data, &case);
                for (value, token) in BAD.into_iter().zip([0, 77, 149]) {
                    let broken = Data { x: with(&data.x, token * width + 2, value), ..data.clone() };
                    let bad = assert_data_agrees(&*subject, &broken, &case);
                    assert_contained(&good, &bad, width, token, &format!("{}, {value} in x, {dtype}", subject.name()));
                }
            }
        }
    }
}

/// Experts' outputs far above what they are weighted down to, in f16 beyond its largest number: rows between stages have the range.
#[test]
fn rows_may_be_larger_than_what_they_combine_to() {
    for (dtype, octaves, largest) in [(DType::F32, 100, 1e30), (DType::Bf16, 100, 1e30), (DType::F16, 14, 65504.0)] {
        let mut config = small_config();
        config.router.routed_scaling = 2f64.powi(-octaves);
        let case = Case { dtype, ..Case::plain(config) };
        let mut data = Data::new(&case);
        let times = |buffer: &Buffer, factor: f32| {
            Buffer::from_f32(dtype, &buffer.to_f32().iter().map(|value| value * factor).collect::<Vec<_>>())
        };
        data.x = times(&data.x, 4.0);
        data.experts.w_out = times(&data.experts.w_out, 2f32.powi(octaves));
        for subject in subjects() {
            let outcome = assert_data_agrees(&*subject, &data, &case);
            assert!(outcome.y.iter().all(|y| y.is_finite()), "{}, {dtype}", subject.name());
            // Weights without the factor are at most 1 together, so that no output is larger than the largest row.
            let row = outcome.y.iter().fold(0.0, |most: f64, y| most.max(y.abs())) * 2f64.powi(octaves);
            assert!(row > largest, "{}, {dtype}: {row:e}", subject.name());
        }
    }
}

/// Padding is nothing to anyone: whatever its `x` and `dy` hold, everything has the bits that it has with zeros there, and what
/// belongs to a masked token is 0.
#[test]
fn padding_may_hold_anything() {
    let mut config = LayerConfig { shared_intermediate_size: 5, num_null_experts: 1, ..small_config() };
    (config.null_expert, config.losses) = (NullExpert::Constant, Losses { balance: 0.3, z: 0.1 });
    for (dtype, keep) in [(DType::F32, Keep::Hidden), (DType::Bf16, Keep::Recompute), (DType::F16, Keep::Hidden)] {
        let case = Case {
            dtype,
            keep,
            biases: true,
            masked_every: 2,
            lengths: vec![40, 0, 27],
            ..Case::plain(config.clone())
        };
        let mut data = Data::new(&case);
        // Biases of the shared expert are sums over tokens too.
        let (rows_in, d) = (data.config.shared_rows_in(), data.config.hidden_size);
        let shared = data.shared.as_mut().unwrap();
        shared.b_in = Some(Buffer::from_f32(dtype, &vec![0.25; rows_in]));
        shared.b_out = Some(Buffer::from_f32(dtype, &vec![-0.5; d]));
        let mask = data.mask.as_ref().unwrap().as_slice::<u8>().unwrap().to_vec();
        let masked = |t: usize| mask[t] == 0;
        assert!((0..data.tokens).any(masked) && !(0..data.tokens).all(masked));
        let filled = |buffer: &Buffer, value: f32| {
            let mut values = buffer.to_f32();
            values.chunks_mut(d).enumerate().filter(|(t, _)| masked(*t)).for_each(|(_, row)| row.fill(value));
            Buffer::from_f32(dtype, &values)
        };
        let with = |x: f32, dy: f32| Data { x: filled(&data.x, x), dy: filled(&data.dy, dy), ..data.clone() };
        for subject in subjects() {
            let clean = assert_data_agrees(&*subject, &with(0.0, 0.0), &case);
            for (x, dy) in [(1.5, -2.0), (f32::NAN, 0.0), (0.0, f32::NAN), (f32::INFINITY, f32::NEG_INFINITY)] {
                let padded = run(&*subject, &with(x, dy), &case);
                let what = format!("{}, {dtype}, x {x} and dy {dy} in padding", subject.name());
                // The router's product is of every row, and so is the order of candidates.
                let (logits, ranked) = (clean.logits.clone(), clean.ranked.clone());
                assert_same_bits(&what, &clean, &Outcome { logits, ranked, ..padded.clone() });
                let dx = &padded.gradients.as_ref().unwrap().x;
                let of_masked = |rows: &[f64], t: usize| rows[t * d..][..d].iter().all(|value| *value == 0.0);
                for t in (0..data.tokens).filter(|&t| masked(t)) {
                    assert!(of_masked(&padded.y, t) && of_masked(dx, t), "{what}: token {t}");
                    assert_eq!((padded.importance[t], padded.k[t]), (0.0, 0), "{what}: token {t}");
                }
            }
        }
    }
}

#[test]
fn a_bad_number_in_dy_stays_in_its_row_of_dx() {
    let case = Case { biases: true, ..Case::plain(LayerConfig { shared_intermediate_size: 4, ..small_config() }) };
    let data = Data::new(&case);
    let width = data.config.hidden_size;
    for subject in subjects() {
        let good = run(&*subject, &data, &case);
        for (value, token) in BAD.into_iter().zip([0, 6, 13]) {
            let broken = Data { dy: with(&data.dy, token * width + 1, value), ..data.clone() };
            let bad = run(&*subject, &broken, &case);
            let dx = |outcome: &Outcome| others(&outcome.gradients.as_ref().unwrap().x, width, token);
            assert_eq!(dx(&good), dx(&bad), "{}", subject.name());
            let own = &bad.gradients.as_ref().unwrap().x[token * width..][..width];
            assert!(own.iter().any(|v| !v.is_finite()), "the token's own row of dx shows it");
        }
    }
}

#[test]
fn importance_that_is_nan_or_negative_counts_as_zero() {
    let rules = [
        Normalize::None,
        Normalize::Max,
        Normalize::MinMax,
        Normalize::Rank,
        Normalize::Affine { a: 1.0, b: 0.1 },
        Normalize::Running { momentum: 0.5 },
    ];
    let policies = [
        Policy::Proportional { scale: None },
        Policy::Thresholds { thresholds: vec![0.0, 0.5] },
        Policy::Budget { mean_k: 2.0 },
        Policy::BudgetRunning { mean_k: 2.0, momentum: 0.5 },
    ];
    for (normalize, policy) in rules.into_iter().flat_map(|rule| policies.clone().map(|policy| (rule, policy))) {
        let mut config = small_config();
        config.importance.source = Source::External;
        config.importance.normalize = normalize;
        config.experts_per_token = ExpertsPerToken::between(policy, 0, 4);
        let case = Case { training: true, ..Case::plain(config) };
        let data = Data::new(&case);
        for subject in subjects() {
            let zero = Data { importance: with(&data.importance, 3, 0.0), ..data.clone() };
            let expected = assert_data_agrees(&*subject, &zero, &case);
            for value in [f32::NAN, -1.0, f32::NEG_INFINITY, -0.0] {
                let other = Data { importance: with(&data.importance, 3, value), ..data.clone() };
                let found = run(&*subject, &other, &case);
                assert_same_bits(&format!("{}, {value} for 0, {normalize:?}", subject.name()), &expected, &found);
            }
        }
    }
}

/// One call with attention of which one number is bad.
fn assert_outcome_is_finite(subject: &dyn Subject, broken: &Data, case: &Case) {
    let outcome = run(subject, broken, case);
    assert!(outcome.y.iter().all(|y| y.is_finite()), "{}: y of {case:#?}", subject.name());
    assert!(outcome.k.iter().all(|k| (1..=4).contains(k)), "{}: k of {case:#?}", subject.name());
}

#[test]
fn attention_that_is_not_finite_leaves_y_finite() {
    let rules = [Normalize::None, Normalize::Max, Normalize::MinMax, Normalize::Rank];
    let policies = [Policy::Proportional { scale: None }, Policy::Budget { mean_k: 2.0 }];
    let mut calls = 0;
    for (measure, normalize) in AttentionSource::ALL.into_iter().flat_map(|m| rules.map(|rule| (m, rule))) {
        let attends = [Attend::QueryKey, Attend::WithLse, Attend::Probabilities];
        for (attend, causal) in attends.into_iter().flat_map(|attend| [(attend, false), (attend, true)]) {
            let mut config = small_config();
            config.importance.source = attention_source(measure);
            config.importance.normalize = normalize;
            (config.importance.causal, config.importance.allow_future) = (causal, true);
            for (policy, value) in policies.iter().flat_map(|policy| BAD.map(|value| (policy.clone(), value))) {
                config.experts_per_token = ExpertsPerToken::between(policy, 1, 4);
                let case = Case { attend, keep: Keep::Nothing, ..Case::plain(config.clone()) };
                let data = Data::new(&case);
                let q = Data { q: with(&data.q, 11, value), ..data.clone() };
                let k = Data { k: with(&data.k, 6, value), ..data.clone() };
                let lse = Data { lse: with(&data.lse, 4, value), ..data.clone() };
                let probabilities = Data { probabilities: with(&data.probabilities, 13, value), ..data.clone() };
                // Those that are read.
                let broken = match attend {
                    Attend::QueryKey => vec![q, k],
                    Attend::WithLse => vec![q, k, lse],
                    Attend::Probabilities => vec![probabilities],
                };
                for broken in broken {
                    taking_turns(calls).iter().for_each(|subject| assert_outcome_is_finite(&**subject, &broken, &case));
                    calls += 1;
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(da_moe_harness::cases(150))]

    /// Wherever it is and whatever the layer, a bad number gives an answer, and the plan is one.
    #[test]
    fn bad_numbers_anywhere_end_in_an_outcome(
        case in case(),
        place in any::<prop::sample::Index>(),
        tensor in 0usize..6,
        value in prop::sample::select(BAD.to_vec()),
    ) {
        let mut data = Data::new(&case);
        let buffer = match tensor {
            0 => &mut data.x,
            1 => &mut data.dy,
            2 => &mut data.router,
            3 => data.router_bias.as_mut().unwrap_or(&mut data.importance),
            4 => &mut data.experts.w_in,
            _ => &mut data.experts.w_out,
        };
        if buffer.is_empty() {
            return Ok(());
        }
        *buffer = with(buffer, place.index(buffer.len()), value);
        for subject in subjects() {
            let outcome = run(&*subject, &data, &case);
            prop_assert!(outcome.k.iter().all(|k| (0..=case.config.k_max() as i64).contains(k)));
            let rows = *outcome.offsets.last().unwrap() as usize;
            prop_assert!(outcome.row_token[..rows].iter().all(|t| (0..data.tokens as i64).contains(t)));
        }
    }

    /// A bad number in one token's `x` never makes another token's row non-finite, whatever the layer.
    #[test]
    fn a_bad_token_never_spreads(
        case in case(),
        place in any::<prop::sample::Index>(),
        value in prop::sample::select(BAD.to_vec()),
    ) {
        // Importance of the other tokens must not be read off the bad one.
        let mut config = LayerConfig { losses: Losses { z: 0.1, balance: 0.1 }, ..case.config.clone() };
        config.importance.source = Source::External;
        let case = Case { config, ..case };
        let data = Data::new(&case);
        if data.tokens == 0 {
            return Ok(());
        }
        let (token, stride, width) = (place.index(data.tokens), case.config.hidden_size + case.padding, case.config.hidden_size);
        let broken = Data { x: with(&data.x, token * stride, value), ..data.clone() };
        for subject in subjects() {
            let (good, bad) = (run(&*subject, &data, &case), run(&*subject, &broken, &case));
            let dx = |outcome: &Outcome| outcome.gradients.as_ref().unwrap().x.clone();
            for (good, bad) in [(&good.y, &bad.y), (&dx(&good), &dx(&bad))] {
                for (t, (good, bad)) in good.chunks(width).zip(bad.chunks(width)).enumerate() {
                    let finite = |row: &[f64]| row.iter().all(|v| v.is_finite());
                    prop_assert!(t == token || !finite(good) || finite(bad), "{}: token {t}", subject.name());
                }
            }
        }
    }
}
