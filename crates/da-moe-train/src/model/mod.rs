//! A small Transformer, bidirectional or causal, whose feed-forward blocks are mixtures of experts.

mod attention;
mod block;
mod neighbours;
mod norm;

use crate::model_config::ModelConfig;
use crate::tokens::Tokens;
use crate::variant::Variant;
use block::Block;
use candle_core::{Device, Result, Shape, Tensor};
use candle_nn::{Init, VarBuilder};
use da_moe_candle::Record;
use neighbours::Neighbours;
use norm::Norm;

/// Token and position embeddings that see their neighbours, blocks, a norm; the embedding serves as the output matrix too.
#[derive(Clone)]
pub struct Transformer {
    embedding: Tensor,
    positions: Tensor,
    neighbours: Neighbours,
    blocks: Vec<Block>,
    norm: Norm,
    /// What hides later tokens, where the model is causal.
    later: Option<Tensor>,
}

/// The outcome of a forward pass.
pub struct Pass {
    /// `[B, S, D]`, after the last norm.
    pub hidden: Tensor,
    /// What each layer decided, from the first.
    pub records: Vec<Record>,
}

impl Transformer {
    /// A model of this size whose experts are allocated as `variant` says, with variables from `vb`. `rarity[V]`, larger for
    /// rarer tokens, is read by the signal `frequency` alone.
    ///
    /// # Errors
    /// What the variant or the engine refuses.
    pub fn new(config: &ModelConfig, variant: &Variant, rarity: &[f32], vb: VarBuilder<'_>) -> crate::Result<Self> {
        let device: Device = vb.device().clone();
        let (layer, allocation) = variant.layer(config, rarity)?;
        let blocks = (0..config.layers as u64)
            .map(|index| Block::new(config.heads, &layer, &allocation, index, vb.pp(format!("blocks.{index}"))))
            .collect::<Result<_>>()?;
        Ok(Self {
            embedding: normal(&vb, "embedding", (config.vocabulary, config.width), config.width)?,
            positions: normal(&vb, "positions", (config.length, config.width), config.width)?,
            neighbours: Neighbours::new(config.width, config.causal, vb.pp("neighbours"))?,
            blocks,
            norm: Norm::new(config.width, vb.pp("norm"))?,
            later: config.causal.then(|| attention::later(config.length, &device)).transpose()?,
        })
    }

    /// Hidden states of every token. `training` moves what the layers carry between steps.
    ///
    /// # Errors
    /// More tokens a sequence than positions, ids past the vocabulary, or what a layer refuses.
    pub fn forward(&self, tokens: &Tokens, training: bool) -> Result<Pass> {
        let length = tokens.ids.dim(1)?;
        let x = self.embedding.index_select(&tokens.ids.flatten_all()?, 0)?;
        let x = x.reshape((tokens.ids.dim(0)?, length, self.embedding.dim(1)?))?;
        let mut x = self.neighbours.forward(&x)?.broadcast_add(&self.positions.narrow(0, 0, length)?)?;
        let hidden = match (&self.later, &tokens.present) {
            (Some(later), _) => Some(later.narrow(0, 0, length)?.narrow(1, 0, length)?),
            (None, Some(present)) => Some(attention::padding(present)?),
            (None, None) => None,
        };
        let mut records = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let (next, record) = block.forward(&x, tokens, hidden.as_ref(), training)?;
            x = next;
            records.push(record);
        }
        Ok(Pass { hidden: self.norm.forward(&x)?, records })
    }

    /// Logits `[N, V]` of hidden rows `[N, D]`.
    ///
    /// # Errors
    /// Rows of another width.
    pub fn logits(&self, rows: &Tensor) -> Result<Tensor> {
        rows.matmul(&self.embedding.t()?)
    }

    /// What every layer carries between steps, from the first; part of a checkpoint.
    ///
    /// # Errors
    /// The device's.
    pub fn states(&self) -> Result<Vec<Vec<f32>>> {
        self.blocks.iter().map(|block| block.moe.state()).collect()
    }

    /// Takes up what [`Transformer::states`] gave.
    ///
    /// # Errors
    /// States of another number of layers, or of another length.
    pub fn set_states(&self, states: &[Vec<f32>]) -> Result<()> {
        if states.len() != self.blocks.len() {
            candle_core::bail!("states of {} layers, the model has {}", states.len(), self.blocks.len());
        }
        self.blocks.iter().zip(states).try_for_each(|(block, state)| block.moe.set_state(state))
    }
}

/// A variable with deviation `1 / sqrt(fan in)`.
fn normal(vb: &VarBuilder<'_>, name: &str, shape: impl Into<Shape>, fan_in: usize) -> Result<Tensor> {
    vb.get_with_hints(shape, name, Init::Randn { mean: 0.0, stdev: 1.0 / (fan_in as f64).sqrt() })
}
