//! SPEC §3: `s = softmax(z)`, `sigmoid(z)` or `relu(z)` of one token, with the shares and the log-sum-exp that losses use.

use super::shares::{Whole, largest, positive, relative};
use crate::simd::{exp, fold, sigmoid, vectorized};
use da_moe_core::Scoring;

/// Scores of one token; the buffers are reused from token to token.
pub(super) struct Scores {
    values: Vec<f32>,
    shares: Vec<f32>,
    softmax: Vec<f32>,
    log_sum_exp: f32,
    whole: Whole,
}

impl Scores {
    pub fn new(scoring: Scoring, candidates: usize) -> Self {
        let zeros = || vec![0.0; candidates];
        Self {
            values: zeros(),
            shares: zeros(),
            softmax: zeros(),
            log_sum_exp: 0.0,
            whole: Whole { scoring, origin: 0.0, sum: 1.0 },
        }
    }

    pub fn compute(&mut self, logits: &[f32]) {
        let scoring = self.scoring();
        vectorized(
            #[inline(always)]
            || {
                let largest = largest(logits.iter().copied());
                for (e, z) in self.softmax.iter_mut().zip(logits) {
                    *e = exp(z - largest);
                }
                let sum = sum(&self.softmax);
                self.log_sum_exp = largest + sum.ln();
                self.softmax.iter_mut().for_each(|e| *e /= sum);
                self.whole = Whole { scoring, origin: largest, sum };
                match scoring {
                    Scoring::Softmax => return,
                    Scoring::Sigmoid => self.values.iter_mut().zip(logits).for_each(|(s, z)| *s = sigmoid(*z)),
                    Scoring::Relu => self.values.iter_mut().zip(logits).for_each(|(s, z)| *s = positive(*z)),
                }
                self.shares.iter_mut().zip(logits).for_each(|(share, z)| *share = relative(scoring, *z, largest));
                self.whole.sum = if self.whole.is_nothing() { 0.0 } else { self::sum(&self.shares) };
                let whole = self.whole;
                self.shares.iter_mut().zip(&self.values).for_each(|(share, s)| *share = whole.divide(*share, *s));
            },
        );
    }

    pub fn scoring(&self) -> Scoring {
        self.whole.scoring
    }

    /// `s[E + Z]`.
    pub fn values(&self) -> &[f32] {
        if self.scoring() == Scoring::Softmax { &self.softmax } else { &self.values }
    }

    /// `s` over its row sum: the probabilities of `top-p` and of the balance loss.
    pub fn shares(&self) -> &[f32] {
        if self.scoring() == Scoring::Softmax { &self.softmax } else { &self.shares }
    }

    /// What [`Scores::shares`] are shares of.
    pub fn whole(&self) -> Whole {
        self.whole
    }

    /// `softmax(z)`, whatever the scoring: the gradient of the log-sum-exp.
    pub fn softmax(&self) -> &[f32] {
        &self.softmax
    }

    /// `ln Σ e^z`.
    pub fn log_sum_exp(&self) -> f32 {
        self.log_sum_exp
    }
}

/// Sum in sixteen lanes, pairwise.
#[inline(always)]
fn sum(values: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let whole = values.chunks_exact(16);
    let tail: f32 = whole.remainder().iter().sum();
    for chunk in whole {
        lanes.iter_mut().zip(chunk).for_each(|(lane, value)| *lane += value);
    }
    fold(lanes) + tail
}
