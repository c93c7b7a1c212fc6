//! Training for classification, after pre-training.

use crate::model_config::Schedule;
use serde::{Deserialize, Serialize};

/// Fine-tuning for classification.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FineTuning {
    /// Names of labelled sets, or `glue/` and the name of a task.
    pub sets: Vec<String>,
    /// Sequences a step.
    pub batch: usize,
    /// Steps on each set.
    pub steps: u64,
    /// Largest learning rate.
    pub rate: f64,
}

impl FineTuning {
    /// The schedule of training on a set, after one of pre-training.
    pub(crate) fn schedule(&self, before: &Schedule) -> Schedule {
        let &Self { batch, steps, rate, .. } = self;
        Schedule { batch, steps, rate, warm_up: steps / 10, ..before.clone() }
    }
}
