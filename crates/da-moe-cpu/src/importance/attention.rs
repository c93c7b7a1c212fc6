//! Importance straight from queries and keys: tiles of `S = scale · Q Kᵀ` are formed, exponentiated and reduced in cache,
//! head by head. Memory beyond the tiles is one vector of log-sum-exps and one of values.

use super::excess::Excess;
use super::{HeadRows, Sequences, lse_rows, needs_lse_first, queries_of, reduce_head};
use crate::experts::take;
use crate::gemm::{Operand, multiply};
use crate::scratch;
use crate::simd::{exp, vectorized, widen};
use crate::views::by_storage;
use da_moe_core::{AttentionSource, Heads, Result, Storage, TensorRef};
use rayon::prelude::*;
use std::ops::Range;

/// Queries and keys of one tile.
const TILE: usize = 128;

/// Which numbers are asked for.
#[derive(Clone, Copy)]
pub(super) struct Spec {
    pub measure: AttentionSource,
    pub heads: Heads,
    pub causal: bool,
}

#[allow(clippy::too_many_arguments)]
pub(super) fn query_key(
    spec: Spec,
    scale: Option<f64>,
    q: &TensorRef<'_, 3>,
    k: &TensorRef<'_, 3>,
    lse: &Option<TensorRef<'_, 2>>,
    sequences: &Sequences,
    out: &mut [f32],
    scratch: &mut [f32],
) -> Result<()> {
    let ([_, heads, width], [_, key_heads, _]) = (q.shape(), k.shape());
    let scale = scale.unwrap_or(1.0 / (width as f64).sqrt()) as f32;
    let (sums, values) = scratch.split_at_mut(scratch.len() / 2);
    let (sums, values) = (&mut sums[..out.len()], &mut values[..out.len()]);
    let given = lse_rows(lse)?;
    by_storage!("importance", "q", q.dtype(), S => {
        let (q, k) = (HeadRows::<S>::new("q", q)?, HeadRows::<S>::new("k", k)?);
        for head in 0..heads {
            let excess = given.is_some().then(Excess::default);
            let (key_head, excess) = (head / (heads / key_heads), excess.as_ref());
            let tiles = Tiles { spec, scale, q, k, head, key_head, sequences, excess };
            if let Some(given) = &given {
                let row = given.row(head);
                sums.iter_mut().zip(&sequences.tokens).for_each(|(sum, &token)| *sum = row[token as usize]);
            } else if needs_lse_first(spec.measure) {
                tiles.over_queries(sums, false, |query, state| query.log_sum_exp(state));
            }
            let sums = &*sums;
            if spec.measure.is_received() {
                tiles.received(sums, values);
            } else if spec.measure == AttentionSource::GivenSelf {
                tiles.own(sums, values);
            } else {
                let known = given.is_some().then_some(sums);
                tiles.over_queries(values, known.is_some(), |query, state| {
                    if let (Some(excess), Some(lse)) = (excess, known) {
                        excess.see(query.packed, state.largest, lse[query.packed]);
                    }
                    query.given(spec.measure, known, state)
                });
            }
            excess.map_or(Ok(()), |excess| excess.check(head, &sequences.tokens))?;
            reduce_head(spec.heads, head, heads, values, out);
        }
        Ok(())
    })
}

/// One head's tiles.
#[derive(Clone, Copy)]
struct Tiles<'a, S> {
    spec: Spec,
    scale: f32,
    q: HeadRows<'a, S>,
    k: HeadRows<'a, S>,
    head: usize,
    key_head: usize,
    sequences: &'a Sequences,
    /// Where the log-sum-exps are the caller's.
    excess: Option<&'a Excess>,
}

/// What is known of one query after its keys were seen once: `Σ e^{s−m}`, `Σ e^{s−m} s` and `m`.
#[derive(Clone, Copy)]
struct Online {
    largest: f32,
    sum: f32,
    weighted: f32,
}

/// One query's place: its packed index, and how many keys it sees.
#[derive(Clone, Copy)]
struct Query {
    packed: usize,
    visible: usize,
}

impl Query {
    fn log_sum_exp(self, state: Online) -> f32 {
        state.largest + state.sum.ln()
    }

    fn given(self, measure: AttentionSource, known: Option<&[f32]>, state: Online) -> f32 {
        let lse = known.map_or_else(|| self.log_sum_exp(state), |lse| lse[self.packed]);
        // What was summed against the row's own largest score, against `lse`.
        let shift = exp(state.largest - lse);
        match measure {
            AttentionSource::GivenPeak => shift,
            _ if self.visible <= 1 => 0.0,
            // Mathematically not negative; rounding of a peaked row must not make it so.
            _ => ((lse - shift * state.weighted) / (self.visible as f32).ln()).max(0.0),
        }
    }
}

impl<S: Storage> Tiles<'_, S> {
    /// Blocks of packed positions, none across a sequence's end, each with its part of `values`.
    fn blocks<'v>(&self, mut values: &'v mut [f32]) -> Vec<(Range<usize>, Range<usize>, &'v mut [f32])> {
        let mut blocks = Vec::new();
        for (part, _) in &self.sequences.parts {
            for start in part.clone().step_by(TILE) {
                let block = start..part.end.min(start + TILE);
                let values = take(&mut values, block.len());
                blocks.push((part.clone(), block, values));
            }
        }
        blocks
    }

    /// Widens the queries (times `scale`) or keys of a block.
    fn load(&self, from: HeadRows<'_, S>, head: usize, block: Range<usize>, factor: f32, to: &mut [f32]) {
        vectorized(
            #[inline(always)]
            || {
                for (&token, to) in self.sequences.tokens[block].iter().zip(to.chunks_exact_mut(from.width)) {
                    widen(from.row(token as usize, head), to);
                    to.iter_mut().for_each(|value| *value *= factor);
                }
            },
        );
    }

    /// For each query, one pass over its keys; `finish` turns what was seen into its value. Where the log-sum-exp is
    /// `known`, NaN scores are left out, as probabilities that count as 0; otherwise they make it NaN.
    fn over_queries(&self, values: &mut [f32], known: bool, finish: impl Fn(Query, Online) -> f32 + Sync) {
        let width = self.q.width;
        self.blocks(values).into_par_iter().with_max_len(1).for_each(|(sequence, queries, values)| {
            scratch::with([TILE * width, TILE * width, TILE * TILE], |[q, k, s]| {
                self.load(self.q, self.head, queries.clone(), self.scale, q);
                let mut states = [Online { largest: f32::NEG_INFINITY, sum: 0.0, weighted: 0.0 }; TILE];
                let end = if self.spec.causal { queries.end } else { sequence.end };
                for start in (sequence.start..end).step_by(TILE) {
                    let keys = start..end.min(start + TILE);
                    self.load(self.k, self.key_head, keys.clone(), 1.0, k);
                    self.scores(q, queries.len(), k, keys.len(), s);
                    for (i, state) in states[..queries.len()].iter_mut().enumerate() {
                        let visible = self.visible_keys(queries.start + i, &keys);
                        vectorized(
                            #[inline(always)]
                            || state.absorb(&s[i * TILE..][..visible], known),
                        );
                    }
                }
                for (i, value) in values.iter_mut().enumerate() {
                    let packed = queries.start + i;
                    let visible = if self.spec.causal { packed + 1 } else { sequence.end } - sequence.start;
                    *value = finish(Query { packed, visible }, states[i]);
                }
            });
        });
    }

    /// For each key, a reduction over the queries that see it.
    fn received(&self, lse: &[f32], values: &mut [f32]) {
        let width = self.q.width;
        self.blocks(values).into_par_iter().with_max_len(1).for_each(|(sequence, keys, values)| {
            scratch::with([TILE * width, TILE * width, TILE * TILE], |[q, k, s]| {
                self.load(self.k, self.key_head, keys.clone(), 1.0, k);
                values.fill(0.0);
                // Under a causal mask no query before the block's first key sees any of it.
                let first = if self.spec.causal { keys.start } else { sequence.start };
                for start in (first..sequence.end).step_by(TILE) {
                    let queries = start..sequence.end.min(start + TILE);
                    self.load(self.q, self.head, queries.clone(), self.scale, q);
                    self.scores(q, queries.len(), k, keys.len(), s);
                    for i in 0..queries.len() {
                        let visible = self.visible_keys(queries.start + i, &keys);
                        let (row, lse) = (&s[i * TILE..][..visible], lse[queries.start + i]);
                        vectorized(
                            #[inline(always)]
                            || absorb_probabilities(self.spec.measure, row, lse, values),
                        );
                        if let Some(excess) = self.excess {
                            let largest =
                                row.iter().fold(f32::NEG_INFINITY, |most, &s| if s > most { s } else { most });
                            excess.see(queries.start + i, largest, lse);
                        }
                    }
                }
                if self.spec.measure == AttentionSource::ReceivedMean {
                    for (value, j) in values.iter_mut().zip(keys.start - sequence.start..) {
                        *value /= queries_of(self.spec.causal, j, sequence.len());
                    }
                }
            });
        });
    }

    /// `given-self`: one product a token.
    fn own(&self, lse: &[f32], values: &mut [f32]) {
        values.par_iter_mut().with_min_len(TILE).enumerate().for_each(|(packed, value)| {
            let token = self.sequences.tokens[packed] as usize;
            let (q, k) = (self.q.row(token, self.head), self.k.row(token, self.key_head));
            let score: f32 = q.iter().zip(k).map(|(q, k)| self.scale * q.to_f32() * k.to_f32()).sum();
            self.excess.inspect(|excess| excess.see(packed, score, lse[packed]));
            *value = exp(score - lse[packed]);
        });
    }

    /// `s[i, j] = q_i · k_j`, rows `TILE` apart.
    fn scores(&self, q: &[f32], queries: usize, k: &[f32], keys: usize, s: &mut [f32]) {
        let width = self.q.width;
        let (q, k) = (Operand::dense(q, queries, width), Operand::dense(k, keys, width));
        multiply(s, TILE, q, k.transposed(), false);
    }

    /// How many keys of a block the query at packed position `query` sees.
    fn visible_keys(&self, query: usize, keys: &Range<usize>) -> usize {
        if self.spec.causal { (query + 1).clamp(keys.start, keys.end) - keys.start } else { keys.len() }
    }
}

impl Online {
    /// Takes in some scores, rescaling what was summed when a larger one appears. NaN scores make the sums NaN.
    #[inline(always)]
    fn absorb(&mut self, scores: &[f32], skip_nan: bool) {
        let largest = scores.iter().fold(self.largest, |largest, &s| if s > largest { s } else { largest });
        if largest > self.largest {
            let rescale = if self.sum == 0.0 { 0.0 } else { exp(self.largest - largest) };
            // Before the first score both sums are 0, and 0 · e^{−∞} stays 0.
            (self.sum, self.weighted, self.largest) = (self.sum * rescale, self.weighted * rescale, largest);
        }
        let mut lanes = [[0.0f32; 16]; 2];
        for chunk in scores.chunks(16) {
            for (lane, &s) in chunk.iter().enumerate() {
                // A score of −∞ has no probability, also where nothing larger has been seen yet.
                let nothing = s == f32::NEG_INFINITY || (skip_nan && s.is_nan());
                let e = if nothing { 0.0 } else { exp(s - self.largest) };
                lanes[0][lane] += e;
                lanes[1][lane] += if e == 0.0 { 0.0 } else { e * s };
            }
        }
        self.sum += crate::simd::fold(lanes[0]);
        self.weighted += crate::simd::fold(lanes[1]);
    }
}

/// Takes one query's probabilities into the keys' values. NaN counts as 0.
#[inline(always)]
pub(super) fn absorb_probabilities(measure: AttentionSource, scores: &[f32], lse: f32, values: &mut [f32]) {
    if measure == AttentionSource::ReceivedMax {
        for (value, s) in values.iter_mut().zip(scores) {
            let p = exp(s - lse);
            *value = if p > *value { p } else { *value };
        }
    } else {
        for (value, s) in values.iter_mut().zip(scores) {
            let p = exp(s - lse);
            *value += if p.is_nan() { 0.0 } else { p };
        }
    }
}
