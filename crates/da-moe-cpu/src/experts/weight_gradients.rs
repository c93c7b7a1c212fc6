//! SPEC §6: `dW_out = Σ dy ⊗ (g·a)` and `dW_in = Σ dh ⊗ x`, each tile of a gradient one product over its expert's rows, in
//! order. An expert without rows gets zeros, written, unless gradients are added to what is there.

use super::{RowMap, take};
use crate::gemm::{Operand, gather, multiply};
use crate::simd::{add_scaled, vectorized, write};
use crate::views::{Rows, output};
use crate::{activation, scratch};
use da_moe_core::{Activation, DType, ExpertGradients, Result, Storage, TensorMut};
use rayon::prelude::*;
use std::ops::Range;

/// Rows of a weight gradient that one task computes.
const TILE: usize = 512;
/// Routed rows that enter a product at once: bounds the scratch, whatever the skew.
const DEPTH: usize = 512;

/// What the row blocks left behind.
pub(super) struct WeightGradients<'a, S: Storage> {
    pub x: Rows<'a, S>,
    pub dy: Rows<'a, S>,
    pub map: RowMap<'a>,
    /// `dh`, in row order.
    pub d_hidden: Rows<'a, f32>,
    /// `g·a`, in row order.
    pub activated: Activated<'a, S::Hidden>,
    /// Whether gradients are added to what is there.
    pub accumulate: bool,
}

/// Where `g·a` comes from.
#[derive(Clone, Copy)]
pub(super) enum Activated<'a, H> {
    /// It was stored.
    Stored(Rows<'a, f32>),
    /// The kept hidden rows go through the activation again: a few operations an element, for a buffer less.
    Again(Activation, Rows<'a, H>),
}

/// Which of an expert's two matrices.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    In,
    Out,
}

/// Some rows of one expert's weight gradient, and the same entries of its bias gradient.
struct Tile<'a, G> {
    side: Side,
    expert: usize,
    first: usize,
    cols: usize,
    gradient: &'a mut [G],
    bias: Option<&'a mut [G]>,
}

/// Gradients of the storage type or of f32.
pub(super) fn weight_gradients<S: Storage>(from: &WeightGradients<'_, S>, to: ExpertGradients<'_>) -> Result<()> {
    if to.w_in.dtype() == DType::F32 { all_tiles::<S, f32>(from, to) } else { all_tiles::<S, S>(from, to) }
}

fn all_tiles<S: Storage, G: Storage>(from: &WeightGradients<'_, S>, to: ExpertGradients<'_>) -> Result<()> {
    let mut all: Vec<Tile<'_, G>> = tiles(Side::Out, to.w_out, to.b_out)?;
    all.extend(tiles(Side::In, to.w_in, to.b_in)?);
    all.into_par_iter().with_max_len(1).for_each(|tile| from.tile(tile));
    Ok(())
}

/// Cuts a stack of gradients `[E, rows, cols]` and its bias `[E, rows]` into tiles.
fn tiles<'a, G: Storage>(
    side: Side,
    gradient: TensorMut<'a, 3>,
    bias: Option<TensorMut<'a, 2>>,
) -> Result<Vec<Tile<'a, G>>> {
    let op = "experts_backward";
    let [_, rows, cols] = gradient.shape();
    let gradient = output::<G, 3>(op, "weight gradient", gradient)?;
    let mut bias = bias.map(|bias| output::<G, 2>(op, "bias gradient", bias)).transpose()?;
    let mut tiles = Vec::new();
    for (expert, matrix) in gradient.chunks_exact_mut(rows * cols).enumerate() {
        for (tile, gradient) in matrix.chunks_mut(TILE * cols).enumerate() {
            let bias = bias.as_mut().map(|bias| take(bias, gradient.len() / cols));
            tiles.push(Tile { side, expert, first: tile * TILE, cols, gradient, bias });
        }
    }
    Ok(tiles)
}

impl<S: Storage> WeightGradients<'_, S> {
    /// `gradient[i, j] = Σ_rows left[first + i] · right[j]` and `bias[i] = Σ_rows (g ·) left[first + i]`.
    fn tile<G: Storage>(&self, task: Tile<'_, G>) {
        let (all, cols) = (self.map.range(task.expert), task.cols);
        let rows = task.gradient.len() / cols;
        // What is added to is added to at the end, so that a sum does not depend on what was there.
        let direct = !self.accumulate && G::as_f32_mut(task.gradient).is_some();
        let own = if direct { 0 } else { rows * cols };
        let depth = DEPTH.min(all.len());
        let gathered = depth * if task.side == Side::In { cols } else { rows };
        let again = match (task.side, self.activated) {
            (Side::Out, Activated::Again(..)) => depth * cols,
            _ => 0,
        };
        scratch::with([gathered, again, own, rows], |[gathered, again, own, sums]| {
            sums.fill(0.0);
            if all.is_empty() && !self.accumulate {
                task.gradient.fill(G::default());
            }
            for start in all.clone().step_by(DEPTH) {
                let part = start..all.end.min(start + DEPTH);
                let (left, right) = self.operands(&task, part.clone(), rows, gathered, again);
                let target = if direct { G::as_f32_mut(task.gradient) } else { None }.unwrap_or(&mut *own);
                multiply(target, cols, left.transposed(), right, start > all.start);
                if task.bias.is_some() {
                    self.add_bias(&task, part, rows, gathered, sums);
                }
            }
            if !own.is_empty() && !all.is_empty() {
                vectorized(
                    #[inline(always)]
                    || write(own, task.gradient, self.accumulate),
                );
            }
            if let Some(bias) = task.bias {
                write(sums, bias, self.accumulate);
            }
        });
    }

    /// The two factors over some routed rows: one lies in row order already, the other is gathered from its tokens.
    fn operands<'s>(
        &'s self,
        task: &Tile<'_, impl Storage>,
        part: Range<usize>,
        rows: usize,
        gathered: &'s mut [f32],
        again: &'s mut [f32],
    ) -> (Operand<'s>, Operand<'s>) {
        let count = part.len();
        let tokens = self.map.tokens_of(part.clone());
        match task.side {
            Side::In => {
                gather(self.x, tokens, 0, task.cols, gathered);
                let left = &self.d_hidden.data[part.start * self.d_hidden.stride + task.first..];
                (Operand::new(left, count, rows, self.d_hidden.stride), Operand::dense(gathered, count, task.cols))
            }
            Side::Out => {
                gather(self.dy, tokens, task.first, rows, gathered);
                let right = match self.activated {
                    Activated::Stored(stored) => &stored.data[part.start * stored.stride..],
                    Activated::Again(activation, hidden) => {
                        self.activate(activation, hidden, part, again);
                        again
                    }
                };
                (Operand::dense(gathered, count, rows), Operand::dense(right, count, task.cols))
            }
        }
    }

    /// `g·a` of some routed rows from their hidden rows.
    fn activate(&self, activation: Activation, hidden: Rows<'_, S::Hidden>, part: Range<usize>, to: &mut [f32]) {
        let inner = if activation.is_gated() { hidden.cols / 2 } else { hidden.cols };
        vectorized(
            #[inline(always)]
            || {
                for (row, to) in part.zip(to.chunks_exact_mut(inner)) {
                    activation::forward(activation, hidden.row(row), to);
                    let g = self.map.weight(row);
                    to.iter_mut().for_each(|a| *a *= g);
                }
            },
        );
    }

    /// `db_in = Σ dh`, `db_out = Σ g·dy`.
    fn add_bias(
        &self,
        task: &Tile<'_, impl Storage>,
        part: Range<usize>,
        rows: usize,
        gathered: &[f32],
        sums: &mut [f32],
    ) {
        for (i, row) in part.enumerate() {
            match task.side {
                Side::In => add_scaled(sums, 1.0, &self.d_hidden.row(row)[task.first..][..rows]),
                Side::Out => add_scaled(sums, self.map.weight(row), &gathered[i * rows..][..rows]),
            }
        }
    }
}
