//! SPEC §5: `y_t = Σ_slots g·o_row (+ null experts) (+ shared)` in slot order, rounded once; and SPEC §6 for the null
//! experts, whose value is here.

use crate::scratch;
use crate::simd::{add_scaled, narrow, vectorized, write};
use crate::views::{Rows, SharedRows, by_storage, check_below, output, rows};
use da_moe_core::{CombineArgs, CombineBackwardArgs, DType, NullExpert, Result, Storage, TensorMut};
use rayon::prelude::*;

/// Tokens that one task takes.
const CHUNK: usize = 32;

pub(crate) fn forward(args: CombineArgs<'_>) -> Result<()> {
    args.check()?;
    check_below("combine", "plan.token_row", &args.plan.token_row, args.rows.shape()[0])?;
    by_storage!("combine", "x", args.x.dtype(), S => run::<S>(args))
}

fn run<S: Storage>(args: CombineArgs<'_>) -> Result<()> {
    let op = "combine";
    let width = args.x.shape()[1];
    let nulls = Nulls::<S>::new(op, args.experts, args.null_expert, &args.x, &args.constants)?;
    let chosen = rows::<i32>(op, "selection.experts", &args.selection.experts)?;
    let weights = rows::<f32>(op, "selection.weights", &args.selection.weights)?;
    let token_row = rows::<i32>(op, "plan.token_row", &args.plan.token_row)?;
    let expert_rows = rows::<f32>(op, "rows", &args.rows)?;
    let shared = SharedRows::new(op, "shared", &args.shared, &args.shared_row)?;
    let y = output::<S, 2>(op, "y", args.y)?;
    y.par_chunks_mut(CHUNK * width).enumerate().for_each(|(chunk, y)| {
        scratch::with([width], |[sum]| {
            vectorized(
                #[inline(always)]
                || {
                    for (i, y) in y.chunks_exact_mut(width).enumerate() {
                        let t = chunk * CHUNK + i;
                        sum.fill(0.0);
                        for (slot, &weight) in weights.row(t).iter().enumerate() {
                            if let Ok(row) = usize::try_from(token_row.row(t)[slot]) {
                                add_scaled(sum, weight, expert_rows.row(row));
                            } else if let Some(value) = nulls.value(chosen.row(t)[slot], t) {
                                add_scaled(sum, weight, value);
                            }
                        }
                        if let Some(shared) = shared.of_token(t) {
                            add_scaled(sum, 1.0, shared);
                        }
                        narrow(sum, y);
                    }
                },
            );
        });
    });
    Ok(())
}

/// What zero-computation experts return.
struct Nulls<'a, S> {
    first: i32,
    kind: NullExpert,
    x: Rows<'a, S>,
    constants: Option<Rows<'a, S>>,
}

impl<'a, S: Storage> Nulls<'a, S> {
    fn new(
        op: &'static str,
        experts: usize,
        kind: NullExpert,
        x: &da_moe_core::TensorRef<'a, 2>,
        constants: &Option<da_moe_core::TensorRef<'a, 2>>,
    ) -> Result<Self> {
        let constants = constants.as_ref().map(|constants| rows(op, "constants", constants)).transpose()?;
        Ok(Self { first: experts as i32, kind, x: rows(op, "x", x)?, constants })
    }

    /// Index of a null expert among the null experts.
    #[inline(always)]
    fn index(&self, expert: i32) -> Option<usize> {
        usize::try_from(expert.checked_sub(self.first)?).ok()
    }

    /// The vector that null expert `expert` gives token `t`; `None` for zero, for routed experts and for no expert.
    #[inline(always)]
    fn value(&self, expert: i32, t: usize) -> Option<&'a [S]> {
        let index = self.index(expert)?;
        match self.kind {
            NullExpert::Zero => None,
            NullExpert::Copy => Some(self.x.row(t)),
            NullExpert::Constant => {
                let constants = self.constants.as_ref()?;
                ((index + 1) * constants.cols <= constants.data.len()).then(|| constants.row(index))
            }
        }
    }
}

pub(crate) fn backward(args: CombineBackwardArgs<'_>) -> Result<()> {
    args.check()?;
    by_storage!("combine_backward", "x", args.x.dtype(), S => run_backward::<S>(args))
}

fn run_backward<S: Storage>(args: CombineBackwardArgs<'_>) -> Result<()> {
    let op = "combine_backward";
    let nulls = Nulls::<S>::new(op, args.experts, args.null_expert, &args.x, &args.constants)?;
    let chosen = rows::<i32>(op, "selection.experts", &args.selection.experts)?;
    let weights = rows::<f32>(op, "selection.weights", &args.selection.weights)?;
    let dy = rows::<S>(op, "dy", &args.dy)?;
    let [tokens, slots] = args.selection.experts.shape();
    let d_weights = output::<f32, 2>(op, "d_weights", args.d_weights)?;
    if slots > 0 {
        d_weights.par_chunks_mut(slots).enumerate().for_each(|(t, d_weights)| {
            for (slot, d_weight) in d_weights.iter_mut().enumerate() {
                *d_weight = nulls.value(chosen.row(t)[slot], t).map_or(0.0, |value| inner(dy.row(t), value));
            }
        });
    }
    let Some(d_constants) = args.d_constants else { return Ok(()) };
    let of_constants = OfConstants { nulls, chosen, weights, dy, tokens, accumulate: args.accumulate };
    if d_constants.dtype() == DType::F32 {
        of_constants.write::<f32>(d_constants)
    } else {
        of_constants.write::<S>(d_constants)
    }
}

/// What the constants' gradients are made of.
struct OfConstants<'a, S> {
    nulls: Nulls<'a, S>,
    chosen: Rows<'a, i32>,
    weights: Rows<'a, f32>,
    dy: Rows<'a, S>,
    tokens: usize,
    accumulate: bool,
}

impl<S: Storage> OfConstants<'_, S> {
    /// `d constant_c = Σ_t g·dy_t` over the tokens that chose it, in token order.
    fn write<G: Storage>(&self, to: TensorMut<'_, 2>) -> Result<()> {
        let width = to.shape()[1];
        let to = output::<G, 2>("combine_backward", "d_constants", to)?;
        to.par_chunks_mut(width).enumerate().for_each(|(index, gradient)| {
            scratch::with([width], |[sum]| {
                sum.fill(0.0);
                for t in 0..self.tokens {
                    for (slot, &expert) in self.chosen.row(t).iter().enumerate() {
                        if self.nulls.index(expert) == Some(index) {
                            add_scaled(sum, self.weights.row(t)[slot], self.dy.row(t));
                        }
                    }
                }
                write(sum, gradient, self.accumulate);
            });
        });
        Ok(())
    }
}

fn inner<S: Storage>(a: &[S], b: &[S]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a.to_f32() * b.to_f32()).sum()
}
