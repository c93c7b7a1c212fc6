//! SPEC §3 to §5 by hand: scores, selection, weights, losses, capacity, plan, combine.

use crate::common::{assert_close, config, problem};
use da_moe_core::{
    Activation, Drop, ExpertsPerToken, LayerConfig, NormalizeWeights, NullExpert, Policy, RouterConfig, Scoring,
};
use da_moe_reference::{
    Keys, Problem, Slot, activate, balance_loss, capacity_drops, forward, plan, scores, selection_order, shares,
    slot_order, weights, z_loss,
};

fn grouped(experts: usize, n_group: usize, topk_group: usize) -> LayerConfig {
    let router = RouterConfig { n_group, topk_group, ..RouterConfig::default() };
    LayerConfig { router, ..config(experts) }
}

#[test]
fn scores_of_each_kind() {
    assert_close(&scores(Scoring::Softmax, &[1f64.ln(), 3f64.ln()]), &[0.25, 0.75]);
    assert_close(&scores(Scoring::Sigmoid, &[0.0, 3f64.ln()]), &[0.5, 0.75]);
    assert_close(&scores(Scoring::Relu, &[-2.0, 3.0]), &[0.0, 3.0]);
    assert!(scores(Scoring::Relu, &[f64::NAN])[0].is_nan());
}

/// Keys as they are, whatever they are the keys of.
fn keys_of(sums: &[f64]) -> Keys {
    Keys { sums: sums.to_vec(), order: sums.to_vec(), of_groups: sums.to_vec() }
}

#[test]
fn selection_breaks_ties_downward_and_ranks_nan_last() {
    let order = |keys: &[f64]| selection_order(&config(keys.len()), &keys_of(keys));
    assert_eq!(order(&[0.1, 0.3, 0.3, 0.2]), [1, 2, 3, 0]);
    assert_eq!(order(&[f64::NAN, f64::NEG_INFINITY, f64::NAN, 0.0]), [3, 1, 0, 2]);
}

#[test]
fn groups_limit_the_selection() {
    // Sums of the two largest: 1.0, 1.1, 0.9.
    let keys = [0.9, 0.1, 0.0, 0.6, 0.5, 0.0, 0.45, 0.45, 0.45];
    assert_eq!(selection_order(&grouped(9, 3, 1), &keys_of(&keys)), [3, 4, 5]);
    assert_eq!(selection_order(&grouped(9, 3, 2), &keys_of(&keys)), [0, 3, 4, 1, 2, 5]);
    // Groups of one, and a tie that goes to the lower group.
    assert_eq!(selection_order(&grouped(3, 3, 2), &keys_of(&[0.5, 0.7, 0.5])), [1, 0]);
}

#[test]
fn weights_by_each_divisor() {
    let z = [0.5f64, 0.2, 0.2, 0.1].map(f64::ln);
    let by = |normalize| {
        let router = RouterConfig { normalize, routed_scaling: 2.0, ..RouterConfig::default() };
        weights(&router, &z, &[0, 1], &[0, 1, 2])
    };
    assert_close(&by(NormalizeWeights::None), &[1.0, 0.4]);
    assert_close(&by(NormalizeWeights::Selected), &[2.0 * 5.0 / 7.0, 2.0 * 2.0 / 7.0]);
    assert_close(&by(NormalizeWeights::Candidates), &[2.0 * 5.0 / 9.0, 2.0 * 2.0 / 9.0]);
}

#[test]
fn ratios_of_scores_are_defined_however_small_the_scores() {
    let third = [2.0 / 3.0, 1.0 / 3.0];
    for shift in [0.0, -50.0, -100.0, -800.0] {
        let z = [shift + 2f64.ln(), shift];
        assert_close(&shares(Scoring::Softmax, &z, &[0, 1]), &third);
        // Beside a logit that is not summed.
        assert_close(&shares(Scoring::Softmax, &[z[0], 900.0, z[1]], &[0, 2]), &third);
    }
    for shift in [-50.0, -100.0, -800.0] {
        assert_close(&shares(Scoring::Sigmoid, &[shift + 2f64.ln(), shift], &[0, 1]), &third);
    }
    assert_close(&shares(Scoring::Sigmoid, &[0.0, 3f64.ln(), 900.0], &[0, 1, 2]), &[2.0 / 9.0, 3.0 / 9.0, 4.0 / 9.0]);
    assert_close(&shares(Scoring::Relu, &[2e-300, 1e-300, -5.0], &[0, 1, 2]), &[third[0], third[1], 0.0]);
    // No score of theirs is above 0, and there is no ratio.
    for (scoring, z) in
        [(Scoring::Softmax, f64::NEG_INFINITY), (Scoring::Sigmoid, f64::NEG_INFINITY), (Scoring::Relu, -1.0)]
    {
        assert_eq!(shares(scoring, &[0.0, z, z], &[1, 2]), [0.0, 0.0], "{scoring:?}");
    }
    // No number, no ratio.
    assert!(shares(Scoring::Softmax, &[0.0, 1.0, f64::NAN], &[0, 1]).iter().all(|share| share.is_nan()));
    assert!(shares(Scoring::Relu, &[1.0, f64::INFINITY], &[0, 1]).iter().all(|share| share.is_nan()));
}

#[test]
fn scores_too_small_for_any_number_still_rank() {
    let order =
        |scoring, z: &[f64], bias: Option<&[f64]>| selection_order(&config(z.len()), &Keys::new(scoring, z, bias));
    let z = [-2000.0, -1000.0, 900.0, -1001.0];
    assert_eq!(order(Scoring::Softmax, &z, None), [2, 1, 3, 0]);
    assert_eq!(order(Scoring::Sigmoid, &z, None), [2, 1, 3, 0]);
    // A favourite that is forbidden, and a candidate that is forced.
    let forbidden = [0.0, 0.0, f64::NEG_INFINITY, 0.0];
    assert_eq!(order(Scoring::Softmax, &z, Some(&forbidden)), [1, 3, 0, 2]);
    assert_eq!(order(Scoring::Sigmoid, &z, Some(&[f64::INFINITY, 0.0, 0.0, 0.0])), [0, 2, 1, 3]);
    // Other biases are held against the scores themselves; relu makes one score of many logits.
    assert_eq!(order(Scoring::Softmax, &z, Some(&[0.1, 0.0, 0.0, 0.2])), [2, 3, 0, 1]);
    assert_eq!(order(Scoring::Relu, &z, None), [2, 0, 1, 3]);
    // Groups: only the second has anything to offer, the favourite being forbidden.
    let groups =
        Keys::new(Scoring::Softmax, &[-500.0, 900.0, -300.0, -400.0], Some(&[0.0, f64::NEG_INFINITY, 0.0, 0.0]));
    assert_eq!(selection_order(&grouped(4, 2, 1), &groups), [2, 3]);
}

#[test]
fn losses_count_unmasked_tokens_and_null_experts() {
    let config = LayerConfig { num_null_experts: 1, ..config(2) };
    let z = [0.5f64, 0.25, 0.25, 0.1, 0.2, 0.7, 9.0, 9.0, 9.0].map(f64::ln);
    let mask = [true, true, false];
    // f = 2/4, 1/4, 1/4; p = 0.3, 0.225, 0.475; E = 2.
    assert_close(&[balance_loss(&config, &z, &[2, 1, 1], &mask)], &[2.0 * (0.15 + 0.05625 + 0.11875)]);
    assert_eq!(balance_loss(&config, &z, &[0, 0, 0], &mask), 0.0);
    let z = [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 5.0, 5.0, 5.0];
    let squares = (3f64.ln().powi(2) + (1.0 + 3f64.ln()).powi(2)) / 2.0;
    assert_close(&[z_loss(&config, &z, &mask)], &[squares]);
    let sigmoid = LayerConfig { router: RouterConfig { scoring: Scoring::Sigmoid, ..config.router }, ..config };
    // Scores of 0.8, 0.4 and 0.4.
    let z = [4.0f64, 2.0 / 3.0, 2.0 / 3.0].map(f64::ln);
    assert_close(&[balance_loss(&sigmoid, &z, &[1, 0, 0], &[true])], &[2.0 * 0.5]);
}

fn slots(of: &[(usize, f64)]) -> Vec<Slot> {
    of.iter().map(|&(expert, weight)| Slot { expert, weight }).collect()
}

#[test]
fn slots_descend_by_weight() {
    let slots = slots(&[(3, 0.2), (0, f64::NAN), (2, 0.5), (1, 0.2)]);
    assert_eq!(slot_order(&slots), [2, 3, 0, 1]);
}

#[test]
fn capacity_keeps_the_earliest_or_the_heaviest() {
    let selection =
        [slots(&[(0, 0.2), (2, 0.1)]), slots(&[(0, 0.5)]), slots(&[(0, 0.2), (1, 0.1)]), slots(&[(0, 0.9), (1, 0.05)])];
    let by = |drop, factor| {
        let router = RouterConfig { capacity_factor: Some(factor), drop, ..RouterConfig::default() };
        // Two experts and a null expert, which has no capacity. R is 7, so half of R/E rounds up to 2.
        let config = LayerConfig { num_null_experts: 1, router, ..config(2) };
        (capacity_drops(&config, &selection), plan(&config, &selection, &capacity_drops(&config, &selection)))
    };
    let (drops, kept) = by(Drop::Token, 0.5);
    assert_eq!(drops, [vec![false, false], vec![false], vec![true, false], vec![true, false]]);
    assert_eq!((kept.counts, kept.dropped), (vec![2, 2, 1], 2));
    let (drops, kept) = by(Drop::Weight, 0.5);
    assert_eq!(drops, [vec![true, false], vec![false], vec![true, false], vec![false, false]]);
    assert_eq!((kept.offsets, kept.row_token), (vec![0, 2, 4], vec![1, 3, 2, 3]));
    assert_eq!(kept.row_weight, [0.5, 0.9, 0.1, 0.05]);
    assert_eq!(kept.token_row, [vec![None, None], vec![Some(0)], vec![None, Some(2)], vec![Some(1), Some(3)]]);
    let (_, kept) = by(Drop::Weight, 0.0);
    assert_eq!((kept.counts, kept.row_token, kept.dropped), (vec![0, 0, 1], vec![], 6));
    // Equal weights: the lower token stays.
    let (drops, _) = by(Drop::Weight, 0.8);
    assert_eq!(drops, [vec![false, false], vec![false], vec![true, false], vec![false, false]]);
}

#[test]
fn activations_at_one() {
    let at = |activation, h: &[f64]| activate(activation, h)[0];
    assert_eq!(at(Activation::Relu, &[-1.0]), 0.0);
    assert!((at(Activation::Gelu, &[1.0]) - 0.841_344_746_068_542_9).abs() < 1e-15);
    assert!((at(Activation::GeluTanh, &[1.0]) - 0.841_191_990_608_276_7).abs() < 1e-12);
    assert!((at(Activation::Silu, &[1.0]) - 0.731_058_578_630_004_9).abs() < 1e-15);
    assert_eq!(at(Activation::Reglu, &[2.0, 3.0]), 6.0);
    assert!(at(Activation::Relu, &[f64::NAN]).is_nan());
}

/// `D` 1, `F` 1, relu: expert `e` multiplies by its two weights.
fn scalar(z: &[f64], k: usize) -> Problem {
    let config = LayerConfig {
        hidden_size: 1,
        moe_intermediate_size: 1,
        hidden_act: Activation::Relu,
        experts_per_token: ExpertsPerToken::between(Policy::Fixed { k }, k, k),
        router: RouterConfig { scoring: Scoring::Relu, normalize: NormalizeWeights::None, ..RouterConfig::default() },
        ..config(z.len())
    };
    let mut problem = problem(config, 1, false, 1);
    (problem.x, problem.router) = (vec![2.0], z.to_vec());
    (problem.experts.w_in, problem.experts.w_out) = (vec![1.0, 2.0, -1.0], vec![10.0, 100.0, 1000.0]);
    problem
}

#[test]
fn a_layer_small_enough_for_mental_arithmetic() {
    let mut problem = scalar(&[0.5, 0.25, 0.125], 2);
    // x = 2: scores 1, 0.5, 0.25; experts 0 and 1 return 20 and 400.
    let pass = forward(&problem);
    assert_eq!(pass.selection, [slots(&[(0, 1.0), (1, 0.5)])]);
    assert_eq!((&pass.rows.hidden, &pass.rows.out, &pass.y), (&vec![2.0, 4.0], &vec![20.0, 400.0], &vec![220.0]));
    // A bias changes who is selected and not the weights.
    problem.router_bias = Some(vec![0.0, 0.0, 0.5]);
    let pass = forward(&problem);
    assert_eq!((&pass.ranked, &pass.selection), (&vec![vec![0, 2]], &vec![slots(&[(0, 1.0), (2, 0.25)])]));
    assert_eq!(pass.y, [20.0]);
}

#[test]
fn null_experts_return_nothing_the_token_or_a_constant() {
    for (kind, expected) in [(NullExpert::Zero, 0.0), (NullExpert::Copy, 2.0), (NullExpert::Constant, 7.0)] {
        let mut problem = scalar(&[0.5, 0.25, 0.125], 2);
        (problem.config.num_experts, problem.config.num_null_experts) = (1, 2);
        (problem.experts.count, problem.config.null_expert) = (1, kind);
        (problem.experts.w_in, problem.experts.w_out) = (vec![1.0], vec![10.0]);
        problem.constants = (kind == NullExpert::Constant).then(|| vec![7.0, 8.0]);
        problem.check().unwrap();
        let pass = forward(&problem);
        assert_eq!((&pass.plan.counts, &pass.plan.offsets), (&vec![1, 1, 0], &vec![0, 1]));
        assert_eq!(pass.y, [20.0 + 0.5 * expected]);
    }
}

#[test]
fn a_shared_expert_serves_every_token_but_masked_ones() {
    let shared = LayerConfig { shared_intermediate_size: 2, ..config(2) };
    let mut problem = problem(shared, 3, false, 6);
    problem.config.experts_per_token = ExpertsPerToken::between(Policy::Fixed { k: 0 }, 0, 0);
    problem.mask = vec![true, false, true];
    let pass = forward(&problem);
    let shared = pass.shared.unwrap();
    assert_eq!((shared.out.len(), &pass.y[6..12]), (12, &[0.0; 6][..]));
    assert_eq!((&pass.y[..6], &pass.y[12..]), (&shared.out[..6], &shared.out[6..]));
}

#[test]
fn a_bad_token_spoils_its_own_row_only() {
    let mut problem = problem(config(4), 3, true, 6);
    let clean = forward(&problem).y;
    problem.x[6] = f64::NAN;
    let y = forward(&problem).y;
    assert!(y[6..12].iter().all(|y| y.is_nan()));
    assert_eq!((&y[..6], &y[12..]), (&clean[..6], &clean[12..]));
}
