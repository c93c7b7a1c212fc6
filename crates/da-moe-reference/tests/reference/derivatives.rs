//! Every gradient of SPEC §6 against central differences of the objective, in f64, with the decision held.

use crate::common::{Random, config, problem};
use da_moe_core::{
    Activation, Drop, ExpertsPerToken, LayerConfig, Losses, NormalizeWeights, NullExpert, Policy, RouterConfig, Scoring,
};
use da_moe_reference::{Problem, backward, forward, forward_with, objective};

type Field = fn(&mut Problem) -> Option<&mut Vec<f64>>;

fn check(what: &str, problem: &Problem) {
    let pass = forward(problem);
    let decision = pass.decision();
    assert_eq!(pass, forward_with(problem, &decision), "{what}");
    let dy = Random::new(77).vector(problem.x.len());
    let gradients = backward(problem, &pass, &dy);
    let shared = gradients.shared.as_ref();
    let fields: [(&str, Field, Option<&Vec<f64>>); 11] = [
        ("x", |p| Some(&mut p.x), Some(&gradients.x)),
        ("router", |p| Some(&mut p.router), gradients.router.as_ref()),
        ("w_in", |p| Some(&mut p.experts.w_in), Some(&gradients.experts.w_in)),
        ("w_out", |p| Some(&mut p.experts.w_out), Some(&gradients.experts.w_out)),
        ("b_in", |p| p.experts.b_in.as_mut(), gradients.experts.b_in.as_ref()),
        ("b_out", |p| p.experts.b_out.as_mut(), gradients.experts.b_out.as_ref()),
        ("shared w_in", |p| p.shared.as_mut().map(|s| &mut s.w_in), shared.map(|s| &s.w_in)),
        ("shared w_out", |p| p.shared.as_mut().map(|s| &mut s.w_out), shared.map(|s| &s.w_out)),
        ("shared b_in", |p| p.shared.as_mut()?.b_in.as_mut(), shared.and_then(|s| s.b_in.as_ref())),
        ("shared b_out", |p| p.shared.as_mut()?.b_out.as_mut(), shared.and_then(|s| s.b_out.as_ref())),
        ("constants", |p| p.constants.as_mut(), gradients.constants.as_ref()),
    ];
    for (name, field, gradient) in fields {
        for (at, &gradient) in gradient.into_iter().flatten().enumerate() {
            let step = 1e-5;
            let at_offset = |offset: f64| {
                let mut moved = problem.clone();
                if let Some(value) = field(&mut moved).and_then(|values| values.get_mut(at)) {
                    *value += offset;
                }
                objective(&moved, &decision, &dy)
            };
            close(&format!("{what}: {name}[{at}]"), gradient, (at_offset(step) - at_offset(-step)) / (2.0 * step));
        }
    }
    let entries =
        problem.routing.iter().flat_map(|r| r.iter().enumerate().flat_map(|(t, e)| (0..e.len()).map(move |i| (t, i))));
    for ((t, i), &gradient) in entries.zip(gradients.routing.iter().flatten()) {
        let at_offset = |offset: f64| {
            let mut moved = problem.clone();
            moved.routing.iter_mut().for_each(|routing| routing[t][i].1 += offset);
            objective(&moved, &decision, &dy)
        };
        close(&format!("{what}: routing[{t}][{i}]"), gradient, (at_offset(1e-4) - at_offset(-1e-4)) / 2e-4);
    }
}

fn close(what: &str, analytic: f64, numeric: f64) {
    let error = (analytic - numeric).abs() / (1.0 + analytic.abs().max(numeric.abs()));
    assert!(error < 1e-8, "{what}: {analytic} against the difference quotient {numeric}");
}

fn with_losses() -> LayerConfig {
    LayerConfig { losses: Losses { balance: 0.3, z: 0.2 }, ..config(4) }
}

#[test]
fn activations_with_and_without_biases_and_shared_expert() {
    for activation in Activation::ALL {
        for bias in [false, true] {
            let config = LayerConfig { hidden_act: activation, shared_intermediate_size: 3, ..config(3) };
            check(&format!("{activation:?} bias {bias}"), &problem(config, 4, bias, 5));
        }
    }
}

#[test]
fn scorings_and_normalisations_with_losses() {
    for scoring in [Scoring::Softmax, Scoring::Sigmoid, Scoring::Relu] {
        for normalize in [NormalizeWeights::None, NormalizeWeights::Selected, NormalizeWeights::Candidates] {
            for seed in 1..4 {
                let router = RouterConfig { scoring, normalize, routed_scaling: 1.7, ..RouterConfig::default() };
                let config = LayerConfig { router, ..with_losses() };
                let mut problem = problem(config, 5, true, seed);
                problem.mask[2] = false;
                check(&format!("{scoring:?} {normalize:?} seed {seed}"), &problem);
            }
        }
    }
}

/// Scores of which no number is left, and a favourite that is forbidden: ratios of the others have derivatives all the same.
#[test]
fn scores_far_below_zero() {
    for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
        for normalize in [NormalizeWeights::Selected, NormalizeWeights::Candidates] {
            for shift in [-100.0, -400.0, -900.0] {
                let router = RouterConfig { scoring, normalize, routed_scaling: 2.5, ..RouterConfig::default() };
                let mut problem = problem(LayerConfig { router, ..with_losses() }, 4, false, 3);
                // The z-loss is quadratic in the shift, whose difference quotient would hide everything else.
                problem.config.losses.z = 0.0;
                for (t, x) in problem.x.iter_mut().enumerate().filter(|(at, _)| at % 6 == 0) {
                    *x = 1.0 + t as f64 / 100.0;
                }
                // The favourite, of logit 0 or so.
                problem.router.iter_mut().step_by(6).skip(1).for_each(|w| *w += shift);
                problem.router_bias = Some(vec![f64::NEG_INFINITY, 0.0, 0.0, 0.0]);
                let pass = forward(&problem);
                assert!(pass.selection.iter().all(|slots| slots.iter().map(|slot| slot.weight).sum::<f64>() > 0.5));
                check(&format!("{scoring:?} {normalize:?} {shift}"), &problem);
            }
        }
    }
}

#[test]
fn masked_tokens_are_nothing_to_the_shared_expert() {
    let config = LayerConfig { shared_intermediate_size: 3, ..with_losses() };
    let mut problem = problem(config, 5, true, 8);
    (problem.mask[0], problem.mask[3]) = (false, false);
    check("shared expert and mask", &problem);
    let dy = Random::new(3).vector(problem.x.len());
    let gradients = backward(&problem, &forward(&problem), &dy);
    for t in [0, 3] {
        problem.x[t * 6..][..6].fill(f64::NAN);
    }
    let spoiled = backward(&problem, &forward(&problem), &dy);
    assert_eq!((&spoiled.shared, &spoiled.x), (&gradients.shared, &gradients.x));
}

#[test]
fn null_experts_of_every_kind() {
    for null_expert in [NullExpert::Zero, NullExpert::Copy, NullExpert::Constant] {
        for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
            let router = RouterConfig { scoring, ..RouterConfig::default() };
            let config = LayerConfig { null_expert, num_null_experts: 3, router, ..with_losses() };
            let problem = problem(config, 6, false, 11);
            let nulls: usize = forward(&problem).load[4..].iter().sum();
            assert!(nulls > 0, "the seed selects no null expert");
            check(&format!("{null_expert:?} {scoring:?}"), &problem);
        }
    }
}

#[test]
fn capacity_with_drops() {
    for drop in [Drop::Weight, Drop::Token] {
        for normalize in [NormalizeWeights::Selected, NormalizeWeights::Candidates] {
            let router = RouterConfig { capacity_factor: Some(0.6), drop, normalize, ..RouterConfig::default() };
            let problem = problem(LayerConfig { router, ..with_losses() }, 7, true, 3);
            assert!(forward(&problem).plan.dropped > 0, "nothing is dropped");
            check(&format!("{drop:?} {normalize:?}"), &problem);
        }
    }
}

#[test]
fn groups_and_other_policies() {
    let router = RouterConfig { n_group: 3, topk_group: 2, ..RouterConfig::default() };
    let grouped = LayerConfig { router, ..config(6) };
    check("groups", &problem(grouped, 4, true, 9));
    for policy in [Policy::TopP { p: 0.7 }, Policy::Budget { mean_k: 2.0 }, Policy::Fixed { k: 2 }] {
        let experts_per_token = ExpertsPerToken::between(policy.clone(), 1, 4);
        check(policy.name(), &problem(LayerConfig { experts_per_token, ..with_losses() }, 5, false, 2));
    }
}

#[test]
fn routing_from_outside() {
    let config = LayerConfig { num_null_experts: 1, null_expert: NullExpert::Copy, ..with_losses() };
    let mut problem = problem(config, 4, true, 21);
    // Out of slot order, with "none" (5 = E + Z) between, an empty token, and a masked one.
    problem.routing = Some(vec![vec![(2, 0.1), (5, 9.0), (0, 0.6)], vec![], vec![(4, 0.7), (1, 0.7)], vec![(3, 1.0)]]);
    problem.mask[3] = false;
    let pass = forward(&problem);
    assert_eq!(pass.decision().experts, [vec![0, 2], vec![], vec![1, 4], vec![]]);
    assert_eq!(pass.ranked, [vec![2, 0], vec![], vec![1, 0], vec![]]);
    check("routing", &problem);
}

#[test]
fn selected_normalisation_starves_a_single_expert() {
    let router = RouterConfig { normalize: NormalizeWeights::Selected, ..RouterConfig::default() };
    let experts_per_token = ExpertsPerToken::new(Policy::Fixed { k: 1 });
    let mut problem = problem(LayerConfig { router, experts_per_token, ..config(4) }, 3, false, 8);
    let dy = Random::new(3).vector(problem.x.len());
    let router = |p: &Problem| backward(p, &forward(p), &dy).router.unwrap();
    assert!(router(&problem).iter().all(|g| g.abs() < 1e-15));
    problem.config.router.normalize = NormalizeWeights::Candidates;
    problem.config.experts_per_token = ExpertsPerToken::between(Policy::Fixed { k: 1 }, 1, 3);
    assert!(router(&problem).iter().any(|g| g.abs() > 1e-3));
}

#[test]
fn a_divisor_of_zero_gives_no_weight_and_no_gradient() {
    let router = RouterConfig { scoring: Scoring::Relu, ..RouterConfig::default() };
    let mut problem = problem(LayerConfig { router, ..with_losses() }, 3, false, 8);
    problem.config.losses.z = 0.0;
    // Positive inputs and negative router rows: every score is 0.
    problem.x.iter_mut().for_each(|x| *x = x.abs());
    problem.router.iter_mut().for_each(|w| *w = -w.abs());
    let pass = forward(&problem);
    assert!(pass.selection.iter().flatten().all(|slot| slot.weight == 0.0));
    let gradients = backward(&problem, &pass, &vec![1.0; problem.x.len()]);
    assert!(gradients.router.unwrap().iter().chain(&gradients.x).all(|&g| g == 0.0));
}
