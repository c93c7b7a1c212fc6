//! What is trained, and how: one JSON object for a run.

use crate::error::{Result, TrainError};
use crate::limits;
use crate::model_config::{ModelConfig, Schedule};
use crate::variant::Variant;
use serde::{Deserialize, Serialize};

/// A run: a model, its training, a way to allocate experts and a seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// The model's size.
    pub model: ModelConfig,
    /// Its training.
    pub schedule: Schedule,
    /// How experts are allocated.
    pub variant: Variant,
    /// First weights, order of data and masks follow from it; runs of one seed share all three.
    pub seed: u64,
}

impl RunConfig {
    /// Refuses what cannot be trained.
    ///
    /// # Errors
    /// [`TrainError::Config`] naming the field, or the layer's refusal.
    pub fn validate(&self) -> Result<()> {
        let ModelConfig { width, layers, heads, length, vocabulary, .. } = self.model;
        let sizes = [("width", width), ("layers", layers), ("heads", heads), ("length", length)];
        if let Some((field, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(TrainError::config(format!("model.{field}"), "is 0"));
        }
        if vocabulary == 0 {
            return Err(TrainError::config("model.vocabulary", "is 0; the tokeniser sets it"));
        }
        if !width.is_multiple_of(heads) {
            return Err(TrainError::config("model.heads", format!("{heads} heads do not divide a width of {width}")));
        }
        // Of a masked model a block has a start and two tokens: one of them may stand between documents, and be no word.
        let shortest = if self.model.causal { 2 } else { 3 };
        if length < shortest {
            return Err(TrainError::config("model.length", format!("is {length}, at least {shortest} are needed")));
        }
        self.schedule.validate(self.model.causal)?;
        let (layer, _) = self.variant.layer(&self.model, &[])?;
        limits::check(&self.model, &self.schedule, &layer)
    }
}
