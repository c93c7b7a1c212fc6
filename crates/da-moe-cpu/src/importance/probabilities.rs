//! Importance from an attention matrix `[B, H, S, S]` that the caller has anyway.

use super::attention::Spec;
use super::{Sequences, queries_of, reduce_head};
use crate::views::by_storage;
use da_moe_core::{AttentionSource, Error, Result, Storage, TensorRef};
use rayon::prelude::*;
use std::ops::Range;

/// Keys that one task takes under the received sources: one cache line of values.
const KEYS: usize = 64;

pub(super) fn measure(
    spec: Spec,
    p: &TensorRef<'_, 4>,
    sequences: &Sequences,
    out: &mut [f32],
    scratch: &mut [f32],
) -> Result<()> {
    by_storage!("importance", "attn_probs", p.dtype(), S => run::<S>(spec, p, sequences, out, scratch))
}

fn run<S: Storage>(
    spec: Spec,
    p: &TensorRef<'_, 4>,
    sequences: &Sequences,
    out: &mut [f32],
    scratch: &mut [f32],
) -> Result<()> {
    let [_, heads, _, side] = p.shape();
    let [outer, middle, inner, _] = p.strides();
    let data: &[S] = p.host_elements("importance", "attn_probs")?;
    let values = &mut scratch[..out.len()];
    for head in 0..heads {
        for (index, (part, first)) in sequences.parts.iter().enumerate() {
            let positions: Vec<usize> =
                sequences.tokens[part.clone()].iter().map(|&token| token as usize - first).collect();
            if positions.last().is_some_and(|&last| last >= side) {
                let problem = format!("{side} positions a side, but sequence {index} has more");
                return Err(Error::Value { op: "importance", argument: "attn_probs", problem });
            }
            let matrix = Matrix {
                spec,
                data: if positions.is_empty() { data } else { &data[index * outer + head * middle..] },
                stride: inner,
                positions: &positions,
            };
            matrix.measure(&mut values[part.clone()]);
        }
        reduce_head(spec.heads, head, heads, values, out);
    }
    Ok(())
}

/// One head of one sequence, at its unmasked positions.
struct Matrix<'a, S> {
    spec: Spec,
    data: &'a [S],
    stride: usize,
    positions: &'a [usize],
}

impl<S: Storage> Matrix<'_, S> {
    /// `P[i, j]` by index among the unmasked positions; NaN counts as 0.
    #[inline(always)]
    fn at(&self, i: usize, j: usize) -> f32 {
        let p = self.data[self.positions[i] * self.stride + self.positions[j]].to_f32();
        if p.is_nan() { 0.0 } else { p }
    }

    fn measure(&self, values: &mut [f32]) {
        if self.spec.measure.is_received() {
            values.par_chunks_mut(KEYS).enumerate().for_each(|(chunk, values)| {
                let keys = chunk * KEYS..chunk * KEYS + values.len();
                self.received(keys, values);
            });
        } else {
            values.par_iter_mut().enumerate().for_each(|(i, value)| *value = self.given(i));
        }
    }

    fn received(&self, keys: Range<usize>, values: &mut [f32]) {
        let n = self.positions.len();
        values.fill(0.0);
        for i in if self.spec.causal { keys.start } else { 0 }..n {
            let seen = if self.spec.causal { keys.end.min(i + 1) } else { keys.end };
            for (value, j) in values.iter_mut().zip(keys.start..seen) {
                let p = self.at(i, j);
                *value = if self.spec.measure == AttentionSource::ReceivedMax { value.max(p) } else { *value + p };
            }
        }
        if self.spec.measure == AttentionSource::ReceivedMean {
            values.iter_mut().zip(keys).for_each(|(value, j)| *value /= queries_of(self.spec.causal, j, n));
        }
    }

    fn given(&self, i: usize) -> f32 {
        let visible = if self.spec.causal { i + 1 } else { self.positions.len() };
        match self.spec.measure {
            AttentionSource::GivenSelf => self.at(i, i),
            AttentionSource::GivenPeak => (0..visible).map(|j| self.at(i, j)).fold(0.0, f32::max),
            _ if visible <= 1 => 0.0,
            _ => {
                // −Σ P ln P, with 0 ln 0 = 0.
                let term = |p: f32| if p > 0.0 { -f64::from(p) * f64::from(p).ln() } else { 0.0 };
                let entropy: f64 = (0..visible).map(|j| term(self.at(i, j))).sum();
                (entropy / (visible as f64).ln()) as f32
            }
        }
    }
}
