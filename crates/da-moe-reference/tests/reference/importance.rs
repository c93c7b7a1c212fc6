//! SPEC §1 by hand: every source, head reduction and normalisation.

use crate::common::{assert_close, config, problem};
use da_moe_core::{AttentionSource, Heads, ImportancePart, LayerConfig, Normalize, Source};
use da_moe_reference::{Attention, Problem, attention_importance, forward, importance, measure, normalize};

/// Two heads over three tokens; rows are queries.
const P: [f64; 18] = [
    0.5, 0.3, 0.2, 0.1, 0.8, 0.1, 0.6, 0.2, 0.2, // head 0
    1.0, 0.0, 0.0, 0.25, 0.25, 0.5, 0.0, 0.5, 0.5, // head 1
];

fn with_probabilities() -> Problem {
    let mut problem = problem(config(4), 3, false, 1);
    problem.attention = Some(Attention::Probabilities { p: P.to_vec(), heads: 2, side: 3 });
    problem
}

fn attention(problem: &Problem, measure: AttentionSource, heads: Heads) -> Vec<f64> {
    attention_importance(problem, measure, heads, None)
}

#[test]
fn attention_sources_of_given_probabilities() {
    let problem = with_probabilities();
    let mean = |measure| attention(&problem, measure, Heads::Mean);
    assert_close(&mean(AttentionSource::ReceivedMax), &[0.8, 0.65, 0.35]);
    assert_close(&mean(AttentionSource::ReceivedSum), &[1.225, 1.025, 0.75]);
    assert_close(&mean(AttentionSource::ReceivedMean), &[1.225 / 3.0, 1.025 / 3.0, 0.25]);
    assert_close(&mean(AttentionSource::GivenPeak), &[0.75, 0.65, 0.55]);
    assert_close(&mean(AttentionSource::GivenSelf), &[0.75, 0.525, 0.35]);
    let max = attention(&problem, AttentionSource::ReceivedMax, Heads::Max);
    assert_close(&max, &[1.0, 0.8, 0.5]);
    let entropy = |p: [f64; 3]| p.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum::<f64>() / 3f64.ln();
    let expected = [
        entropy([0.5, 0.3, 0.2]) / 2.0,
        (entropy([0.1, 0.8, 0.1]) + entropy([0.25, 0.25, 0.5])) / 2.0,
        (entropy([0.6, 0.2, 0.2]) + entropy([0.0, 0.5, 0.5])) / 2.0,
    ];
    assert_close(&mean(AttentionSource::GivenEntropy), &expected);
}

#[test]
fn causal_masked_and_nan_probabilities() {
    let mut problem = with_probabilities();
    problem.config.importance.causal = true;
    // Entries above the diagonal are invisible.
    assert_close(&attention(&problem, AttentionSource::ReceivedMax, Heads::Mean), &[0.8, 0.65, 0.35]);
    assert_close(&attention(&problem, AttentionSource::ReceivedSum, Heads::Max), &[1.25, 1.0, 0.5]);
    let mean = attention(&problem, AttentionSource::ReceivedMean, Heads::Mean);
    assert_close(&mean, &[1.225 / 3.0, (1.0 + 0.75) / 4.0, 0.35]);
    assert_close(&attention(&problem, AttentionSource::GivenPeak, Heads::Mean), &[0.75, 0.525, 0.55]);
    assert_eq!(attention(&problem, AttentionSource::GivenEntropy, Heads::Mean)[0], 0.0);
    problem.config.importance.causal = false;
    problem.mask[0] = false;
    assert_close(&attention(&problem, AttentionSource::ReceivedMax, Heads::Mean), &[0.0, 0.65, 0.35]);
    assert_close(&attention(&problem, AttentionSource::GivenPeak, Heads::Mean), &[0.0, 0.65, 0.35]);
    if let Some(Attention::Probabilities { p, .. }) = &mut problem.attention {
        p[4] = f64::NAN;
    }
    assert_close(&attention(&problem, AttentionSource::ReceivedMax, Heads::Mean), &[0.0, 0.35, 0.35]);
    assert_close(&attention(&problem, AttentionSource::GivenPeak, Heads::Mean), &[0.0, 0.3, 0.35]);
}

#[test]
fn sequences_use_their_leading_block_and_do_not_mix() {
    let mut problem = with_probabilities();
    problem.cu_seqlens = vec![0, 1, 1, 3];
    let mut p = vec![9.0; 3 * 4];
    p[0] = 1.0;
    p[8..12].copy_from_slice(&[0.9, 0.1, 0.4, 0.6]);
    problem.attention = Some(Attention::Probabilities { p, heads: 1, side: 2 });
    problem.check().unwrap();
    assert_close(&attention(&problem, AttentionSource::ReceivedSum, Heads::Mean), &[1.0, 1.3, 0.7]);
}

/// One head of width 1 and key heads shared by two query heads; `q = 1`, so `S_ij = k_j`.
#[test]
fn queries_and_keys_are_a_softmax() {
    let mut problem = with_probabilities();
    let k = [1f64.ln(), 2f64.ln(), 5f64.ln()].to_vec();
    let make = |lse| Some(Attention::QueryKey { q: vec![1.0; 6], k: k.clone(), lse, heads: 2, key_heads: 1, width: 1 });
    problem.attention = make(None);
    problem.check().unwrap();
    assert_close(&attention(&problem, AttentionSource::ReceivedMax, Heads::Max), &[0.125, 0.25, 0.625]);
    let entropy = -(0.125 * 0.125f64.ln() + 0.25 * 0.25f64.ln() + 0.625 * 0.625f64.ln()) / 3f64.ln();
    assert_close(&attention(&problem, AttentionSource::GivenEntropy, Heads::Mean), &[entropy; 3]);
    // The caller's log-sum-exp is believed.
    problem.attention = make(Some(vec![16f64.ln(); 6]));
    assert_close(&attention(&problem, AttentionSource::GivenSelf, Heads::Mean), &[0.0625, 0.125, 0.3125]);
    // Doubling the scale squares the ratios: 1 : 4 : 25.
    problem.attention = make(None);
    let doubled = attention_importance(&problem, AttentionSource::GivenPeak, Heads::Mean, Some(2.0));
    assert_close(&doubled, &[25.0 / 30.0; 3]);
    problem.config.importance.causal = true;
    let causal = attention(&problem, AttentionSource::GivenPeak, Heads::Mean);
    assert_close(&causal, &[1.0, 2.0 / 3.0, 0.625]);
}

#[test]
fn other_sources() {
    let mut problem = problem(config(4), 3, false, 1);
    problem.importance = Some(vec![0.2, 0.4, 0.9]);
    problem.mask[2] = false;
    assert_eq!(measure(&problem, &Source::External, &[]), [0.2, 0.4, 0.0]);
    problem.token_ids = Some(vec![2, 0, -100]);
    problem.token_frequency = Some(vec![0.1, 0.2, 0.3]);
    assert_eq!(measure(&problem, &Source::TokenFrequency, &[]), [0.3, 0.1, 0.0]);
    let z = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1e9, -1e9, 1.0, 2.0, 3.0, 4.0];
    assert_close(&measure(&problem, &Source::RouterEntropy, &z), &[1.0, 0.5, 0.0]);
    let part = |weight, source, normalize| ImportancePart { weight, source, normalize };
    let mix = Source::Mix(vec![
        part(0.5, Source::External, Normalize::Max),
        part(2.0, Source::TokenFrequency, Normalize::None),
    ]);
    assert_close(&measure(&problem, &mix, &[]), &[0.5 * 0.5 + 2.0 * 0.3, 0.5 + 2.0 * 0.1, 0.0]);
}

#[test]
fn router_entropy_of_one_expert_is_zero() {
    let mut one = config(1);
    one.importance.source = Source::RouterEntropy;
    assert_eq!(forward(&problem(one, 2, false, 1)).importance, [0.0, 0.0]);
}

#[test]
fn normalisations_are_per_sequence_and_skip_masked_tokens() {
    let mut problem = problem(config(4), 6, false, 1);
    problem.cu_seqlens = vec![0, 4, 4, 6];
    problem.mask[3] = false;
    let values = [0.2, 0.6, 0.2, 9.0, f64::NAN, -1.0];
    let by = |problem: &Problem, rule| normalize(problem, &rule, &values);
    assert_close(&by(&problem, Normalize::None), &[0.2, 0.6, 0.2, 0.0, 0.0, 0.0]);
    assert_close(&by(&problem, Normalize::Max), &[1.0 / 3.0, 1.0, 1.0 / 3.0, 0.0, 0.0, 0.0]);
    assert_close(&by(&problem, Normalize::MinMax), &[0.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    assert_close(&by(&problem, Normalize::Rank), &[0.5, 1.0, 0.5, 0.0, 0.75, 0.75]);
    assert_close(&by(&problem, Normalize::Affine { a: 2.0, b: 0.1 }), &[0.5, 1.0, 0.5, 0.0, 0.1, 0.1]);
    let running = Normalize::Running { momentum: 0.9 };
    assert_close(&by(&problem, running), &[0.2, 0.6, 0.2, 0.0, 0.0, 0.0]);
    problem.state = [0.1, 0.5, 0.0, 3.0];
    assert_close(&by(&problem, running), &[0.25, 1.0, 0.25, 0.0, 0.0, 0.0]);
}

#[test]
fn running_statistics_start_outright_and_then_move() {
    let mut running = LayerConfig { ..config(4) };
    running.importance.normalize = Normalize::Running { momentum: 0.75 };
    let mut problem = problem(running, 3, false, 1);
    problem.importance = Some(vec![0.4, 0.8, 0.1]);
    problem.mask[2] = false;
    assert_eq!(forward(&problem).next_state, None);
    problem.training = true;
    assert_eq!(forward(&problem).importance, [0.4, 0.8, 0.0]);
    problem.state = forward(&problem).next_state.unwrap();
    assert_eq!(problem.state, [0.4, 0.8, 0.0, 1.0]);
    problem.importance = Some(vec![0.6, 1.6, 0.0]);
    assert_close(&importance(&problem, &[]), &[0.5, 1.0, 0.0]);
    assert_close(&forward(&problem).next_state.unwrap(), &[0.75 * 0.4 + 0.25 * 0.6, 0.75 * 0.8 + 0.4, 0.0, 2.0]);
    problem.mask = vec![false; 3];
    assert_eq!(forward(&problem).next_state.unwrap(), problem.state);
}
