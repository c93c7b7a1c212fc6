//! Text made ready for training: a tokeniser that has seen the training text only, and blocks of tokens.

use crate::data::{Blocks, DataError, Prose, Tokenizer, mask_tokens};
use crate::error::Result;
use crate::identity::{self, Identity};
use crate::model_config::ModelConfig;
use crate::random;
use crate::tokens::Tokens;
use candle_core::{Device, Tensor};

/// What all runs of one plan share.
pub struct Corpus {
    /// Learned from the training text.
    pub tokenizer: Tokenizer,
    pub(crate) train: Blocks,
    pub(crate) held_out: Blocks,
    /// `−ln` of each token's share of the training text.
    pub(crate) rarity: Vec<f32>,
    /// SHA-256 of the text.
    text: String,
}

/// A batch, and what has to be predicted from it.
pub struct Batch {
    /// What the model sees.
    pub tokens: Tokens,
    /// U32 `[N]`: positions among all tokens whose hidden states are asked.
    pub positions: Tensor,
    /// U32 `[N]`: the tokens that they should name.
    pub targets: Tensor,
}

impl Corpus {
    /// Learns a tokeniser of `vocabulary` tokens, and cuts the text into blocks of `length` tokens.
    ///
    /// # Errors
    /// Too little text for the vocabulary, or for one block of training or of held-out text.
    pub fn new(prose: &Prose, vocabulary: usize, length: usize) -> Result<Self> {
        Self::with_tokenizer(Tokenizer::train(&prose.train, vocabulary)?, prose, length)
    }

    /// The same with a tokeniser that is there already.
    ///
    /// # Errors
    /// Too little text for one block of training or of held-out text.
    pub fn with_tokenizer(tokenizer: Tokenizer, prose: &Prose, length: usize) -> Result<Self> {
        let blocks = |texts: &[String], part| {
            let documents: Vec<Vec<u32>> = texts.iter().map(|text| tokenizer.encode(text)).collect();
            Blocks::pack(&documents, length).map_err(|error| match error {
                DataError::Blocks { tokens, .. } if length > 1 => DataError::Short { part, tokens, length },
                other => other,
            })
        };
        let (train, held_out) = (blocks(&prose.train, "to train on")?, blocks(&prose.held_out, "held out")?);
        let mut counts = vec![1.0f64; tokenizer.vocabulary()];
        for &id in train.ids() {
            counts[id as usize] += 1.0;
        }
        let total: f64 = counts.iter().sum();
        let rarity = counts.iter().map(|count| -(count / total).ln() as f32).collect();
        Ok(Self { tokenizer, train, held_out, rarity, text: identity::of_prose(prose) })
    }

    /// What a run on this text, on this device, is known by.
    pub(crate) fn identity(&self, device: &Device) -> Identity {
        Identity::new(&self.text, &self.tokenizer, device)
    }

    /// Blocks of training text.
    pub fn blocks(&self) -> usize {
        self.train.count()
    }

    /// The batch of a training step.
    ///
    /// # Errors
    /// The device's.
    pub(crate) fn training(&self, model: &ModelConfig, at: Step, device: &Device) -> Result<Batch> {
        let ids = self.train.batch(at.step, at.batch, at.seed);
        self.prepare(&ids, model, at, device)
    }

    /// Batch number `index` of held-out text: the same tokens and masks for every model. `None` past the end.
    pub(crate) fn held_out(
        &self,
        model: &ModelConfig,
        index: u64,
        batch: usize,
        mask_rate: f64,
        device: &Device,
    ) -> Result<Option<Batch>> {
        let Some(ids) = self.held_out.ids().chunks(batch * model.length).nth(index as usize) else {
            return Ok(None);
        };
        let at = Step { step: index, batch, seed: random::name("held out"), mask_rate };
        self.prepare(ids, model, at, device).map(Some)
    }

    fn prepare(&self, ids: &[u32], model: &ModelConfig, at: Step, device: &Device) -> Result<Batch> {
        let key = random::bits(&[at.seed, at.step]);
        let list = |values: Vec<u32>| -> Result<Tensor> {
            let count = values.len();
            Ok(Tensor::from_vec(values, count, device)?)
        };
        if model.causal {
            // The last token of a sequence has nothing to predict.
            let positions: Vec<u32> =
                (0..ids.len()).filter(|t| (t + 1) % model.length != 0).map(|t| t as u32).collect();
            let targets = positions.iter().map(|&t| ids[t as usize + 1]).collect();
            let tokens = Tokens::new(ids, model.length, key, device)?;
            return Ok(Batch { tokens, positions: list(positions)?, targets: list(targets)? });
        }
        let masked = mask_tokens(ids, at.mask_rate, at.seed, at.step, self.tokenizer.vocabulary()).or_one(key);
        let visible = masked.ids.iter().map(|&id| id == Tokenizer::MASK).collect();
        let tokens = Tokens::new(&masked.ids, model.length, key, device)?.with_masked(visible);
        Ok(Batch { tokens, positions: list(masked.positions)?, targets: list(masked.targets)? })
    }
}

/// Which batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub step: u64,
    /// Sequences.
    pub batch: usize,
    pub seed: u64,
    pub mask_rate: f64,
}
