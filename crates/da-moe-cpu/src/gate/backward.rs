//! SPEC §6 through weights, scores and losses: `dg → ds → dz`, then the router product's `dW_r = dzᵀ x`, `dx += dz W_r`.

use super::scores::Scores;
use super::shares::{Whole, centre, complement};
use super::{CHUNK, members, summed};
use crate::gemm::{Operand, gather, multiply, times};
use crate::scratch;
use crate::simd::{narrow, vectorized, write};
use crate::views::{Rows, by_storage, check_below, optional, output, rows, vector};
use da_moe_core::{GateBackwardArgs, LayerConfig, Result, RouterBackward, Scoring, Storage, TensorMut};
use rayon::prelude::*;

/// Columns of `dW_r` that one task computes.
const COLUMNS: usize = 128;
/// Tokens that enter `dW_r` at once.
const DEPTH: usize = 512;

pub(crate) fn backward(args: GateBackwardArgs<'_>) -> Result<()> {
    args.check()?;
    by_storage!("gate_backward", "x", args.x.dtype(), S => run::<S>(args))
}

fn run<S: Storage>(mut args: GateBackwardArgs<'_>) -> Result<()> {
    let op = "gate_backward";
    let x = rows::<S>(op, "x", &args.x)?;
    let dx_rows = rows::<f32>(op, "dx_rows", &args.dx_rows)?;
    let dx = output::<S, 2>(op, "dx", args.dx)?;
    let Some(router) = args.router.take() else {
        dx.par_chunks_mut(x.cols).enumerate().for_each(|(t, dx)| narrow(dx_rows.row(t), dx));
        return Ok(());
    };
    let RouterBackward { weight, logits, load, unmasked, d_logits, d_weight, accumulate } = router;
    let gate = GateBackward {
        config: args.config,
        logits: rows(op, "logits", &logits)?,
        mask: optional(op, "mask", &args.mask)?,
        chosen: rows(op, "experts", &args.selection.experts)?,
        ranked: rows(op, "ranked", &args.selection.ranked)?,
        d_weights: rows(op, "d_weights", &args.d_weights)?,
        pull: balance_pull(args.config, args.loss_scale, vector(op, "load", &load)?),
        z: (f64::from(args.loss_scale) * args.config.losses.z) as f32,
    };
    let candidates = gate.logits.cols;
    check_below(op, "selection.experts", &args.selection.experts, candidates)?;
    check_below(op, "selection.ranked", &args.selection.ranked, candidates)?;
    let d_logits = output::<f32, 2>(op, "d_logits", d_logits)?;
    let unmasked = vector::<i32>(op, "unmasked", &unmasked)?[0];
    d_logits.par_chunks_mut(CHUNK * candidates).enumerate().for_each(|(chunk, dz)| {
        gate.chunk(chunk * CHUNK, dz, 1.0 / unmasked.max(1) as f32);
    });
    let dz = Rows { data: &*d_logits, stride: candidates, cols: candidates };
    by_storage!(op, "weight", weight.dtype(), W => {
        input_gradient::<S, W>(dz, rows(op, "weight", &weight)?, dx_rows, dx);
        Ok(())
    })?;
    by_storage!(op, "d.router.weight", d_weight.dtype(), G => weight_gradient::<S, G>(dz, x, gate.mask, d_weight, accumulate))
}

/// `dL_balance / dp[t, e] · T = loss_scale · balance · E · f_e` (SPEC §3: `f_e` carries no gradient).
fn balance_pull(config: &LayerConfig, loss_scale: f32, load: &[i32]) -> Vec<f32> {
    let total: f64 = load.iter().map(|&count| f64::from(count)).sum();
    let balance = f64::from(loss_scale) * config.losses.balance;
    let scale = if total == 0.0 { 0.0 } else { balance * config.num_experts as f64 / total };
    load.iter().map(|&count| (scale * f64::from(count)) as f32).collect()
}

/// What every token reads.
struct GateBackward<'a> {
    config: &'a LayerConfig,
    logits: Rows<'a, f32>,
    mask: Option<&'a [u8]>,
    chosen: Rows<'a, i32>,
    ranked: Rows<'a, i32>,
    d_weights: Rows<'a, f32>,
    pull: Vec<f32>,
    /// Coefficient of the z-loss in this call.
    z: f32,
}

/// Buffers of one task, reused from token to token.
struct Buffers {
    scores: Scores,
    /// What a share gains, by candidate.
    pull: Vec<f32>,
    /// Shares, by candidate.
    shares: Vec<f32>,
}

impl GateBackward<'_> {
    fn chunk(&self, first: usize, dz: &mut [f32], per_token: f32) {
        let candidates = self.logits.cols;
        let zeros = || vec![0.0; candidates];
        let scores = Scores::new(self.config.router.scoring, candidates);
        let mut buffers = Buffers { scores, pull: zeros(), shares: zeros() };
        for (i, dz) in dz.chunks_exact_mut(candidates).enumerate() {
            let token = first + i;
            dz.fill(0.0);
            if self.mask.is_some_and(|mask| mask[token] == 0) {
                continue;
            }
            let logits = self.logits.row(token);
            buffers.scores.compute(logits);
            self.through_weights(token, &mut buffers, dz);
            if self.config.losses.balance != 0.0 {
                let Buffers { scores, pull, .. } = &mut buffers;
                pull.iter_mut().zip(&self.pull).for_each(|(to, pull)| *to = pull * per_token);
                through_shares(scores.whole(), logits, 0..candidates, scores.shares(), pull, dz);
            }
            if self.z != 0.0 {
                let z = self.z * 2.0 * buffers.scores.log_sum_exp() * per_token;
                dz.iter_mut().zip(buffers.scores.softmax()).for_each(|(dz, p)| *dz += z * p);
            }
        }
    }

    /// `dg → dz` through the scaling, and the divisor or the scores themselves.
    fn through_weights(&self, token: usize, buffers: &mut Buffers, dz: &mut [f32]) {
        let Buffers { scores, pull, shares } = buffers;
        let (logits, router) = (self.logits.row(token), &self.config.router);
        let (chosen, ranked) = (self.chosen.row(token), self.ranked.row(token));
        let scaling = router.routed_scaling as f32;
        pull.fill(0.0);
        let slots = || chosen.iter().zip(self.d_weights.row(token)).filter(|(expert, _)| **expert >= 0);
        slots().for_each(|(&expert, dg)| pull[expert as usize] = scaling * dg);
        if let Some(summed) = summed(router.normalize, ranked, slots().count()) {
            let whole = Whole::new(router.scoring, logits, members(summed));
            members(summed).for_each(|e| shares[e] = whole.share(logits[e], scores.values()[e]));
            return through_shares(whole, logits, members(summed), shares, pull, dz);
        }
        match router.scoring {
            Scoring::Softmax => through_shares(scores.whole(), logits, 0..logits.len(), scores.shares(), pull, dz),
            Scoring::Sigmoid => {
                let candidates = logits.iter().zip(scores.values()).zip(&*pull);
                dz.iter_mut().zip(candidates).for_each(|(dz, ((z, s), ds))| *dz += ds * s * complement(*z));
            }
            Scoring::Relu => {
                let positive = dz.iter_mut().zip(scores.values()).zip(&*pull).filter(|((_, s), _)| **s > 0.0);
                positive.for_each(|((dz, _), ds)| *dz += ds);
            }
        }
    }
}

/// Adds to `dz` what the members' `shares` of `whole` gain by `pull`, which is overwritten.
fn through_shares(
    whole: Whole,
    logits: &[f32],
    members: impl Iterator<Item = usize> + Clone,
    shares: &[f32],
    pull: &mut [f32],
    dz: &mut [f32],
) {
    centre(members.clone(), |e| shares[e], pull);
    members.for_each(|e| dz[e] += whole.slope(logits[e], shares[e], pull[e]));
}

/// `dx = dx_rows + dz W_r`, rounded once.
fn input_gradient<S: Storage, W: Storage>(
    dz: Rows<'_, f32>,
    weight: Rows<'_, W>,
    dx_rows: Rows<'_, f32>,
    dx: &mut [S],
) {
    let width = weight.cols;
    dx.par_chunks_mut(CHUNK * width).enumerate().for_each(|(chunk, dx)| {
        let (first, count) = (chunk * CHUNK, dx.len() / width);
        scratch::with([count * width], |[sum]| {
            for (i, sum) in sum.chunks_exact_mut(width).enumerate() {
                sum.copy_from_slice(dx_rows.row(first + i));
            }
            times(sum, &dz.data[first * dz.cols..], count, weight, dz.cols, true);
            vectorized(
                #[inline(always)]
                || narrow(sum, dx),
            );
        });
    });
}

/// `dW_r = dzᵀ x`, in blocks of columns. Padding takes no part, whatever its `x` holds: its `dz` is 0, but 0 · NaN is not.
fn weight_gradient<S: Storage, G: Storage>(
    dz: Rows<'_, f32>,
    x: Rows<'_, S>,
    mask: Option<&[u8]>,
    d_weight: TensorMut<'_, 2>,
    accumulate: bool,
) -> Result<()> {
    let d_weight = output::<G, 2>("gate_backward", "d.router.weight", d_weight)?;
    let (candidates, tokens, width) = (dz.cols, dz.data.len() / dz.cols, x.cols);
    let blocks: Vec<Vec<f32>> = (0..width.div_ceil(COLUMNS))
        .into_par_iter()
        .map(|block| {
            let (first, cols) = (block * COLUMNS, COLUMNS.min(width - block * COLUMNS));
            let mut gradient = vec![0.0; candidates * cols];
            for start in (0..tokens).step_by(DEPTH) {
                let count = DEPTH.min(tokens - start);
                scratch::with([count * cols], |[part]| {
                    gather(x, start..start + count, first, cols, part);
                    if let Some(mask) = mask {
                        let rows = part.chunks_exact_mut(cols).zip(&mask[start..start + count]);
                        rows.filter(|(_, token)| **token == 0).for_each(|(row, _)| row.fill(0.0));
                    }
                    let dz = Operand::dense(&dz.data[start * candidates..], count, candidates).transposed();
                    multiply(&mut gradient, cols, dz, Operand::dense(part, count, cols), true);
                });
            }
            gradient
        })
        .collect();
    for (block, gradient) in blocks.iter().enumerate() {
        let first = block * COLUMNS;
        for (row, part) in d_weight.chunks_exact_mut(width).zip(gradient.chunks_exact(gradient.len() / candidates)) {
            write(part, &mut row[first..first + part.len()], accumulate);
        }
    }
    Ok(())
}
