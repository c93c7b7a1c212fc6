//! Which of two candidates must be selected before the other, and which may go either way because their keys, or a key
//! and its threshold, differ by less than the score error.

use super::bounds::exponent_error;
use crate::Keys;
use crate::select::{above_threshold, group_scores, ranked_by_logits, reachable};
use da_moe_core::{LayerConfig, Policy, Scoring, Threshold};
use std::cmp::Ordering;

/// One token's candidates.
pub(super) struct Order<'a> {
    pub config: &'a LayerConfig,
    /// The outcome's own logits.
    pub logits: &'a [f64],
    pub scores: &'a [f64],
    pub keys: &'a Keys,
    pub bias: Option<&'a [f64]>,
}

/// f32 error of scores, beyond what their exponents cost: sums of exponentials, divisions, approximated `exp`.
pub(super) const SCORE_ERROR: f64 = 4e-6;

/// f32 scores below the smallest normal number may be flushed to 0.
const FLUSHED: f64 = 1e-37;

impl Order<'_> {
    fn relative_error(&self) -> f64 {
        SCORE_ERROR + 2.0 * exponent_error(self.logits)
    }

    /// Error of a candidate's key.
    pub(super) fn key_error(&self, e: usize) -> f64 {
        let score = self.relative_error() * self.scores[e].abs();
        score + f64::from(f32::EPSILON) * self.keys.sums[e].abs() + FLUSHED
    }

    /// Whether `a` must come before `b`.
    pub(super) fn surely_before(&self, a: usize, b: usize) -> bool {
        let sides = |e| self.possible_sides(e).into_iter().flatten();
        sides(a).all(|a_is_above| {
            sides(b).all(|b_is_above| match (a_is_above, b_is_above) {
                (true, false) => true,
                (false, true) => false,
                _ => self.key_surely_before(a, b),
            })
        })
    }

    /// Above its threshold, below, or possibly both.
    fn possible_sides(&self, e: usize) -> [Option<bool>; 2] {
        let Policy::ScoreThreshold { threshold } = &self.config.experts_per_token.policy else {
            return [Some(true), None];
        };
        let error = self.key_error(e) + f64::from(f32::EPSILON) * threshold.of(e).abs();
        if (self.keys.sums[e] - threshold.of(e)).abs() <= error {
            return [Some(true), Some(false)];
        }
        [Some(above_threshold(&self.config.experts_per_token.policy, self.keys.sums[e], e)), None]
    }

    fn key_surely_before(&self, a: usize, b: usize) -> bool {
        let order = &self.keys.order;
        match (order[a].is_nan(), order[b].is_nan()) {
            (false, true) => true,
            (true, false) => false,
            (true, true) => a < b,
            // The same score and bias give the same key in any arithmetic, so the tie rule holds.
            (false, false) if self.same_inputs(a, b) => a < b,
            (false, false) if self.by_logits() => order[a] > order[b] || (order[a] == order[b] && a < b),
            (false, false) => order[a] - order[b] > self.key_error(a) + self.key_error(b),
        }
    }

    /// Logits are the outcome's own, so that there is no error in their order.
    fn by_logits(&self) -> bool {
        ranked_by_logits(self.config.router.scoring, self.bias)
    }

    fn same_inputs(&self, a: usize, b: usize) -> bool {
        let both_cut = self.config.router.scoring == Scoring::Relu && self.logits[a] <= 0.0 && self.logits[b] <= 0.0;
        let same_score = self.logits[a] == self.logits[b] || both_cut;
        same_score && self.bias.is_none_or(|bias| bias[a] == bias[b])
    }

    /// Candidates of the best groups; where two groups' scores are nearly equal, of the one that was `used`.
    pub(super) fn reachable(&self, used: &[usize]) -> Vec<usize> {
        let groups = self.groups();
        let certain = reachable(self.config, self.keys);
        let all = 0..groups.score.len();
        let is_used = |group: usize| used.iter().any(|&e| groups.of(e) == group);
        let mut best: Vec<usize> =
            all.clone().filter(|group| certain.iter().any(|&e| groups.of(e) == *group)).collect();
        for group in all.filter(|&group| is_used(group)) {
            let replaced = best.iter().position(|&other| !is_used(other) && groups.near(group, other));
            if let (false, Some(at)) = (best.contains(&group), replaced) {
                best[at] = group;
            }
        }
        (0..self.logits.len()).filter(|&e| best.contains(&groups.of(e))).collect()
    }

    /// Of the first `k_max` of these candidates those that are forbidden and not among the first `k`. NaN ranks behind them.
    pub(super) fn left_out(&self, reachable: &[usize], k_max: usize, k: usize) -> usize {
        let is_forbidden = |e: &&usize| self.bias.is_some_and(|bias| bias[**e] == f64::NEG_INFINITY);
        let is_nan = |e: &&usize| self.keys.order[**e].is_nan();
        let forbidden = reachable.iter().filter(is_forbidden).filter(|e| !is_nan(e)).count();
        let before = reachable.iter().filter(|e| !is_forbidden(e) && !is_nan(e)).count();
        let within = |places: usize| places.saturating_sub(before).min(forbidden);
        within(k_max) - within(k)
    }

    /// Candidates of groups that are among the best ones whatever the score error.
    pub(super) fn surely_reachable(&self) -> Vec<usize> {
        let groups = self.groups();
        let before = |a: usize, b: usize| match groups.score[a].partial_cmp(&groups.score[b]) {
            _ if groups.near(a, b) => true,
            Some(Ordering::Equal) | None => a < b || groups.score[b].is_nan(),
            Some(order) => order == Ordering::Greater,
        };
        let is_sure = |group: usize| {
            let rivals = (0..groups.score.len()).filter(|&other| other != group && before(other, group));
            rivals.count() < self.config.router.topk_group
        };
        (0..self.logits.len()).filter(|&e| is_sure(groups.of(e))).collect()
    }

    fn groups(&self) -> Groups {
        let size = self.logits.len() / self.config.router.n_group;
        let of_member = |e: usize| match self.by_logits() {
            true => self.relative_error() * self.keys.of_groups[e].abs() + FLUSHED,
            false => self.key_error(e),
        };
        let error = |group: usize| (group * size..(group + 1) * size).map(of_member).fold(0.0, f64::max);
        let score = group_scores(self.config, self.keys);
        Groups { size, error: (0..score.len()).map(error).collect(), score }
    }
}

/// Scores of the groups that one token's candidates are in, with their errors.
struct Groups {
    size: usize,
    score: Vec<f64>,
    error: Vec<f64>,
}

impl Groups {
    fn of(&self, candidate: usize) -> usize {
        candidate / self.size
    }

    /// Whether either may come first, which equal scores decide by their index.
    fn near(&self, a: usize, b: usize) -> bool {
        let (first, second) = (self.score[a], self.score[b]);
        first != second && (first - second).abs() <= 2.0 * (self.error[a] + self.error[b])
    }
}

/// The policy at slightly easier (`sign` −1) or harder (+1) settings: between the `k` of the two lies every `k` that
/// the score error explains.
pub(super) fn shifted(config: &LayerConfig, error: f64, sign: f64) -> LayerConfig {
    let mut config = config.clone();
    match &mut config.experts_per_token.policy {
        Policy::TopP { p } => *p += sign * error,
        Policy::ScoreThreshold { threshold: Threshold::All(c) } => *c += sign * error,
        Policy::ScoreThreshold { threshold: Threshold::Each(c) } => c.iter_mut().for_each(|c| *c += sign * error),
        _ => {}
    }
    config
}
