//! A run on disk: one safetensors file with weights, moments, what layers carry, and everything needed to go on.

use crate::config::RunConfig;
use crate::data::Tokenizer;
use crate::error::{Result, TrainError};
use crate::header;
use crate::held::{self, Held};
use crate::identity::{Identity, Known, differences};
use crate::limits;
use crate::model::Transformer;
use crate::optimizer::AdamW;
use crate::pointer;
use crate::trainer::Trainer;
use crate::whole;
use candle_core::{Device, Tensor};
use da_moe::STATE_LEN;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::fs;
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
            tensors.push((state_name(index), Tensor::from_vec(state, count, &Device::Cpu)?));
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
    /// A file that cannot be read or is none: whose configuration is refused, or whose tensors are not those of its configuration.
    pub fn read(path: &Path) -> Result<Self> {
        // A device may never end.
        if !fs::metadata(path).map_err(TrainError::file(path))?.is_file() {
            return Err(TrainError::contents(path, "is not a file"));
        }
        let bytes = pointer::read(path).map_err(TrainError::file(path))?;
        Self::parse(&bytes).map_err(|problem| TrainError::contents(path, problem))
    }

    /// Whatever is wrong is the file's fault, and a text.
    fn parse(bytes: &[u8]) -> std::result::Result<Self, Box<dyn std::error::Error>> {
        header::check(bytes)?;
        let (_, metadata) = SafeTensors::read_metadata(bytes)?;
        let text = metadata.metadata().as_ref().and_then(|text| text.get(HEADER));
        let text = text.ok_or("is not a checkpoint of da-moe")?;
        let Header { config, step, optimizer_step, tokenizer, identity } = header::json(text)?;
        config.validate()?;
        let steps = config.schedule.steps;
        if step > steps {
            return Err(format!("is at step {step} of {steps}").into());
        }
        if optimizer_step != step {
            return Err(format!("is at step {step}, and its optimiser at step {optimizer_step}").into());
        }
        let tokenizer = Tokenizer::from_json(&tokenizer)?;
        if tokenizer.vocabulary() != config.model.vocabulary {
            let [tokens, expected] = [tokenizer.vocabulary(), config.model.vocabulary];
            return Err(format!("its tokeniser has {tokens} tokens, `model.vocabulary` is {expected}").into());
        }
        refuse_numbers(&SafeTensors::deserialize(bytes)?)?;
        let tensors = candle_core::safetensors::load_buffer(bytes, &Device::Cpu)?;
        let checkpoint = Self { config, step, tokenizer, identity, optimizer_step, tensors };
        checkpoint.refuse_other_tensors()?;
        Ok(checkpoint)
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

    /// Every tensor is one that a trainer of this configuration would have written, and none is missing.
    fn refuse_other_tensors(&self) -> std::result::Result<(), Box<dyn std::error::Error>> {
        let (_, mut known) = self.model_and_names()?;
        for name in known.clone() {
            let shape = self.tensor(&name)?.shape().clone();
            for moment in AdamW::moments(&name) {
                held::find(&self.tensors, &moment, &shape)?;
                known.insert(moment);
            }
        }
        known.insert(RARITY.into());
        known.extend((0..self.config.model.layers).map(state_name));
        match self.tensors.keys().find(|name| !known.contains(*name)) {
            Some(name) => Err(format!("has a tensor `{}` that such a run does not have", name.escape_debug()).into()),
            None => Ok(()),
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
        self.model_and_names().map(|(model, _)| model)
    }

    /// Bytes that reading one sequence with the model takes, about.
    ///
    /// # Errors
    /// What the configuration refuses.
    pub fn sequence_bytes(&self) -> Result<usize> {
        let (layer, _) = self.config.variant.layer(&self.config.model, &[])?;
        Ok(limits::sequence_bytes(&self.config.model, &layer))
    }

    /// The model, and the names of its weights.
    fn model_and_names(&self) -> Result<(Transformer, BTreeSet<String>)> {
        let held = Held::new(&self.tensors);
        let rarity = held::find(&self.tensors, RARITY, &self.config.model.vocabulary.into())?.to_vec1()?;
        let model = Transformer::new(&self.config.model, &self.config.variant, &rarity, held.builder())?;
        model.set_states(&self.states()?)?;
        Ok((model, held.asked()))
    }

    fn states(&self) -> candle_core::Result<Vec<Vec<f32>>> {
        let state = |index| held::find(&self.tensors, &state_name(index), &STATE_LEN.into())?.to_vec1();
        (0..self.config.model.layers).map(state).collect()
    }

    fn tensor(&self, name: &str) -> candle_core::Result<Tensor> {
        match self.tensors.get(name) {
            Some(tensor) => Ok(tensor.clone()),
            None => candle_core::bail!("the checkpoint has no tensor `{name}`"),
        }
    }
}

/// What layer number `index` carries.
fn state_name(index: usize) -> String {
    format!("state.{index}")
}

/// Refuses tensors of another type than training has, and numbers that it cannot have come to.
fn refuse_numbers(file: &SafeTensors<'_>) -> std::result::Result<(), String> {
    for (name, tensor) in file.iter() {
        let shown = name.escape_debug();
        if tensor.dtype() != Dtype::F32 {
            return Err(format!("tensor `{shown}` is {:?}, F32 is expected", tensor.dtype()));
        }
        let positive = name.starts_with(AdamW::SQUARE);
        let (numbers, _) = tensor.data().as_chunks();
        let wrong = |number: &f32| !number.is_finite() || (positive && *number < 0.0);
        let mut numbers = numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).enumerate();
        if let Some((index, number)) = numbers.find(|(_, number)| wrong(number)) {
            return Err(format!("tensor `{shown}` has {number} at {index}"));
        }
    }
    Ok(())
}
