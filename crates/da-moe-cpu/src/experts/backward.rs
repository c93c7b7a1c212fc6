//! SPEC §6 through the experts, in two passes over the rows.
//!
//! By row blocks: `da = W_outᵀ dy`, `dg = ⟨a, da⟩`, `dh = (g·da) ∘ act'`, `g·a`, `dx_row = W_inᵀ dh`.
//! By weight tiles: `dW_out = Σ dy ⊗ (g·a)`, `dW_in = Σ dh ⊗ x`, each tile a product over its expert's rows in order.

use super::forward::{hidden_rows, widened};
use super::{RowMap, take};
use crate::gemm::{Operand, gather, multiply, times};
use crate::simd::{add_scaled, dot, narrow, vectorized};
use crate::views::{self, Stack, by_storage, output};
use crate::{activation, scratch};
use da_moe_core::{Activation, ExpertsBackwardArgs, Result, Storage, TensorMut};
use rayon::prelude::*;
use std::ops::Range;

/// Rows of a weight gradient that one task computes.
const TILE: usize = 512;
/// Routed rows that enter a weight gradient at once: bounds the scratch, whatever the skew.
const DEPTH: usize = 512;

/// What every task reads.
struct Shared<'a, S> {
    activation: Activation,
    x: views::Rows<'a, S>,
    dy: views::Rows<'a, S>,
    map: RowMap<'a>,
    w_in: Stack<'a, S>,
    w_out: Stack<'a, S>,
    b_in: Option<views::Rows<'a, S>>,
    b_out: Option<views::Rows<'a, S>>,
    hidden: Option<views::Rows<'a, S>>,
}

/// One block of one expert's rows, and where its results go.
struct RowTask<'a, S> {
    expert: usize,
    rows: Range<usize>,
    d_hidden: &'a mut [S],
    activated: &'a mut [S],
    dx_rows: &'a mut [S],
    d_row_weight: &'a mut [f32],
}

/// Some rows of one expert's weight gradient, and the same entries of its bias gradient.
struct TileTask<'a, S> {
    expert: usize,
    first: usize,
    gradient: &'a mut [S],
    bias: Option<&'a mut [S]>,
}

pub(crate) fn backward(args: ExpertsBackwardArgs<'_>) -> Result<()> {
    by_storage!("experts_backward", "x", args.x.dtype(), S => run::<S>(args))
}

fn run<S: Storage>(args: ExpertsBackwardArgs<'_>) -> Result<()> {
    let op = "experts_backward";
    let [tokens, width] = args.x.shape();
    let [experts, rows_in, _] = args.weights.w_in.shape();
    let inner = args.weights.w_out.shape()[2];
    let map = RowMap::new(op, &args.rows, tokens, experts, args.dx_rows.shape()[0])?;
    let bias = |name, bias: &Option<_>| bias.as_ref().map(|b| views::rows(op, name, b)).transpose();
    let shared = Shared {
        activation: args.activation,
        x: views::rows(op, "x", &args.x)?,
        dy: views::rows(op, "dy", &args.dy)?,
        map,
        w_in: Stack::<S>::new(op, "w_in", &args.weights.w_in)?,
        w_out: Stack::<S>::new(op, "w_out", &args.weights.w_out)?,
        b_in: bias("b_in", &args.weights.b_in)?,
        b_out: bias("b_out", &args.weights.b_out)?,
        hidden: args.hidden.as_ref().map(|hidden| views::rows(op, "hidden", hidden)).transpose()?,
    };
    let d_hidden = output::<S, 2>(op, "d_hidden", args.d_hidden)?;
    let activated = output::<S, 2>(op, "activated", args.activated)?;
    {
        let (mut d_hidden, mut activated) = (&mut *d_hidden, &mut *activated);
        let mut dx_rows = output::<S, 2>(op, "dx_rows", args.dx_rows)?;
        let mut d_row_weight = output::<f32, 1>(op, "d_row_weight", args.d_row_weight)?;
        let tasks: Vec<_> = map
            .blocks()
            .into_iter()
            .map(|(expert, rows)| RowTask {
                expert,
                d_hidden: take(&mut d_hidden, rows.len() * rows_in),
                activated: take(&mut activated, rows.len() * inner),
                dx_rows: take(&mut dx_rows, rows.len() * width),
                d_row_weight: take(&mut d_row_weight, rows.len()),
                rows,
            })
            .collect();
        tasks.into_par_iter().with_max_len(1).for_each(|task| shared.row_block(task));
    }
    let d_hidden = views::Rows { data: &*d_hidden, stride: rows_in, cols: rows_in };
    let activated = views::Rows { data: &*activated, stride: inner, cols: inner };
    let out = tiles(op, "d.w_out", args.gradients.w_out, args.gradients.b_out, width, inner)?;
    let into = tiles(op, "d.w_in", args.gradients.w_in, args.gradients.b_in, rows_in, width)?;
    let tasks: Vec<_> = out.into_iter().map(|task| (task, true)).chain(into.into_iter().map(|t| (t, false))).collect();
    tasks.into_par_iter().with_max_len(1).for_each(|(task, is_out)| {
        if is_out {
            // dW_out[d, f] = Σ dy[d] · (g·a)[f]; db_out = Σ g·dy.
            shared.tile(task, (shared.dy, Index::Token), (activated, Index::Row), |row| map.weight(row));
        } else {
            // dW_in[j, d] = Σ dh[j] · x[d]; db_in = Σ dh.
            shared.tile(task, (d_hidden, Index::Row), (shared.x, Index::Token), |_| 1.0);
        }
    });
    Ok(())
}

/// Cuts a stack of gradients `[E, rows, cols]` and its bias `[E, rows]` into tasks.
fn tiles<'a, S: Storage>(
    op: &'static str,
    name: &'static str,
    gradient: TensorMut<'a, 3>,
    bias: Option<TensorMut<'a, 2>>,
    rows: usize,
    cols: usize,
) -> Result<Vec<TileTask<'a, S>>> {
    let gradient = output::<S, 3>(op, name, gradient)?;
    let mut bias = bias.map(|bias| output::<S, 2>(op, name, bias)).transpose()?;
    let tasks = gradient.chunks_exact_mut(rows * cols).enumerate().flat_map(|(expert, matrix)| {
        matrix.chunks_mut(TILE * cols).enumerate().map(move |(tile, gradient)| (expert, tile * TILE, gradient))
    });
    Ok(tasks
        .map(|(expert, first, gradient)| {
            let bias = bias.as_mut().map(|bias| take(bias, gradient.len() / cols));
            TileTask { expert, first, gradient, bias }
        })
        .collect())
}

/// Whether a matrix has a row for each routed row or for each token.
#[derive(Clone, Copy)]
enum Index {
    Row,
    Token,
}

impl<S: Storage> Shared<'_, S> {
    fn row_block(&self, task: RowTask<'_, S>) {
        let (count, width, rows_in, inner) = (task.rows.len(), self.x.cols, self.w_in.rows, self.w_out.cols);
        let sizes = [count * width, count * rows_in, count * inner, inner, count * rows_in];
        scratch::with(sizes, |[vectors, h_room, da, a, dh]| {
            let h = match &self.hidden {
                Some(kept) => widened(&kept.data[task.rows.start * rows_in..task.rows.end * rows_in], h_room),
                None => {
                    gather(self.x, self.map.tokens_of(task.rows.clone()), 0, width, vectors);
                    let bias = self.b_in.map(|b| b.row(task.expert));
                    hidden_rows(h_room, vectors, count, self.w_in.matrix(task.expert), rows_in, bias);
                    h_room
                }
            };
            gather(self.dy, self.map.tokens_of(task.rows.clone()), 0, width, vectors);
            times(da, vectors, count, self.w_out.matrix(task.expert), width, false);
            vectorized(
                #[inline(always)]
                || {
                    for (row, dg) in task.d_row_weight.iter_mut().enumerate() {
                        let (da, dh) = (&da[row * inner..][..inner], &mut dh[row * rows_in..][..rows_in]);
                        let g = self.map.weight(task.rows.start + row);
                        activation::backward(self.activation, &h[row * rows_in..][..rows_in], g, da, a, dh);
                        *dg = dot(a, da);
                        for (to, a) in task.activated[row * inner..][..inner].iter_mut().zip(&*a) {
                            *to = S::from_f32(g * a);
                        }
                    }
                },
            );
            self.add_bias_to_weight_gradient(task.expert, vectors, task.d_row_weight);
            vectorized(
                #[inline(always)]
                || narrow(dh, task.d_hidden),
            );
            let w_in = self.w_in.matrix(task.expert);
            match S::as_f32_mut(task.dx_rows) {
                Some(dx) => times(dx, dh, count, w_in, rows_in, false),
                None => {
                    times(vectors, dh, count, w_in, rows_in, false);
                    vectorized(
                        #[inline(always)]
                        || narrow(vectors, task.dx_rows),
                    );
                }
            }
        });
    }

    /// `dg = ⟨dy, o⟩` and `o = W_out a + b_out`: the bias's part.
    fn add_bias_to_weight_gradient(&self, expert: usize, dy: &[f32], d_row_weight: &mut [f32]) {
        let Some(bias) = self.b_out.map(|b| b.row(expert)) else { return };
        for (dg, dy) in d_row_weight.iter_mut().zip(dy.chunks_exact(bias.len())) {
            *dg += dy.iter().zip(bias).map(|(dy, b)| dy * b.to_f32()).sum::<f32>();
        }
    }

    /// `gradient[i, j] = Σ_rows left[first + i] · right[j]` and `bias[i] = Σ_rows weight · left[first + i]`; zeros where
    /// the expert has no rows.
    fn tile(
        &self,
        task: TileTask<'_, S>,
        (left, left_index): (views::Rows<'_, S>, Index),
        (right, right_index): (views::Rows<'_, S>, Index),
        weight: impl Fn(usize) -> f32,
    ) {
        let (cols, all) = (right.cols, self.map.range(task.expert));
        let rows = task.gradient.len() / cols;
        let own = if S::as_f32_mut(task.gradient).is_some() { 0 } else { rows * cols };
        let depth = DEPTH.min(all.len());
        scratch::with([depth * rows, depth * cols, own, rows], |[lefts, rights, own, sums]| {
            sums.fill(0.0);
            if all.is_empty() {
                task.gradient.fill(S::default());
            }
            for start in all.clone().step_by(DEPTH) {
                let part = start..all.end.min(start + DEPTH);
                let count = part.len();
                self.collect(left, left_index, part.clone(), task.first, rows, lefts);
                self.collect(right, right_index, part.clone(), 0, cols, rights);
                let target = S::as_f32_mut(task.gradient).unwrap_or(&mut *own);
                let (a, b) = (Operand::dense(lefts, count, rows), Operand::dense(rights, count, cols));
                multiply(target, cols, a.transposed(), b, start > all.start);
                if task.bias.is_some() {
                    part.zip(lefts.chunks_exact(rows)).for_each(|(row, left)| add_scaled(sums, weight(row), left));
                }
            }
            if !own.is_empty() && !all.is_empty() {
                vectorized(
                    #[inline(always)]
                    || narrow(own, task.gradient),
                );
            }
            if let Some(bias) = task.bias {
                narrow(sums, bias);
            }
        });
    }

    fn collect(
        &self,
        from: views::Rows<'_, S>,
        index: Index,
        rows: Range<usize>,
        first: usize,
        cols: usize,
        to: &mut [f32],
    ) {
        match index {
            Index::Row => gather(from, rows, first, cols, to),
            Index::Token => gather(from, self.map.tokens_of(rows), first, cols, to),
        }
    }
}
