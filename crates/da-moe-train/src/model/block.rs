//! One layer of the Transformer: attention, then the mixture of experts that its queries and keys decide about.

use super::attention::{Attended, Attention};
use super::norm::Norm;
use crate::allocation::Allocation;
use crate::tokens::Tokens;
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use da_moe::LayerConfig;
use da_moe_candle::{DaMoe, Inputs, Record};

/// `x + attention(norm x)`, then the same with the experts.
#[derive(Clone)]
pub(super) struct Block {
    attention_norm: Norm,
    attention: Attention,
    experts_norm: Norm,
    pub(super) moe: DaMoe,
    allocation: Allocation,
    /// Which one it is, counted from 0.
    index: u64,
}

impl Block {
    pub(super) fn new(
        heads: usize,
        config: &LayerConfig,
        allocation: &Allocation,
        index: u64,
        vb: VarBuilder<'_>,
    ) -> Result<Self> {
        let width = config.hidden_size;
        Ok(Self {
            attention_norm: Norm::new(width, vb.pp("attention_norm"))?,
            attention: Attention::new(width, heads, vb.pp("attention"))?,
            experts_norm: Norm::new(width, vb.pp("experts_norm"))?,
            moe: DaMoe::new(config.clone(), vb.pp("moe"))?,
            allocation: allocation.clone(),
            index,
        })
    }

    /// `x` is `[B, S, D]`; `hidden` as in [`Attention::forward`].
    pub(super) fn forward(
        &self,
        x: &Tensor,
        tokens: &Tokens,
        hidden: Option<&Tensor>,
        training: bool,
    ) -> Result<(Tensor, Record)> {
        let Attended { out, queries, keys } = self.attention.forward(&self.attention_norm.forward(x)?, hidden)?;
        let x = (x + out)?;
        let inputs = Inputs::new(&self.experts_norm.forward(&x)?);
        let inputs = match &tokens.present {
            Some(present) => inputs.with_mask(present),
            None => inputs,
        };
        let inputs = match self.allocation.decide([&queries, &keys], tokens, self.index)? {
            Some(importance) => inputs.with_importance(&importance),
            None => inputs.with_query_key(&queries, &keys),
        };
        let output = self.moe.forward(&inputs, training)?;
        Ok(((x + output.y)?, output.record))
    }
}
