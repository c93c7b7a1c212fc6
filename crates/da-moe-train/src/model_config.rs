//! The size of a model, and how it is trained.

use crate::error::{Result, TrainError};
use da_moe::Activation;
use serde::{Deserialize, Serialize};

/// The size of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// `V`: different tokens, set by the tokeniser.
    #[serde(default)]
    pub vocabulary: usize,
    /// `D`.
    pub width: usize,
    /// Layers, each attention and a mixture of experts.
    pub layers: usize,
    /// `H`; divides the width.
    pub heads: usize,
    /// `S`: tokens of a sequence.
    pub length: usize,
    /// `E`.
    pub experts: usize,
    /// `F`.
    pub expert_width: usize,
    /// Activation of every expert, the same for every variant, so that an expert always costs the same.
    #[serde(default)]
    pub activation: Activation,
    /// Whether tokens see only earlier ones and predict the next; else some are masked and predicted from all others.
    #[serde(default)]
    pub causal: bool,
}

/// How a model is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Sequences a step.
    pub batch: usize,
    /// Steps.
    pub steps: u64,
    /// Largest learning rate.
    pub rate: f64,
    /// Steps over which the rate rises from 0; then it falls to a tenth along a cosine.
    pub warm_up: u64,
    /// Decoupled weight decay of matrices.
    #[serde(default = "Schedule::usual_decay")]
    pub weight_decay: f64,
    /// Largest norm of all gradients together.
    #[serde(default = "Schedule::usual_clip")]
    pub clip: f64,
    /// Share of tokens that are masked; causal models mask none.
    #[serde(default = "Schedule::usual_mask_rate")]
    pub mask_rate: f64,
}

impl Schedule {
    fn usual_decay() -> f64 {
        0.01
    }

    fn usual_clip() -> f64 {
        1.0
    }

    fn usual_mask_rate() -> f64 {
        0.3
    }

    /// Refuses what nothing can be trained by.
    pub(crate) fn validate(&self, causal: bool) -> Result<()> {
        let refused = |field: &str, problem: String| Err(TrainError::config(format!("schedule.{field}"), problem));
        let Self { batch, rate, clip, mask_rate, weight_decay, .. } = *self;
        if batch == 0 {
            return refused("batch", "is 0".into());
        }
        for (field, value) in [("rate", rate), ("clip", clip)] {
            if !(value.is_finite() && value > 0.0) {
                return refused(field, format!("{value} is not a positive number"));
            }
        }
        if rate > MOST_RATE {
            return refused("rate", format!("{rate:?} is more than {MOST_RATE}"));
        }
        if !(0.0..=1.0).contains(&weight_decay) {
            return refused("weight_decay", format!("{weight_decay:?} is not between 0 and 1"));
        }
        if !(0.0..1.0).contains(&mask_rate) || (mask_rate == 0.0 && !causal) {
            return refused("mask_rate", format!("{mask_rate:?} is not between 0 and 1"));
        }
        Ok(())
    }

    /// Learning rate of step `step`, counted from 0.
    pub fn rate_at(&self, step: u64) -> f64 {
        let done = step + 1;
        if done <= self.warm_up {
            return self.rate * done as f64 / self.warm_up as f64;
        }
        let left = (self.steps.saturating_sub(self.warm_up)).max(1) as f64;
        let along = ((done - self.warm_up) as f64 / left).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * along).cos());
        self.rate * (0.1 + 0.9 * cosine)
    }
}

/// Adam moves every weight by about the rate: beyond this nothing is learned.
const MOST_RATE: f64 = 1.0;

#[cfg(test)]
mod tests {
    use super::Schedule;

    #[test]
    fn the_rate_rises_and_falls() {
        let schedule =
            Schedule { batch: 1, steps: 100, rate: 2.0, warm_up: 10, weight_decay: 0.0, clip: 1.0, mask_rate: 0.3 };
        assert_eq!(schedule.rate_at(4), 1.0);
        assert_eq!(schedule.rate_at(9), 2.0);
        assert!((schedule.rate_at(99) - 0.2).abs() < 1e-12);
        assert!((10..99).all(|step| schedule.rate_at(step + 1) < schedule.rate_at(step)));
    }
}
