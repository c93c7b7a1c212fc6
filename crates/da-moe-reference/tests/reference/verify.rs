//! `check::verify` accepts what rounding explains and nothing else.

use crate::common::{Random, config, problem};
use da_moe_core::{
    Activation, AttentionSource, DType, Drop, ExpertsPerToken, ImportanceConfig, LayerConfig, Losses, Normalize,
    NormalizeWeights, NullExpert, Policy, RouterConfig, Scoring, Source, Threshold,
};
use da_moe_reference::check::{Mismatch, Outcome, verify};
use da_moe_reference::{Attention, Problem, backward, forward};

fn rich() -> Problem {
    let router = RouterConfig { capacity_factor: Some(0.9), drop: Drop::Weight, ..RouterConfig::default() };
    let config = LayerConfig {
        num_null_experts: 2,
        null_expert: NullExpert::Constant,
        shared_intermediate_size: 3,
        router,
        losses: Losses { balance: 0.1, z: 0.01 },
        ..config(4)
    };
    let mut problem = problem(config, 12, true, 13);
    problem.mask[5] = false;
    problem
}

fn dy(problem: &Problem) -> Vec<f64> {
    Random::new(5).vector(problem.x.len())
}

fn perfect(problem: &Problem) -> Outcome {
    let pass = forward(problem);
    let gradients = backward(problem, &pass, &dy(problem));
    Outcome::from_forward(problem, &pass, Some(gradients))
}

/// The perfect outcome in f32, as a backend would hold it: importance first, since integers follow from it.
fn rounded(problem: &Problem) -> Outcome {
    let mut outcome = perfect(problem);
    let gradients = outcome.gradients.as_mut().unwrap();
    let floats = [
        &mut outcome.importance,
        &mut outcome.logits,
        &mut outcome.weights,
        &mut outcome.row_weight,
        &mut outcome.losses,
        &mut outcome.y,
        &mut gradients.x,
        &mut gradients.experts.w_in,
        &mut gradients.experts.w_out,
    ];
    floats.into_iter().flatten().for_each(|value| *value = f64::from(*value as f32));
    outcome
}

fn errors(problem: &Problem, outcome: &Outcome) -> Vec<Mismatch> {
    verify(problem, outcome, DType::F32, Some(&dy(problem))).err().unwrap_or_default()
}

fn caught(change: impl Fn(&mut Outcome)) -> Vec<&'static str> {
    let problem = rich();
    let mut outcome = rounded(&problem);
    change(&mut outcome);
    errors(&problem, &outcome).iter().map(|mismatch| mismatch.tensor).collect()
}

#[test]
fn the_oracle_and_its_rounding_pass() {
    let problem = rich();
    for outcome in [perfect(&problem), rounded(&problem)] {
        let figures = verify(&problem, &outcome, DType::F32, Some(&dy(&problem))).unwrap();
        assert!(figures.len() >= 15 && figures.iter().all(|figure| figure.error <= 1e-7), "{figures:?}");
    }
    assert!(forward(&problem).plan.dropped > 0);
}

#[test]
fn planted_errors_are_caught() {
    assert_eq!(caught(|o| o.y[7] += 1e-3), ["y"]);
    assert_eq!(caught(|o| o.y[7] = f64::NAN), ["y"]);
    assert_eq!(caught(|o| o.row_token.swap(0, 1)), ["row_token"]);
    assert_eq!(caught(|o| o.row_weight.swap(0, 1)), ["row_weight"]);
    assert_eq!(caught(|o| o.k[3] += 1), ["k"]);
    assert_eq!(caught(|o| o.logits[9] += 1e-3), ["logits"]);
    assert_eq!(caught(|o| o.importance[2] *= 1.001), ["importance"]);
    assert_eq!(caught(|o| o.load[1] += 1), ["load"]);
    assert_eq!(caught(|o| o.counts[5] += 1), ["counts"]);
    assert_eq!(caught(|o| o.offsets[2] += 1), ["offsets"]);
    assert_eq!(caught(|o| o.dropped[0] = 0), ["dropped"]);
    assert_eq!(caught(|o| o.losses[0] *= 1.0001), ["balance_loss"]);
    assert_eq!(caught(|o| o.losses[1] = f64::NAN), ["z_loss"]);
    assert_eq!(caught(|o| o.losses[1] *= 1.0001), ["z_loss"]);
    assert_eq!(caught(|o| o.ranked.swap(0, 2)), ["ranked"; 2]);
    assert_eq!(caught(|o| o.ranked[0] = 99), ["ranked"]);
    assert_eq!(caught(|o| o.weights[0] = f64::NAN), ["experts"]);
    assert_eq!(caught(|o| o.token_row[0] += 50), ["token_row"]);
    assert_eq!(caught(|o| o.y.truncate(3)), ["y"]);
}

#[test]
fn planted_gradient_errors_are_caught() {
    let gradient = |change: fn(&mut da_moe_reference::Gradients)| {
        caught(move |outcome| change(outcome.gradients.as_mut().unwrap()))
    };
    assert_eq!(gradient(|g| g.x[4] += 1e-3), ["d.x"]);
    assert_eq!(gradient(|g| g.router = None), ["d.router.weight"]);
    assert_eq!(gradient(|g| g.router.as_mut().unwrap().fill(0.0)), ["d.router.weight"]);
    assert_eq!(gradient(|g| g.experts.w_in[3] -= 1e-3), ["d.experts.w_in"]);
    assert_eq!(gradient(|g| g.experts.w_out.fill(0.0)), ["d.experts.w_out"]);
    assert_eq!(gradient(|g| g.experts.b_in = None), ["d.experts.b_in"]);
    assert_eq!(gradient(|g| g.experts.b_out.as_mut().unwrap()[0] = 3.0), ["d.experts.b_out"]);
    assert_eq!(gradient(|g| g.shared = None), ["d.shared.w_in"]);
    assert_eq!(gradient(|g| g.constants.as_mut().unwrap().swap(0, 7)), ["d.null.constants"]);
}

#[test]
fn a_message_names_tensor_position_and_values() {
    let problem = rich();
    let mut outcome = rounded(&problem);
    outcome.k[3] = 7;
    let message = errors(&problem, &outcome)[0].to_string();
    assert!(message.starts_with("k[3]: found 7, expected "), "{message}");
    let mut outcome = rounded(&problem);
    outcome.y[13] = 50.0;
    let message = errors(&problem, &outcome)[0].to_string();
    assert!(message.starts_with("y[2, 1]: found 50, expected "), "{message}");
}

#[test]
fn a_wrong_expert_is_caught_and_a_near_tie_is_not() {
    let fixed = ExpertsPerToken::between(Policy::Fixed { k: 1 }, 1, 2);
    let mut problem = problem(LayerConfig { hidden_size: 1, experts_per_token: fixed, ..config(3) }, 1, false, 3);
    problem.x = vec![1.0];
    let take_second = |problem: &Problem| {
        // What a backend that ranks the second candidate first would produce.
        let mut decision = forward(problem).decision();
        decision.experts[0] = vec![decision.ranked[0][1]];
        decision.ranked[0].swap(0, 1);
        let pass = da_moe_reference::forward_with(problem, &decision);
        errors(problem, &Outcome::from_forward(problem, &pass, None)).len()
    };
    problem.router = vec![0.5, 0.1, 0.5001];
    assert!(take_second(&problem) > 0);
    // Logits are the outcome's own and have no error; scores that biases are added to have one.
    problem.router = vec![0.5, 0.1, 0.5 + 1e-7];
    assert!(take_second(&problem) > 0);
    problem.router_bias = Some(vec![0.25, 0.0, 0.25]);
    assert_eq!(take_second(&problem), 0);
    problem.router_bias = None;
    // The same logit is a tie, and ties have a rule.
    problem.router = vec![0.5, 0.1, 0.5];
    assert!(take_second(&problem) > 0);
}

#[test]
fn every_configuration_accepts_its_rounded_oracle() {
    let policies = [
        Policy::Fixed { k: 2 },
        Policy::TopP { p: 0.6 },
        Policy::Budget { mean_k: 2.0 },
        Policy::BudgetRunning { mean_k: 2.0, momentum: 0.9 },
        Policy::Thresholds { thresholds: vec![0.3, 0.6] },
        Policy::ScoreThreshold { threshold: Threshold::All(0.2) },
        Policy::ScoreThreshold { threshold: Threshold::Each(vec![0.1, 0.3, 0.2, 0.5, 0.1, 0.3]) },
    ];
    for (seed, policy) in policies.iter().enumerate() {
        for scoring in [Scoring::Softmax, Scoring::Sigmoid, Scoring::Relu] {
            for (normalize, n_group) in [(NormalizeWeights::Selected, 1), (NormalizeWeights::Candidates, 3)] {
                let router =
                    RouterConfig { scoring, normalize, n_group, topk_group: n_group.min(2), ..RouterConfig::default() };
                let experts_per_token = ExpertsPerToken::between(policy.clone(), 0, 3);
                let problem = problem(LayerConfig { router, experts_per_token, ..config(6) }, 9, true, seed as u64);
                let found = errors(&problem, &rounded(&problem));
                assert!(found.is_empty(), "{policy:?} {scoring:?} {normalize:?}: {found:?}");
            }
        }
    }
}

#[test]
fn every_source_and_normalisation_accepts_its_rounded_oracle() {
    let normalisations = [
        Normalize::None,
        Normalize::Max,
        Normalize::MinMax,
        Normalize::Rank,
        Normalize::Affine { a: 0.7, b: 0.1 },
        Normalize::Running { momentum: 0.5 },
    ];
    let attention = |measure| Source::Attention { measure, heads: da_moe_core::Heads::Mean, scale: None };
    let sources = AttentionSource::ALL.into_iter().map(attention).chain([Source::External, Source::RouterEntropy]);
    for source in sources {
        for normalize in normalisations {
            for causal in [false, true] {
                let importance = ImportanceConfig { source: source.clone(), normalize, causal, allow_future: true };
                let mut problem = problem(LayerConfig { importance, ..config(4) }, 7, false, 2);
                let mut random = Random::new(9);
                let (q, k) = (random.vector(7 * 4 * 3), random.vector(7 * 2 * 3));
                problem.attention = Some(Attention::QueryKey { q, k, lse: None, heads: 4, key_heads: 2, width: 3 });
                (problem.cu_seqlens, problem.mask[1]) = (vec![0, 3, 3, 7], false);
                problem.check().unwrap();
                let found = errors(&problem, &rounded(&problem));
                assert!(found.is_empty(), "{} {} causal {causal}: {found:?}", source.name(), normalize.name());
            }
        }
    }
}

#[test]
fn half_precision_has_its_own_bounds() {
    let mut problem = rich();
    problem.config.hidden_act = Activation::Swiglu;
    let round = |value: f64| da_moe_core::bf16::from_f64(value).to_f64();
    let mut outcome = rounded(&problem);
    outcome.y.iter_mut().for_each(|y| *y = round(*y));
    let dy = dy(&problem);
    assert!(verify(&problem, &outcome, DType::F32, Some(&dy)).is_err());
    let figures = verify(&problem, &outcome, DType::Bf16, Some(&dy)).unwrap();
    let y = figures.iter().find(|figure| figure.name == "y").unwrap();
    assert!(y.error > 1e-4 && y.bound < 8e-3, "{y:?}");
    // Twice the rounding is within 8e-3 but not what rounding a, o and y explains.
    let oracle = forward(&problem).y;
    for (y, oracle) in outcome.y.iter_mut().zip(&oracle) {
        *y += 3.0 * (*y - oracle);
    }
    assert!(verify(&problem, &outcome, DType::Bf16, Some(&dy)).is_err());
}

#[test]
fn non_finite_positions_must_agree() {
    let mut problem = rich();
    problem.x[8] = f64::NAN;
    let outcome = perfect(&problem);
    assert_eq!(errors(&problem, &outcome), []);
    let mut silent = outcome.clone();
    silent.y[8] = 0.0;
    assert_eq!(errors(&problem, &silent)[0].tensor, "y");
    let mut spread = outcome;
    spread.y[0] = f64::NAN;
    assert_eq!(errors(&problem, &spread)[0].tensor, "y");
}

#[test]
fn zero_is_only_near_zero() {
    let mut problem = problem(config(3), 4, false, 1);
    problem.mask = vec![false; 4];
    assert_eq!(errors(&problem, &perfect(&problem)), []);
    let mut outcome = perfect(&problem);
    outcome.y[0] = 1e-9;
    assert_eq!(errors(&problem, &outcome)[0].tensor, "y");
}

#[test]
fn an_outside_routing_and_an_empty_batch() {
    let mut outside = rich();
    outside.routing = Some((0..12).map(|t| vec![(t % 6, 0.5), (9, 9.0), ((t + 2) % 6, 0.75)]).collect());
    assert_eq!(errors(&outside, &perfect(&outside)), []);
    let mut outcome = perfect(&outside);
    outcome.ranked.swap(0, 1);
    assert_eq!(errors(&outside, &outcome)[0].tensor, "ranked");
    let mut outcome = perfect(&outside);
    outcome.gradients.as_mut().unwrap().routing.as_mut().unwrap()[1] = 0.1;
    assert_eq!(errors(&outside, &outcome)[0].tensor, "d.routing.weights");
    let empty = problem(config(3), 0, true, 1);
    assert_eq!(errors(&empty, &perfect(&empty)), []);
}
