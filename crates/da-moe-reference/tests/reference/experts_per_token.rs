//! SPEC §2 by hand: every policy, its bounds and its ties.

use crate::common::{config, problem};
use da_moe_core::{ExpertsPerToken, LayerConfig, Policy, RouterConfig, Scoring, Threshold};
use da_moe_reference::{Problem, forward, price};

/// The sentence of the paper's figure: "The movie was incredibly inspiring."
const SENTENCE: [f64; 5] = [0.3, 0.3, 0.3, 0.7, 0.7];

fn with(policy: Policy, min: usize, max: usize, importance: &[f64]) -> Problem {
    let config = LayerConfig { experts_per_token: ExpertsPerToken::between(policy, min, max), ..config(8) };
    let mut problem = problem(config, importance.len(), false, 4);
    problem.importance = Some(importance.to_vec());
    problem.check().unwrap();
    problem
}

fn k(policy: Policy, min: usize, max: usize, importance: &[f64]) -> Vec<usize> {
    forward(&with(policy, min, max, importance)).k
}

#[test]
fn the_movie_was_incredibly_inspiring() {
    assert_eq!(k(Policy::Proportional { scale: None }, 1, 8, &SENTENCE), [3, 3, 3, 6, 6]);
    let thresholds = Policy::Thresholds { thresholds: vec![0.25, 0.5, 0.6] };
    assert_eq!(k(thresholds, 1, 4, &SENTENCE), [2, 2, 2, 4, 4]);
    // 15 experts over five tokens, one each at least, leave ten levels: twice 0.7, twice 0.7/2, three times 0.3, twice
    // 0.7/3, and the tenth is 0.7/4, of which the lower token has the first.
    assert_eq!(k(Policy::Budget { mean_k: 3.0 }, 1, 8, &SENTENCE), [2, 2, 2, 5, 4]);
    // The last two of twenty levels are at 0.1, which 0.3/3 and 0.7/7 both are in f32: the lower level wins.
    assert_eq!(k(Policy::Budget { mean_k: 4.0 }, 0, 8, &SENTENCE), [3, 3, 2, 6, 6]);
}

#[test]
fn fixed_is_fixed_and_bounds_hold() {
    assert_eq!(k(Policy::Fixed { k: 2 }, 2, 2, &SENTENCE), [2; 5]);
    assert_eq!(k(Policy::Proportional { scale: Some(4.0) }, 2, 3, &[0.0, 0.5, 0.51, 9.0]), [2, 2, 3, 3]);
    let odd = [f64::NAN, -1.0, f64::INFINITY, 0.0];
    assert_eq!(k(Policy::Proportional { scale: None }, 0, 8, &odd), [0, 0, 8, 0]);
}

#[test]
fn a_product_is_formed_in_f32() {
    // 0.3 as f32 is above 0.3, times 10 rounds to 3 in f32 and stays above it in f64.
    let importance = f64::from(0.3f32);
    assert!(importance * 10.0 > 3.0);
    assert_eq!(k(Policy::Proportional { scale: Some(10.0) }, 0, 8, &[importance]), [3]);
}

#[test]
fn thresholds_include_equality() {
    let thresholds = Policy::Thresholds { thresholds: vec![0.1, 0.2] };
    assert_eq!(k(thresholds, 0, 2, &[0.05, f64::from(0.1f32), 0.15, f64::from(0.2f32), 7.0]), [0, 1, 1, 2, 2]);
}

#[test]
fn budget_breaks_ties_by_level_then_token() {
    let budget = |mean_k| Policy::Budget { mean_k };
    // Keys 1, 1, 1 / 0.5, 0.5, 0.5: five levels for three equal tokens.
    assert_eq!(k(budget(5.0 / 3.0), 0, 8, &[1.0, 1.0, 1.0]), [2, 2, 1]);
    // Keys of the second token's second level and of the first token's first are equal: the lower level wins.
    assert_eq!(k(budget(1.0), 0, 8, &[0.5, 1.0]), [1, 1]);
    assert_eq!(k(budget(0.5), 0, 8, &[0.0, 0.0]), [1, 0]);
}

#[test]
fn budget_may_be_all_or_nothing() {
    let budget = |mean_k| Policy::Budget { mean_k };
    assert_eq!(k(budget(3.0), 1, 3, &SENTENCE), [3; 5]);
    assert_eq!(k(budget(2.0), 2, 3, &SENTENCE), [2; 5]);
    assert_eq!(k(budget(2.0), 0, 3, &[1.0, 0.0, 0.0]), [3, 2, 1]);
}

#[test]
fn budget_counts_unmasked_tokens_only() {
    let mut problem = with(Policy::Budget { mean_k: 2.0 }, 0, 8, &[9.0, 0.2, 0.1]);
    problem.mask[0] = false;
    assert_eq!(forward(&problem).k, [0, 3, 1]);
}

#[test]
fn a_running_price_starts_for_uniform_importance_and_follows_the_mean() {
    let policy = Policy::BudgetRunning { mean_k: 3.0, momentum: 0.5 };
    let mut problem = with(policy, 1, 8, &[0.1, 0.5, 0.9, 0.2]);
    assert_eq!(price([0.0; 4], 3.0, 1), 0.2);
    // Levels floor(I / 0.2): 0, 2, 4, 1.
    assert_eq!(forward(&problem).k, [1, 3, 5, 2]);
    problem.training = true;
    problem.mask[0] = false;
    let state = forward(&problem).next_state.unwrap();
    // Seven levels given, N = 9 − 3 = 6.
    let expected = f64::from(0.2f32) * (8.0f64 / 7.0).sqrt();
    assert!((state[2] - expected).abs() < 1e-12);
    assert_eq!(state[3], 0.0, "counts the steps of `running` only");
    problem.state = [0.0, 0.0, 0.45, 1.0];
    assert_eq!(forward(&problem).k, [0, 2, 3, 1]);
}

/// `D` 1 and `x` 1, so that the router's weights are the logits.
fn with_logits(policy: Policy, min: usize, max: usize, scoring: Scoring, z: &[f64]) -> Problem {
    let router = RouterConfig { scoring, ..RouterConfig::default() };
    let experts_per_token = ExpertsPerToken::between(policy, min, max);
    let config = LayerConfig { hidden_size: 1, router, experts_per_token, ..config(z.len()) };
    let mut problem = problem(config, 1, false, 4);
    (problem.x, problem.router) = (vec![1.0], z.to_vec());
    problem
}

#[test]
fn top_p_takes_as_many_as_it_needs() {
    // Probabilities 0.1, 0.5, 0.4.
    let z = [1f64.ln(), 5f64.ln(), 4f64.ln()];
    for (p, expected) in [(0.3, 1), (0.6, 2), (0.89, 2), (0.95, 3), (1.0, 3)] {
        let pass = forward(&with_logits(Policy::TopP { p }, 0, 3, Scoring::Softmax, &z));
        assert_eq!(pass.k, [expected], "p {p}");
        assert_eq!(pass.ranked, [[1, 2, 0]]);
    }
    assert_eq!(forward(&with_logits(Policy::TopP { p: 0.95 }, 0, 2, Scoring::Softmax, &z)).k, [2]);
    // relu scores 1, 5, 0: over their sum, two reach 0.9. With none positive, none reaches p and all are taken.
    assert_eq!(forward(&with_logits(Policy::TopP { p: 0.9 }, 0, 3, Scoring::Relu, &[1.0, 5.0, -3.0])).k, [2]);
    assert_eq!(forward(&with_logits(Policy::TopP { p: 0.9 }, 0, 3, Scoring::Relu, &[-1.0, -5.0, -3.0])).k, [3]);
}

#[test]
fn top_p_ignores_the_selection_bias() {
    let z = [1f64.ln(), 5f64.ln(), 4f64.ln()];
    let mut problem = with_logits(Policy::TopP { p: 0.5 - 1e-9 }, 0, 3, Scoring::Softmax, &z);
    problem.router_bias = Some(vec![1.0, 0.0, 0.0]);
    let pass = forward(&problem);
    assert_eq!((pass.decision().experts, pass.k), (vec![vec![0]], vec![1]));
}

#[test]
fn score_thresholds_for_all_and_for_each() {
    let all = |c| Policy::ScoreThreshold { threshold: Threshold::All(c) };
    let z = [0.1, 0.9, 0.5, 0.5];
    assert_eq!(forward(&with_logits(all(0.5), 0, 4, Scoring::Relu, &z)).k, [1]);
    assert_eq!(forward(&with_logits(all(0.4), 0, 4, Scoring::Relu, &z)).decision().experts, [[1, 2, 3]]);
    assert_eq!(forward(&with_logits(all(0.4), 0, 2, Scoring::Relu, &z)).decision().experts, [[1, 2]]);
    assert_eq!(forward(&with_logits(all(5.0), 2, 4, Scoring::Relu, &z)).decision().experts, [[1, 2]]);
    // Expert 0 is above its own threshold although its key is the smallest; expert 1 is not.
    let each = Policy::ScoreThreshold { threshold: Threshold::Each(vec![0.0, 1.0, 0.4, 1.0]) };
    let pass = forward(&with_logits(each.clone(), 0, 4, Scoring::Relu, &z));
    assert_eq!((&pass.k, &pass.ranked), (&vec![2], &vec![vec![2, 0, 1, 3]]));
    assert_eq!(pass.decision().experts, [[2, 0]]);
    // k_min reaches into those below; slots go by weight.
    let pass = forward(&with_logits(each, 3, 4, Scoring::Relu, &z));
    assert_eq!(pass.decision().experts, [[1, 2, 0]]);
}

#[test]
fn given_is_clamped() {
    let mut problem = with(Policy::Fixed { k: 1 }, 1, 3, &[0.0; 4]);
    problem.config.experts_per_token.policy = Policy::Given;
    problem.k_given = Some(vec![-7, 2, 99, 3]);
    problem.mask[3] = false;
    assert_eq!(forward(&problem).k, [1, 2, 3, 0]);
}

#[test]
fn no_tokens_and_only_masked_tokens() {
    let pass = forward(&with(Policy::Budget { mean_k: 3.0 }, 1, 8, &[]));
    assert_eq!((pass.k.len(), pass.plan.offsets, pass.balance_loss, pass.z_loss), (0, vec![0; 9], 0.0, 0.0));
    let mut problem = with(Policy::Budget { mean_k: 3.0 }, 1, 8, &SENTENCE);
    problem.mask = vec![false; 5];
    let pass = forward(&problem);
    assert_eq!((pass.k, pass.balance_loss, pass.z_loss), (vec![0; 5], 0.0, 0.0));
    assert!(pass.y.iter().all(|&y| y == 0.0));
}
