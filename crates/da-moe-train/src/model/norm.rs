//! Root-mean-square normalisation with a learned gain.

use candle_core::{D, Result, Tensor};
use candle_nn::VarBuilder;

/// `x / sqrt(mean x² + ε) · gain`, over the last dimension.
#[derive(Clone, Debug)]
pub(super) struct Norm {
    gain: Tensor,
}

impl Norm {
    pub(super) fn new(width: usize, vb: VarBuilder<'_>) -> Result<Self> {
        Ok(Self { gain: vb.get_with_hints(width, "gain", candle_nn::init::ONE)? })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + 1e-6)?.sqrt()?;
        x.broadcast_div(&scale)?.broadcast_mul(&self.gain)
    }
}
