//! What a trained model makes of a text: how important each of its tokens is, and which experts it got.

use crate::checkpoint::Checkpoint;
use crate::data::Tokenizer;
use crate::error::{Result, TrainError};
use crate::model::Transformer;
use crate::tokens::Tokens;
use crate::trainer::Trainer;
use candle_core::Device;

/// A text's tokens as a model sees them.
#[derive(Clone, Debug, PartialEq)]
pub struct Explained {
    /// In their order.
    pub pieces: Vec<Piece>,
}

/// One token.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// Its text.
    pub text: String,
    /// What it was given in each layer, from the first.
    pub layers: Vec<Given>,
}

/// What a layer gave to a token.
#[derive(Clone, Debug, PartialEq)]
pub struct Given {
    /// Importance as the layer's policy read it.
    pub importance: f32,
    /// `k`: number of experts.
    pub k: usize,
    /// Experts with their weights, the largest first.
    pub experts: Vec<(usize, f32)>,
}

impl Piece {
    /// Mean over layers.
    pub fn importance(&self) -> f32 {
        self.layers.iter().map(|given| given.importance).sum::<f32>() / self.layers.len().max(1) as f32
    }

    /// Mean over layers.
    pub fn mean_k(&self) -> f64 {
        self.layers.iter().map(|given| given.k as f64).sum::<f64>() / self.layers.len().max(1) as f64
    }
}

/// Reads a text with a trained model, in sequences of the length that it was trained with; nothing is masked, and everything
/// carried between steps is frozen.
///
/// # Errors
/// A text without tokens, or a checkpoint that has no such model.
pub fn explain(checkpoint: &Checkpoint, text: &str) -> Result<Explained> {
    let length = checkpoint.config.model.length;
    read(&checkpoint.model()?, &checkpoint.tokenizer, length, &Device::Cpu, text)
}

impl Trainer {
    /// The same with the model as it has been trained so far.
    ///
    /// # Errors
    /// A text without tokens, or the device's refusal.
    pub fn explain(&self, text: &str) -> Result<Explained> {
        read(&self.model, self.tokenizer(), self.config.model.length, self.device(), text)
    }
}

fn read(model: &Transformer, tokenizer: &Tokenizer, length: usize, device: &Device, text: &str) -> Result<Explained> {
    let ids = tokenizer.encode(text);
    if ids.is_empty() {
        return Err(TrainError::config("text", "has no tokens"));
    }
    let mut pieces = Vec::with_capacity(ids.len());
    for (index, part) in ids.chunks(length - 1).enumerate() {
        let mut sequence = vec![Tokenizer::START];
        sequence.extend(part);
        sequence.resize(length, Tokenizer::PAD);
        let present = (0..length).map(|t| t <= part.len()).collect();
        let tokens = Tokens::new(&sequence, length, index as u64, device)?.with_present(present)?;
        let records = model.forward(&tokens, false)?.records;
        let first = pieces.len();
        pieces.extend(part.iter().map(|&id| Piece { text: tokenizer.token(id), layers: Vec::new() }));
        for record in records {
            let (importance, k) = (record.importance()?, record.experts_per_token()?);
            let (experts, weights) = (record.experts()?, record.weights()?);
            let slots = experts.len() / length;
            for (at, piece) in pieces[first..].iter_mut().enumerate() {
                // The start of the sequence is no token of the text.
                let t = at + 1;
                let row = t * slots..(t + 1) * slots;
                let chosen = experts[row.clone()].iter().zip(&weights[row]).filter(|(expert, _)| **expert >= 0);
                piece.layers.push(Given {
                    importance: importance[t],
                    k: k[t].max(0) as usize,
                    experts: chosen.map(|(&expert, &weight)| (expert as usize, weight)).collect(),
                });
            }
        }
    }
    Ok(Explained { pieces })
}
