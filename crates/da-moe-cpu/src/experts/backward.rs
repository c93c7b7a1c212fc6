//! SPEC §6 through the experts, by row blocks: `da = W_outᵀ dy`, `dg = ⟨a, da⟩`, `dh = (g·da) ∘ act'`, `g·a`,
//! `dx_row = W_inᵀ dh`. The weights' gradients follow from what this leaves behind.

use super::forward::hidden_rows;
use super::weight_gradients::{Activated, WeightGradients, weight_gradients};
use super::{RowMap, take};
use crate::gemm::{gather, times};
use crate::simd::{dot, round, vectorized, widen};
use crate::views::{self, Stack, by_storage, output};
use crate::{activation, scratch};
use da_moe_core::{Activation, ExpertsBackwardArgs, Result, Storage};
use rayon::prelude::*;
use std::ops::Range;

/// What every task reads.
struct Shared<'a, S: Storage> {
    activation: Activation,
    x: views::Rows<'a, S>,
    dy: views::Rows<'a, S>,
    map: RowMap<'a>,
    w_in: Stack<'a, S>,
    w_out: Stack<'a, S>,
    b_in: Option<views::Rows<'a, S>>,
    b_out: Option<views::Rows<'a, S>>,
    hidden: Option<views::Rows<'a, S::Hidden>>,
}

/// One block of one expert's rows, and where its results go.
struct Task<'a> {
    expert: usize,
    rows: Range<usize>,
    d_hidden: &'a mut [f32],
    activated: Option<&'a mut [f32]>,
    dx_rows: &'a mut [f32],
    d_row_weight: &'a mut [f32],
}

pub(crate) fn backward(args: ExpertsBackwardArgs<'_>) -> Result<()> {
    args.check()?;
    by_storage!("experts_backward", "x", args.x.dtype(), S => run::<S>(args))
}

/// f32 elements that a call wants: `dh[rows, F or 2F]`, and `g·a[rows, F]` when `h` has to be computed `again`.
pub(crate) fn scratch_len(rows: usize, rows_in: usize, inner: usize, again: bool) -> usize {
    rows.saturating_mul(rows_in + if again { inner } else { 0 })
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
    let room = args.dx_rows.shape()[0];
    let needed = scratch_len(room, rows_in, inner, args.hidden.is_none());
    let (d_hidden, activated) = views::scratch(op, args.scratch, needed)?.split_at_mut(room * rows_in);
    let mut activated = args.hidden.is_none().then_some(activated);
    {
        let (mut d_hidden, mut activated) = (&mut *d_hidden, activated.as_deref_mut());
        let mut dx_rows = output::<f32, 2>(op, "dx_rows", args.dx_rows)?;
        let mut d_row_weight = output::<f32, 1>(op, "d_row_weight", args.d_row_weight)?;
        let tasks: Vec<_> = map
            .blocks()
            .into_iter()
            .map(|(expert, rows)| Task {
                expert,
                d_hidden: take(&mut d_hidden, rows.len() * rows_in),
                activated: activated.as_mut().map(|activated| take(activated, rows.len() * inner)),
                dx_rows: take(&mut dx_rows, rows.len() * width),
                d_row_weight: take(&mut d_row_weight, rows.len()),
                rows,
            })
            .collect();
        tasks.into_par_iter().with_max_len(1).for_each(|task| shared.run(task));
    }
    let done = WeightGradients {
        x: shared.x,
        dy: shared.dy,
        map,
        d_hidden: views::Rows { data: d_hidden, stride: rows_in, cols: rows_in },
        activated: match (shared.hidden, activated) {
            (Some(hidden), _) => Activated::Again(args.activation, hidden),
            (None, activated) => {
                Activated::Stored(views::Rows { data: activated.unwrap_or_default(), stride: inner, cols: inner })
            }
        },
        accumulate: args.accumulate,
    };
    weight_gradients(&done, args.gradients)
}

impl<S: Storage> Shared<'_, S> {
    fn run(&self, mut task: Task<'_>) {
        let (count, width, rows_in, inner) = (task.rows.len(), self.x.cols, self.w_in.rows, self.w_out.cols);
        let kept = self.hidden.map(|kept| &kept.data[task.rows.start * rows_in..task.rows.end * rows_in]);
        let in_f32 = kept.and_then(S::Hidden::as_f32);
        let own = if in_f32.is_some() { 0 } else { count * rows_in };
        scratch::with([count * width, own, count * inner, inner], |[vectors, own, da, a]| {
            let h = match (in_f32, kept) {
                (Some(h), _) => h,
                (None, Some(kept)) => {
                    vectorized(
                        #[inline(always)]
                        || widen(kept, own),
                    );
                    own
                }
                (None, None) => {
                    gather(self.x, self.map.tokens_of(task.rows.clone()), 0, width, vectors);
                    let bias = self.b_in.map(|b| b.row(task.expert));
                    hidden_rows(own, vectors, count, self.w_in.matrix(task.expert), rows_in, bias);
                    vectorized(
                        #[inline(always)]
                        || round::<S::Hidden>(own),
                    );
                    own
                }
            };
            gather(self.dy, self.map.tokens_of(task.rows.clone()), 0, width, vectors);
            times(da, vectors, count, self.w_out.matrix(task.expert), width, false);
            vectorized(
                #[inline(always)]
                || {
                    for (row, dg) in task.d_row_weight.iter_mut().enumerate() {
                        let (da, dh) = (&da[row * inner..][..inner], &mut task.d_hidden[row * rows_in..][..rows_in]);
                        let g = self.map.weight(task.rows.start + row);
                        activation::backward(self.activation, &h[row * rows_in..][..rows_in], g, da, a, dh);
                        *dg = dot(a, da);
                        if let Some(activated) = task.activated.as_deref_mut() {
                            let weighted = &mut activated[row * inner..][..inner];
                            weighted.iter_mut().zip(&*a).for_each(|(to, a)| *to = g * a);
                        }
                    }
                },
            );
            self.add_bias_to_weight_gradient(task.expert, vectors, task.d_row_weight);
            times(task.dx_rows, task.d_hidden, count, self.w_in.matrix(task.expert), rows_in, false);
        });
    }

    /// `dg = ⟨dy, o⟩` and `o = W_out a + b_out`: the bias's part.
    fn add_bias_to_weight_gradient(&self, expert: usize, dy: &[f32], d_row_weight: &mut [f32]) {
        let Some(bias) = self.b_out.map(|b| b.row(expert)) else { return };
        for (dg, dy) in d_row_weight.iter_mut().zip(dy.chunks_exact(bias.len())) {
            *dg += dy.iter().zip(bias).map(|(dy, b)| dy * b.to_f32()).sum::<f32>();
        }
    }
}
