//! SPEC §1: importance from every source, normalised per sequence. Nothing larger than a few vectors of `T` is stored.
//!
//! Masked tokens are left out before anything is computed: the remaining tokens of a sequence form a shorter sequence
//! with the same causal order, and every value is scattered back at the end.

mod attention;
mod excess;
mod normalize;
mod probabilities;

use crate::simd::exp;
use crate::views::{self, Rows, optional, output, rows};
use da_moe_core::{
    Attention, AttentionSource, Error, Heads, ImportanceArgs, ImportanceConfig, Result, Source, TensorRef,
};
use normalize::normalize;
use rayon::prelude::*;
use std::ops::Range;

/// The tokens that take part, sequence by sequence.
pub(crate) struct Sequences {
    /// Unmasked tokens of the batch, ascending.
    tokens: Vec<u32>,
    /// For each sequence its part of `tokens`, and the batch's first token of it.
    parts: Vec<(Range<usize>, usize)>,
}

impl Sequences {
    /// Refuses offsets that do not run from 0 to `tokens` without falling.
    pub fn new(
        op: &'static str,
        cu_seqlens: &Option<TensorRef<'_, 1>>,
        mask: Option<&[u8]>,
        tokens: usize,
    ) -> Result<Self> {
        let whole = [0, tokens as i32];
        let bounds = optional::<i32>(op, "cu_seqlens", cu_seqlens)?.unwrap_or(&whole);
        views::check_offsets(op, "cu_seqlens", bounds, tokens)?;
        let mut kept = Vec::with_capacity(tokens);
        let parts = bounds
            .windows(2)
            .map(|pair| {
                let (first, end) = (pair[0] as usize, pair[1] as usize);
                let start = kept.len();
                kept.extend((first..end).filter(|&t| mask.is_none_or(|mask| mask[t] != 0)).map(|t| t as u32));
                (start..kept.len(), first)
            })
            .collect();
        Ok(Self { tokens: kept, parts })
    }
}

pub(crate) fn forward(args: ImportanceArgs<'_>) -> Result<()> {
    args.check()?;
    let op = "importance";
    let tokens = args.logits.shape()[0];
    let out = output::<f32, 1>(op, "importance", args.importance)?;
    let Some(config) = args.config else {
        out.fill(0.0);
        return Ok(());
    };
    let mask = optional::<u8>(op, "mask", &args.mask)?;
    let sequences = Sequences::new(op, &args.cu_seqlens, mask, tokens)?;
    let inputs = Measure {
        config,
        sequences: &sequences,
        attention: args.attention,
        external: optional(op, "importance", &args.external)?,
        token_ids: optional(op, "token_ids", &args.token_ids)?,
        token_frequency: optional(op, "token_frequency", &args.token_frequency)?,
        logits: rows(op, "logits", &args.logits)?,
        experts: args.experts,
    };
    let scratch = views::scratch(op, args.scratch, scratch_len(tokens))?;
    let kept = sequences.tokens.len();
    let (part, heads) = scratch.split_at_mut(tokens);
    // Everything below works on the unmasked tokens alone, packed at the front.
    match &config.source {
        Source::Mix(parts) => {
            out[..kept].fill(0.0);
            for summand in parts {
                inputs.measure(&summand.source, &mut part[..kept], heads)?;
                normalize(&summand.normalize, &sequences, &mut part[..kept]);
                out[..kept].iter_mut().zip(&*part).for_each(|(sum, value)| *sum += summand.weight as f32 * value);
            }
        }
        source => inputs.measure(source, &mut out[..kept], heads)?,
    }
    let state = output::<f32, 1>(op, "state", args.state)?;
    normalize::with_state(&config.normalize, &sequences, &mut out[..kept], state, args.training);
    scatter(&sequences.tokens, out);
    Ok(())
}

/// f32 elements that a call wants: a part of a mixture, and two values more a token for its heads.
pub(crate) fn scratch_len(tokens: usize) -> usize {
    tokens.saturating_mul(3)
}

/// Moves packed values to their tokens, from the end so that none is overwritten before it moved; the rest is 0.
fn scatter(tokens: &[u32], values: &mut [f32]) {
    let mut next = values.len();
    for (packed, &token) in tokens.iter().enumerate().rev() {
        let value = values[packed];
        values[token as usize + 1..next].fill(0.0);
        values[token as usize] = value;
        next = token as usize;
    }
    values[..next].fill(0.0);
}

/// Importance that is NaN or negative counts as 0.
#[inline(always)]
pub(crate) fn sane(value: f32) -> f32 {
    if value > 0.0 { value } else { 0.0 }
}

/// Everything that a source may read.
struct Measure<'a> {
    config: &'a ImportanceConfig,
    sequences: &'a Sequences,
    attention: Option<Attention<'a>>,
    external: Option<&'a [f32]>,
    token_ids: Option<&'a [i32]>,
    token_frequency: Option<&'a [f32]>,
    logits: Rows<'a, f32>,
    experts: usize,
}

impl Measure<'_> {
    /// Writes one value for each unmasked token. `scratch` has room for two values a token.
    fn measure(&self, source: &Source, out: &mut [f32], scratch: &mut [f32]) -> Result<()> {
        let missing = |argument| Error::Missing {
            op: "importance",
            argument,
            why: format!("the importance source is `{}`", source.name()),
        };
        match source {
            Source::Attention { measure, heads, scale } => match self.attention.as_ref() {
                None => return Err(missing("q and k, or attn_probs")),
                Some(Attention::QueryKey { q, k, lse }) => {
                    let spec = attention::Spec { measure: *measure, heads: *heads, causal: self.config.causal };
                    attention::query_key(spec, *scale, q, k, lse, self.sequences, out, scratch)?;
                }
                Some(Attention::Probabilities(p)) => {
                    let spec = attention::Spec { measure: *measure, heads: *heads, causal: self.config.causal };
                    probabilities::measure(spec, p, self.sequences, out, scratch)?;
                }
            },
            Source::External => {
                let values = self.external.ok_or_else(|| missing("importance"))?;
                self.each(out, |t| values[t]);
            }
            Source::TokenFrequency => {
                let ids = self.token_ids.ok_or_else(|| missing("token_ids"))?;
                let table = self.token_frequency.ok_or_else(|| missing("token_frequency"))?;
                let seen = |t: usize| self.sequences.tokens.binary_search(&(t as u32)).is_ok();
                check_ids(ids, seen, table.len())?;
                self.each(out, |t| table[ids[t] as usize]);
            }
            Source::RouterEntropy => {
                let scale = if self.experts > 1 { 1.0 / (self.experts as f32).ln() } else { 0.0 };
                self.each(out, |t| scale * entropy(self.logits.row(t)));
            }
            Source::Mix(_) => {
                let problem = "a mix cannot contain a mix".into();
                return Err(Error::Config { field: "importance.parts".into(), problem });
            }
        }
        out.iter_mut().for_each(|value| *value = sane(*value));
        Ok(())
    }

    fn each(&self, out: &mut [f32], value: impl Fn(usize) -> f32 + Sync) {
        out.par_iter_mut()
            .with_min_len(64)
            .zip(&self.sequences.tokens)
            .for_each(|(out, &token)| *out = value(token as usize));
    }
}

/// `H(softmax z)` in nats: the importance source `router-entropy`.
fn entropy(logits: &[f32]) -> f32 {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |largest, &z| if z > largest { z } else { largest });
    let (mut total, mut weighted) = (0.0f64, 0.0f64);
    for &z in logits {
        let e = f64::from(exp(z - largest));
        total += e;
        // 0 · −∞ is 0 here: a candidate of no probability adds no entropy.
        weighted += if e == 0.0 { 0.0 } else { e * f64::from(z - largest) };
    }
    (total.ln() - weighted / total) as f32
}

/// Refuses ids outside the table (SPEC §7) of tokens that are looked up; padding may have any.
pub(crate) fn check_ids(ids: &[i32], seen: impl Fn(usize) -> bool, vocabulary: usize) -> Result<()> {
    let outside = |id: i32| usize::try_from(id).map_or(true, |id| id >= vocabulary);
    match (0..ids.len()).find(|&t| outside(ids[t]) && seen(t)) {
        None => Ok(()),
        Some(t) => {
            let problem = format!("token {t} has id {}, the table has {vocabulary} entries", ids[t]);
            Err(Error::Value { op: "importance", argument: "token_ids", problem })
        }
    }
}

/// Refuses a probability matrix that is smaller than a sequence.
pub(crate) fn check_side(p: &TensorRef<'_, 4>, cu_seqlens: &Option<TensorRef<'_, 1>>, tokens: usize) -> Result<()> {
    let whole = [0, tokens as i32];
    let bounds = optional::<i32>("importance", "cu_seqlens", cu_seqlens)?.unwrap_or(&whole);
    let longest = bounds.windows(2).map(|pair| (pair[1] - pair[0]) as usize).max().unwrap_or(0);
    let side = p.shape()[3];
    if longest <= side {
        return Ok(());
    }
    let problem = format!("{side} positions a side, but the longest sequence has {longest}");
    Err(Error::Value { op: "importance", argument: "attn_probs", problem })
}

/// Reduces one head's packed values into the result: the mean divides at the last head.
fn reduce_head(heads: Heads, head: usize, count: usize, values: &[f32], out: &mut [f32]) {
    for (out, &value) in out.iter_mut().zip(values) {
        let value = sane(value);
        *out = match heads {
            _ if head == 0 => value,
            Heads::Mean => *out + value,
            Heads::Max => out.max(value),
        };
        if heads == Heads::Mean && head + 1 == count {
            *out /= count as f32;
        }
    }
}

/// `received-mean` divides by the queries that may see position `j` of `n`.
fn queries_of(causal: bool, j: usize, n: usize) -> f32 {
    if causal { (n - j) as f32 } else { n as f32 }
}

/// Whether a source needs every row's log-sum-exp before its own reduction can start.
fn needs_lse_first(measure: AttentionSource) -> bool {
    measure.is_received() || measure == AttentionSource::GivenSelf
}

/// All vectors of a rank-3 view: `[T, heads, width]`.
#[derive(Clone, Copy)]
struct HeadRows<'a, S> {
    data: &'a [S],
    strides: [usize; 2],
    width: usize,
}

impl<'a, S: da_moe_core::Storage> HeadRows<'a, S> {
    fn new(argument: &'static str, view: &TensorRef<'a, 3>) -> Result<Self> {
        let data = view.host_elements("importance", argument)?;
        let [token, head, _] = view.strides();
        Ok(Self { data, strides: [token, head], width: view.shape()[2] })
    }

    fn row(&self, token: usize, head: usize) -> &'a [S] {
        &self.data[token * self.strides[0] + head * self.strides[1]..][..self.width]
    }
}

/// The caller's log-sum-exps, one row a head.
fn lse_rows<'a>(lse: &Option<TensorRef<'a, 2>>) -> Result<Option<Rows<'a, f32>>> {
    lse.as_ref().map(|lse| rows("importance", "lse", lse)).transpose()
}

#[cfg(test)]
mod tests {
    use super::scatter;

    #[test]
    fn packed_values_reach_their_tokens() {
        let mut values = [1.0, 2.0, 3.0, f32::NAN, f32::NAN, f32::NAN];
        scatter(&[1, 2, 4], &mut values);
        assert_eq!(values, [0.0, 1.0, 2.0, 0.0, 3.0, 0.0]);
        let mut none = [f32::NAN; 3];
        scatter(&[], &mut none);
        assert_eq!(none, [0.0; 3]);
    }
}
