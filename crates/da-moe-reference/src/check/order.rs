//! Which of two candidates must be selected before the other, and which may go either way because their keys, or a key
//! and its threshold, differ by less than the score error.

use super::bounds::exponent_error;
use crate::select::{above_threshold, group_scores, reachable};
use da_moe_core::{LayerConfig, Policy, Threshold};

/// One token's candidates.
pub(super) struct Order<'a> {
    pub config: &'a LayerConfig,
    /// The outcome's own logits.
    pub logits: &'a [f64],
    pub scores: &'a [f64],
    /// `s + b`.
    pub keys: &'a [f64],
    pub bias: Option<&'a [f64]>,
}

/// f32 error of scores, beyond what their exponents cost: sums of exponentials, divisions, approximated `exp`.
pub(super) const SCORE_ERROR: f64 = 4e-6;

impl Order<'_> {
    /// Error of a candidate's key.
    pub(super) fn key_error(&self, e: usize) -> f64 {
        // f32 scores below the smallest normal number may be flushed to 0.
        let flushed = 1e-37;
        let score = (SCORE_ERROR + 2.0 * exponent_error(self.logits)) * self.scores[e].abs();
        score + f64::from(f32::EPSILON) * self.keys[e].abs() + flushed
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
        if (self.keys[e] - threshold.of(e)).abs() <= error {
            return [Some(true), Some(false)];
        }
        [Some(above_threshold(&self.config.experts_per_token.policy, self.keys[e], e)), None]
    }

    fn key_surely_before(&self, a: usize, b: usize) -> bool {
        match (self.keys[a].is_nan(), self.keys[b].is_nan()) {
            (false, true) => true,
            (true, false) => false,
            (true, true) => a < b,
            // The same logit and bias give the same key in any arithmetic, so the tie rule holds.
            (false, false) if self.same_inputs(a, b) => a < b,
            (false, false) => self.keys[a] - self.keys[b] > self.key_error(a) + self.key_error(b),
        }
    }

    fn same_inputs(&self, a: usize, b: usize) -> bool {
        self.logits[a] == self.logits[b] && self.bias.is_none_or(|bias| bias[a] == bias[b])
    }

    /// Candidates of the best groups; where two groups' scores are nearly equal, of the one that was `used`.
    pub(super) fn reachable(&self, used: &[usize]) -> Vec<usize> {
        let certain = reachable(self.config, self.keys);
        let size = self.keys.len() / self.config.router.n_group;
        let groups = self.config.router.n_group;
        let score = group_scores(self.config, self.keys);
        let error = |group: usize| (group * size..(group + 1) * size).map(|e| self.key_error(e)).fold(0.0, f64::max);
        let near =
            |a: usize, b: usize| score[a] != score[b] && (score[a] - score[b]).abs() <= 2.0 * (error(a) + error(b));
        let is_used = |group: usize| used.iter().any(|e| e / size == group);
        let mut best: Vec<usize> = (0..groups).filter(|group| certain.iter().any(|e| e / size == *group)).collect();
        for group in (0..groups).filter(|&group| is_used(group)) {
            let replaced = best.iter().position(|&other| !is_used(other) && near(group, other));
            if let (false, Some(at)) = (best.contains(&group), replaced) {
                best[at] = group;
            }
        }
        (0..self.keys.len()).filter(|e| best.contains(&(e / size))).collect()
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
