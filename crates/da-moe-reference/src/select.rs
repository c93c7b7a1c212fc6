//! SPEC §3: the order in which a token's candidates are selected. Keys are `s_e + b_e`, the largest first, ties to the
//! lower index, NaN last; group-limited selection removes candidates, `score-threshold` puts those above theirs first.

use da_moe_core::{LayerConfig, Policy};
use std::cmp::Ordering;

/// Every candidate that a token with these keys may get, best first.
pub fn selection_order(config: &LayerConfig, keys: &[f64]) -> Vec<usize> {
    let mut order = reachable(config, keys);
    let below = |e: usize| !above_threshold(&config.experts_per_token.policy, keys[e], e);
    // Stable, so that ties stay in index order.
    order.sort_by(|&a, &b| below(a).cmp(&below(b)).then(descending(keys[a], keys[b])));
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
pub fn reachable(config: &LayerConfig, keys: &[f64]) -> Vec<usize> {
    let (groups, size) = (config.router.n_group, keys.len() / config.router.n_group);
    let score = group_scores(config, keys);
    let mut best: Vec<usize> = (0..groups).collect();
    best.sort_by(|&a, &b| descending(score[a], score[b]));
    best.truncate(config.router.topk_group);
    (0..keys.len()).filter(|e| best.contains(&(e / size))).collect()
}

/// The sum of the two largest keys of each group; its one key when it has one.
pub(crate) fn group_scores(config: &LayerConfig, keys: &[f64]) -> Vec<f64> {
    let size = keys.len() / config.router.n_group;
    let score = |group: &[f64]| {
        let mut sorted = group.to_vec();
        sorted.sort_by(|a, b| descending(*a, *b));
        sorted.iter().take(2).sum()
    };
    keys.chunks(size.max(1)).map(score).collect()
}

/// The larger first, NaN last.
pub(crate) fn descending(a: f64, b: f64) -> Ordering {
    match (a.is_nan(), b.is_nan()) {
        (false, false) => b.partial_cmp(&a).unwrap_or(Ordering::Equal),
        (a_is_nan, b_is_nan) => a_is_nan.cmp(&b_is_nan),
    }
}
