//! `o = W_out act(W_in x + b_in) + b_out`: each task gathers its rows, and everything between the two products stays in
//! its scratch.

use super::{RowMap, take};
use crate::gemm::{gather, times_transposed};
use crate::simd::{add_scaled, narrow, vectorized};
use crate::views::{self, Stack, by_storage, output};
use crate::{activation, scratch};
use da_moe_core::{Activation, DType, Element, ExpertsArgs, Result, Storage};
use rayon::prelude::*;
use std::ops::Range;

/// One block of one expert's rows, and where its results go.
struct Task<'a, H> {
    expert: usize,
    rows: Range<usize>,
    hidden: Option<&'a mut [H]>,
    out: &'a mut [f32],
}

/// What every task reads.
struct Shared<'a, S> {
    activation: Activation,
    x: views::Rows<'a, S>,
    map: RowMap<'a>,
    w_in: Stack<'a, S>,
    w_out: Stack<'a, S>,
    b_in: Option<views::Rows<'a, S>>,
    b_out: Option<views::Rows<'a, S>>,
}

pub(crate) fn forward(args: ExpertsArgs<'_>) -> Result<()> {
    args.check()?;
    by_storage!("experts", "x", args.x.dtype(), S => run::<S>(args))
}

fn run<S: Storage>(args: ExpertsArgs<'_>) -> Result<()> {
    let op = "experts";
    let [tokens, width] = args.x.shape();
    let [experts, rows_in, _] = args.weights.w_in.shape();
    let room = args.out.shape()[0];
    let map = RowMap::new(op, &args.rows, tokens, experts, room)?;
    let bias = |name, bias: &Option<_>| bias.as_ref().map(|b| views::rows(op, name, b)).transpose();
    let shared = Shared {
        activation: args.activation,
        x: views::rows(op, "x", &args.x)?,
        map,
        w_in: Stack::<S>::new(op, "w_in", &args.weights.w_in)?,
        w_out: Stack::<S>::new(op, "w_out", &args.weights.w_out)?,
        b_in: bias("b_in", &args.weights.b_in)?,
        b_out: bias("b_out", &args.weights.b_out)?,
    };
    let mut hidden = args.hidden.map(|hidden| output::<S::Hidden, 2>(op, "hidden", hidden)).transpose()?;
    let mut out = output::<f32, 2>(op, "out", args.out)?;
    let tasks: Vec<_> = map
        .blocks()
        .into_iter()
        .map(|(expert, rows)| Task {
            expert,
            hidden: hidden.as_mut().map(|hidden| take(hidden, rows.len() * rows_in)),
            out: take(&mut out, rows.len() * width),
            rows,
        })
        .collect();
    tasks.into_par_iter().with_max_len(1).for_each(|task| shared.run(task));
    Ok(())
}

impl<S: Storage> Shared<'_, S> {
    fn run(&self, task: Task<'_, S::Hidden>) {
        let (count, width, rows_in, inner) = (task.rows.len(), self.x.cols, self.w_in.rows, self.w_out.cols);
        // What is kept in f32 is computed where it is kept.
        let (direct, mut kept) = match task.hidden {
            Some(kept) if S::Hidden::DTYPE == DType::F32 => (S::Hidden::as_f32_mut(kept), None),
            kept => (None, kept),
        };
        let own = if direct.is_some() { 0 } else { count * rows_in };
        scratch::with([count * width, own, count * inner], |[x, own, a]| {
            gather(self.x, self.map.tokens_of(task.rows), 0, width, x);
            let h = direct.unwrap_or(own);
            hidden_rows(h, x, count, self.w_in.matrix(task.expert), rows_in, self.b_in.map(|b| b.row(task.expert)));
            vectorized(
                #[inline(always)]
                || {
                    for (row, (h, a)) in h.chunks_exact(rows_in).zip(a.chunks_exact_mut(inner)).enumerate() {
                        if let Some(kept) = kept.as_deref_mut() {
                            narrow(h, &mut kept[row * rows_in..][..rows_in]);
                        }
                        activation::forward(self.activation, h, a);
                    }
                },
            );
            let w_out = self.w_out.matrix(task.expert);
            times_transposed(task.out, a, count, w_out, width);
            add_bias(task.out, width, self.b_out.map(|b| b.row(task.expert)));
        });
    }
}

/// `h = x W_inᵀ + b_in` for `count` gathered rows.
pub(super) fn hidden_rows<S: Storage>(
    h: &mut [f32],
    x: &[f32],
    count: usize,
    w_in: views::Rows<'_, S>,
    rows_in: usize,
    bias: Option<&[S]>,
) {
    times_transposed(h, x, count, w_in, rows_in);
    add_bias(h, rows_in, bias);
}

fn add_bias<S: Storage>(rows: &mut [f32], cols: usize, bias: Option<&[S]>) {
    if let Some(bias) = bias {
        vectorized(
            #[inline(always)]
            || rows.chunks_exact_mut(cols).for_each(|row| add_scaled(row, 1.0, bias)),
        );
    }
}
