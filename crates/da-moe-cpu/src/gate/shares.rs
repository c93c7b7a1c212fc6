//! SPEC §3: what part of some candidates' scores each of them has. Scores far below zero have no f32, but their ratios do:
//! everything here is relative to the largest of those scores, and never a score itself.

use crate::simd::{exp, sigmoid};
use da_moe_core::Scoring;

/// `relu(z)`, written so that NaN passes through.
#[inline(always)]
pub(super) fn positive(z: f32) -> f32 {
    if z <= 0.0 { 0.0 } else { z }
}

/// The largest logit of some candidates, −∞ of none; NaN counts as none.
#[inline(always)]
pub(super) fn largest(logits: impl Iterator<Item = f32>) -> f32 {
    logits.fold(f32::NEG_INFINITY, |largest, z| if z > largest { z } else { largest })
}

/// A score over one that is within a factor of two of the largest, `origin` being that one's logit: at most about 1, and at
/// least 1/2 for the largest itself.
#[inline(always)]
pub(super) fn relative(scoring: Scoring, z: f32, origin: f32) -> f32 {
    match scoring {
        Scoring::Softmax => exp(z - origin),
        // s = e^min(z, 0) / (1 + e^-|z|).
        Scoring::Sigmoid => exp(negative(z) - negative(origin)) / (1.0 + exp(-z.abs())),
        Scoring::Relu => positive(z) / origin,
    }
}

/// `min(z, 0)`, written so that NaN passes through.
#[inline(always)]
fn negative(z: f32) -> f32 {
    if z > 0.0 { 0.0 } else { z }
}

/// The sum of some candidates' scores, relative as [`relative`] is.
#[derive(Clone, Copy)]
pub(super) struct Whole {
    pub scoring: Scoring,
    /// The largest logit.
    pub origin: f32,
    /// Of the relative scores; 0 where every score is 0.
    pub sum: f32,
}

impl Whole {
    /// Of the `members` among candidates with these logits.
    pub fn new(scoring: Scoring, logits: &[f32], members: impl Iterator<Item = usize> + Clone) -> Self {
        let mut whole = Self { scoring, origin: largest(members.clone().map(|e| logits[e])), sum: 0.0 };
        if !whole.is_nothing() {
            whole.sum = members.map(|e| relative(scoring, logits[e], whole.origin)).sum();
        }
        whole
    }

    /// Whether the largest score is 0.
    #[inline(always)]
    pub fn is_nothing(&self) -> bool {
        if self.scoring == Scoring::Relu { self.origin <= 0.0 } else { self.origin == f32::NEG_INFINITY }
    }

    /// A member's share, `s` being its score: 0 of nothing, NaN where the score is.
    #[inline(always)]
    pub fn share(&self, z: f32, s: f32) -> f32 {
        self.divide(relative(self.scoring, z, self.origin), s)
    }

    /// As [`Whole::share`], from the score relative to the origin.
    #[inline(always)]
    pub fn divide(&self, relative: f32, s: f32) -> f32 {
        if s.is_nan() {
            s
        } else if self.sum == 0.0 {
            0.0
        } else {
            relative / self.sum
        }
    }

    /// The gradient in a member's logit from `v`, that in its share less the mean of all members' (see [`centre`]), and the
    /// share `p`.
    #[inline(always)]
    pub fn slope(&self, z: f32, p: f32, v: f32) -> f32 {
        match self.scoring {
            Scoring::Softmax => v * p,
            Scoring::Sigmoid => v * p * complement(z),
            Scoring::Relu if z > 0.0 => v / self.origin / self.sum,
            // NaN is not lost.
            Scoring::Relu => v * 0.0,
        }
    }
}

/// `1 − sigmoid(z)` without the difference.
#[inline(always)]
pub(super) fn complement(z: f32) -> f32 {
    sigmoid(-z)
}

/// `v_e − Σ_j p_j v_j` for the members of a set over which `p` sums to 1.
///
/// Everything is first taken relative to the member of largest `p`: when that one is nearly 1 its own result would
/// otherwise be the difference of two nearly equal numbers.
pub(super) fn centre(members: impl Iterator<Item = usize> + Clone, p: impl Fn(usize) -> f32, v: &mut [f32]) {
    let heaviest = members.clone().reduce(|best, e| if p(e) > p(best) { e } else { best });
    let Some(origin) = heaviest.map(|e| v[e]) else { return };
    let mean: f32 = members.clone().map(|e| p(e) * (v[e] - origin)).sum();
    members.for_each(|e| v[e] = (v[e] - origin) - mean);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_those_of_scores_without_a_number() {
        for (scoring, shift) in [
            (Scoring::Softmax, -1e4),
            (Scoring::Softmax, 0.0),
            (Scoring::Softmax, 1e4),
            (Scoring::Sigmoid, -1e4),
            (Scoring::Sigmoid, -100.0),
            (Scoring::Sigmoid, -87.5),
        ] {
            let logits = [shift + 1.0, shift, 0.5];
            let whole = Whole::new(scoring, &logits, 0..2);
            let share = |e: usize| whole.share(logits[e], 0.0);
            let larger = 1.0 / (1.0 + (-1.0f32).exp());
            assert!((share(0) - larger).abs() < 1e-3 && (share(0) + share(1) - 1.0).abs() < 1e-6, "{shift}");
        }
    }

    #[test]
    fn the_largest_of_all_logits_is_no_exception() {
        for scoring in [Scoring::Sigmoid, Scoring::Relu] {
            let logits = [3e38, 3e38, 1.0, -3e38];
            let whole = Whole::new(scoring, &logits, 0..4);
            let shares = logits.map(|z| whole.share(z, 0.0));
            assert_eq!(shares[0], shares[1]);
            assert!((shares.iter().sum::<f32>() - 1.0).abs() < 1e-6 && shares[3] == 0.0, "{shares:?}");
        }
    }
}
