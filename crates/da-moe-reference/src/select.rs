//! SPEC §3: the order in which a token's candidates are selected. Keys are `s_e + b_e`, the largest first, ties to the
//! lower index, NaN last; group-limited selection removes candidates, `score-threshold` puts those above theirs first.

use crate::problem::row;
use crate::scores;
use crate::scores::log_score;
use da_moe_core::{LayerConfig, Policy, Scoring};
use std::cmp::Ordering;

/// What the candidates of one token are selected by.
#[derive(Clone, Debug, PartialEq)]
pub struct Keys {
    /// `s + b`, which thresholds are compared with.
    pub sums: Vec<f64>,
    /// Numbers in the order of `s + b`: these themselves or, where [`ranked_by_logits`], the logits, which have that order
    /// however small the scores are.
    pub order: Vec<f64>,
    /// Numbers whose sums are in the order of the groups' scores: `s + b` or, where [`ranked_by_logits`], scores relative to the
    /// largest that is not forbidden.
    pub of_groups: Vec<f64>,
}

/// Whether every bias only allows (0), forbids (−∞) or forces (+∞) its candidate, so that logits decide the order of scores.
/// relu makes one score of many logits.
pub fn ranked_by_logits(scoring: Scoring, bias: Option<&[f64]>) -> bool {
    scoring != Scoring::Relu && bias.is_none_or(|bias| bias.iter().all(|b| *b == 0.0 || !b.is_finite()))
}

impl Keys {
    /// Of a token with logits `z`.
    pub fn new(scoring: Scoring, z: &[f64], bias: Option<&[f64]>) -> Self {
        // Infinite numbers count as the largest there are, so that an infinite bias is the sum; NaN passes through.
        let biased = |values: &[f64]| -> Vec<f64> {
            let bias = |e: usize| bias.map_or(0.0, |bias| bias[e]);
            values.iter().enumerate().map(|(e, value)| value.clamp(f64::MIN, f64::MAX) + bias(e)).collect()
        };
        let sums = biased(&scores(scoring, z));
        if !ranked_by_logits(scoring, bias) {
            return Self { order: sums.clone(), of_groups: sums.clone(), sums };
        }
        let allowed = (0..z.len()).filter(|&e| bias.is_none_or(|bias| bias[e] != f64::NEG_INFINITY));
        let largest = allowed.map(|e| log_score(scoring, z[e])).fold(f64::NEG_INFINITY, f64::max);
        let relative: Vec<f64> = z.iter().map(|&z| (log_score(scoring, z) - largest).exp()).collect();
        Self { sums, order: biased(z), of_groups: biased(&relative) }
    }

    /// Of every token with logits `z[T, E + Z]`.
    pub(crate) fn of_tokens(config: &LayerConfig, z: &[f64], bias: Option<&[f64]>) -> Vec<Self> {
        let candidates = config.candidates();
        (0..z.len() / candidates).map(|t| Self::new(config.router.scoring, row(z, t, candidates), bias)).collect()
    }
}

/// Every candidate that a token with these keys may get, best first.
pub fn selection_order(config: &LayerConfig, keys: &Keys) -> Vec<usize> {
    let mut order = reachable(config, keys);
    let below = |e: usize| !above_threshold(&config.experts_per_token.policy, keys.sums[e], e);
    // Stable, so that ties stay in index order.
    order.sort_by(|&a, &b| below(a).cmp(&below(b)).then(descending(keys.order[a], keys.order[b])));
    order
}

/// Whether `score-threshold` selects a candidate for its key; under other policies no candidate has a threshold.
pub(crate) fn above_threshold(policy: &Policy, key: f64, e: usize) -> bool {
    match policy {
        Policy::ScoreThreshold { threshold } => key as f32 > threshold.of(e) as f32,
        _ => true,
    }
}

/// Members of the `topk_group` best groups, ascending. A group's score is the sum of its two largest keys.
pub fn reachable(config: &LayerConfig, keys: &Keys) -> Vec<usize> {
    let candidates = keys.sums.len();
    let (groups, size) = (config.router.n_group, candidates / config.router.n_group);
    let score = group_scores(config, keys);
    let mut best: Vec<usize> = (0..groups).collect();
    best.sort_by(|&a, &b| descending(score[a], score[b]));
    best.truncate(config.router.topk_group);
    (0..candidates).filter(|e| best.contains(&(e / size))).collect()
}

/// The sum of the two largest keys of each group; its one key when it has one.
pub(crate) fn group_scores(config: &LayerConfig, keys: &Keys) -> Vec<f64> {
    let size = keys.of_groups.len() / config.router.n_group;
    let score = |group: &[f64]| {
        let mut sorted = group.to_vec();
        sorted.sort_by(|a, b| descending(*a, *b));
        sorted.iter().take(2).sum()
    };
    keys.of_groups.chunks(size.max(1)).map(score).collect()
}

/// The larger first, NaN last.
pub(crate) fn descending(a: f64, b: f64) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (false, false) => b.partial_cmp(&a).unwrap_or(Ordering::Equal),
        (a_is_nan, b_is_nan) => a_is_nan.cmp(&b_is_nan),
    }
}
