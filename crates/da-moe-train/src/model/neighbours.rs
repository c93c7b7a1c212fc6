//! What a token's embedding sees of the tokens beside it, before any attention.
//!
//! Attention alone learns only slowly where a masked token's neighbours are, and until then a small model knows no more than
//! how frequent tokens are. Two learned gains spare it that.

use candle_core::{Result, Tensor};
use candle_nn::{Init, VarBuilder};

/// `x_t + before ∘ x_{t−1} + after ∘ x_{t+1}`; a causal model has no `after`.
#[derive(Clone, Debug)]
pub(super) struct Neighbours {
    before: Tensor,
    after: Option<Tensor>,
}

impl Neighbours {
    pub(super) fn new(width: usize, causal: bool, vb: VarBuilder<'_>) -> Result<Self> {
        let gain = |name| vb.get_with_hints(width, name, Init::Const(0.5));
        Ok(Self { before: gain("before")?, after: if causal { None } else { Some(gain("after")?) } })
    }

    /// `x` is `[B, S, D]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let length = x.dim(1)?;
        let before = x.pad_with_zeros(1, 1, 0)?.narrow(1, 0, length)?;
        let seen = (x + before.broadcast_mul(&self.before)?)?;
        match &self.after {
            Some(gain) => seen + x.pad_with_zeros(1, 0, 1)?.narrow(1, 1, length)?.broadcast_mul(gain)?,
            None => Ok(seen),
        }
    }
}
