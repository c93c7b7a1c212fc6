//! Multi-head self-attention that shows its queries and keys: importance is read off them.

use super::normal;
use candle_core::{D, DType, Result, Tensor};
use candle_nn::VarBuilder;

/// Projections of one layer's attention.
#[derive(Clone, Debug)]
pub(super) struct Attention {
    query_key_value: Tensor,
    out: Tensor,
    heads: usize,
}

/// What attention computes for a batch.
pub(super) struct Attended {
    /// `[B, S, D]`.
    pub out: Tensor,
    /// `[B, S, H, dh]`.
    pub queries: Tensor,
    /// `[B, S, H, dh]`.
    pub keys: Tensor,
}

impl Attention {
    pub(super) fn new(width: usize, heads: usize, vb: VarBuilder<'_>) -> Result<Self> {
        Ok(Self {
            query_key_value: normal(&vb, "query_key_value", (3 * width, width), width)?,
            out: normal(&vb, "out", (width, width), width)?,
            heads,
        })
    }

    /// `hidden` is added to the scores: `[S, S]` or `[B, 1, 1, S]`, −∞ where a query must not look.
    pub(super) fn forward(&self, x: &Tensor, hidden: Option<&Tensor>) -> Result<Attended> {
        let (batch, length, width) = x.dims3()?;
        let head = width / self.heads;
        let rows = x.reshape((batch * length, width))?.matmul(&self.query_key_value.t()?)?;
        let part = |index: usize| {
            rows.narrow(1, index * width, width)?.reshape((batch, length, self.heads, head))?.contiguous()
        };
        let (queries, keys) = (part(0)?, part(1)?);
        let by_head = |tensor: &Tensor| tensor.transpose(1, 2)?.contiguous();
        let scores = (by_head(&queries)?.matmul(&by_head(&keys)?.t()?)? * (1.0 / (head as f64).sqrt()))?;
        let scores = match hidden {
            Some(hidden) => scores.broadcast_add(hidden)?,
            None => scores,
        };
        let attended = candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&by_head(&part(2)?)?)?;
        let attended = attended.transpose(1, 2)?.contiguous()?.reshape((batch * length, width))?;
        let out = attended.matmul(&self.out.t()?)?.reshape((batch, length, width))?;
        Ok(Attended { out, queries, keys })
    }
}

/// −∞ where a query would see a later key: `[S, S]`.
pub(super) fn later(length: usize, device: &candle_core::Device) -> Result<Tensor> {
    let values: Vec<f32> =
        (0..length * length).map(|i| if i % length > i / length { f32::NEG_INFINITY } else { 0.0 }).collect();
    Tensor::from_vec(values, (length, length), device)
}

/// −∞ where a key is padding: `[B, 1, 1, S]` of `present` u8 `[B, S]`.
pub(super) fn padding(present: &Tensor) -> Result<Tensor> {
    let (batch, length) = present.dims2()?;
    let zeros = Tensor::zeros((batch, length), DType::F32, present.device())?;
    let hidden = (&zeros + f64::NEG_INFINITY)?;
    present.where_cond(&zeros, &hidden)?.reshape((batch, 1, 1, length))
}
