//! A run on disk: one safetensors file with weights, moments, what layers carry, and everything needed to go on.

use crate::config::RunConfig;
use crate::data::Tokenizer;
use crate::error::{Result, TrainError};
use crate::identity::{Identity, Known, differences};
use crate::model::Transformer;
use crate::pointer;
use crate::trainer::Trainer;
use crate::variables::Variables;
use crate::whole;
use candle_core::{Device, Tensor};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;

/// The text beside the tensors.
#[derive(Serialize, Deserialize)]
struct Header {
    config: RunConfig,
    step: u64,
    optimizer_step: u64,
    tokenizer: String,
    /// Absent in files of versions that did not ask what a run was made of.
    #[serde(default)]
    identity: Option<Identity>,
}

/// A checkpoint that was read.
pub struct Checkpoint {
    /// What was trained.
    pub config: RunConfig,
    /// Steps taken.
    pub step: u64,
    /// The tokeniser that it was trained with.
    pub tokenizer: Tokenizer,
    identity: Option<Identity>,
    optimizer_step: u64,
    tensors: HashMap<String, Tensor>,
}

const HEADER: &str = "da-moe";
const RARITY: &str = "rarity";

impl Trainer {
    /// Writes a checkpoint: whole, or not at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, tokenizer: &Tokenizer, path: &Path) -> Result<()> {
        let (mut tensors, optimizer_step) = self.optimizer.tensors();
        for (index, state) in self.model.states()?.into_iter().enumerate() {
            let count = state.len();
            tensors.push((format!("state.{index}"), Tensor::from_vec(state, count, &Device::Cpu)?));
        }
        let rarity = self.rarity().to_vec();
        let count = rarity.len();
        tensors.push((RARITY.into(), Tensor::from_vec(rarity, count, &Device::Cpu)?));
        let tokenizer = tokenizer.to_json();
        let (config, identity) = (self.config.clone(), Some(self.identity.clone()));
        let header = Header { config, step: self.step, optimizer_step, tokenizer, identity };
        let header = serde_json::to_string(&header).map_err(|error| TrainError::contents(path, error))?;
        let text = HashMap::from([(HEADER.to_string(), header)]);
        let bytes = safetensors::serialize(tensors, Some(text)).map_err(|error| TrainError::contents(path, error))?;
        whole::replace(path, &bytes)
    }

    /// Goes on from `checkpoint`.
    ///
    /// # Errors
    /// A checkpoint of another run, by the field that differs.
    pub fn restore(&mut self, checkpoint: &Checkpoint, path: &Path) -> Result<()> {
        checkpoint.check(path, (&self.config, &self.identity))?;
        checkpoint.give(self)
    }
}

impl Checkpoint {
    /// Reads a file of [`Trainer::save`].
    ///
    /// # Errors
    /// A file that cannot be read or is none.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = pointer::read(path).map_err(TrainError::file(path))?;
        let wrong = |error: &dyn std::fmt::Display| TrainError::contents(path, error);
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|error| wrong(&error))?;
        let text = metadata.metadata().as_ref().and_then(|text| text.get(HEADER));
        let text = text.ok_or_else(|| TrainError::contents(path, "is not a checkpoint of da-moe"))?;
        let header: Header = serde_json::from_str(text).map_err(|error| wrong(&error))?;
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?;
        let tokenizer = Tokenizer::from_json(&header.tokenizer)?;
        let Header { config, step, optimizer_step, identity, .. } = header;
        Ok(Self { config, step, tokenizer, identity, optimizer_step, tensors })
    }

    /// Refuses to be gone on from by any run but its own.
    pub(crate) fn check(&self, path: &Path, here: Known<'_>) -> Result<()> {
        const REMEDY: &str = "use another folder (`--model` of train, `--work` of evaluate), or remove this one";
        let Some(identity) = &self.identity else {
            let problem = "is of an earlier version, which did not record the text that it was trained on";
            return Err(TrainError::contents(path, format!("{problem}: {REMEDY}")));
        };
        match differences((&self.config, identity), here) {
            None => Ok(()),
            Some(differs) => {
                Err(TrainError::contents(path, format!("is of a run with another configuration: {differs}; {REMEDY}")))
            }
        }
    }

    /// Weights and everything else, to a trainer of the same configuration.
    pub(crate) fn give(&self, trainer: &mut Trainer) -> Result<()> {
        trainer.optimizer.restore(|name| self.tensor(name), self.optimizer_step)?;
        trainer.model.set_states(&self.states()?)?;
        trainer.step = self.step;
        Ok(())
    }

    /// The model alone, for use without training.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn model(&self) -> Result<Transformer> {
        let variables = Variables::new(self.config.seed);
        let rarity = self.tensor(RARITY)?.to_vec1::<f32>()?;
        let builder = variables.builder(&Device::Cpu);
        let model = Transformer::new(&self.config.model, &self.config.variant, &rarity, builder)?;
        for (name, var) in variables.all() {
            var.set(&self.tensor(&name)?)?;
        }
        model.set_states(&self.states()?)?;
        Ok(model)
    }

    fn states(&self) -> candle_core::Result<Vec<Vec<f32>>> {
        (0..self.config.model.layers).map(|index| self.tensor(&format!("state.{index}"))?.to_vec1()).collect()
    }

    fn tensor(&self, name: &str) -> candle_core::Result<Tensor> {
        match self.tensors.get(name) {
            Some(tensor) => Ok(tensor.clone()),
            None => candle_core::bail!("the checkpoint has no tensor `{name}`"),
        }
    }
}
