//! Stage 3.

#![allow(unsafe_code, reason = "addresses of device memory; each block names what it relies on")]

use super::{last, row_stride};
use crate::cuda::abi;
use crate::cuda::device::Device;
use crate::cuda::launch::permute;
use crate::cuda::stage::binder::{Binder, Output};
use crate::{PermuteArgs, Result, SharedPermute};

pub(in crate::cuda) fn permute<D: Device>(binder: &mut Binder<'_, D>, args: PermuteArgs<'_>) -> Result<()> {
    args.check()?;
    let [tokens, _] = args.selection.experts.shape();
    let mut p = permute::parameters(args.config, tokens);
    p.experts = binder.input("selection.experts", &args.selection.experts)?;
    p.weights = binder.input("selection.weights", &args.selection.weights)?;
    p.experts_stride = row_stride(&args.selection.experts);
    p.weights_stride = row_stride(&args.selection.weights);
    let counts = binder.output("counts", args.plan.counts)?;
    let offsets = binder.output("offsets", args.plan.offsets)?;
    let row_token = binder.output("row_token", args.plan.row_token)?;
    let row_weight = binder.output("row_weight", args.plan.row_weight)?;
    let token_row = binder.output("token_row", args.plan.token_row)?;
    let dropped = binder.output("dropped", args.plan.dropped)?;
    (p.counts, p.offsets, p.dropped) = (counts.address(), offsets.address(), dropped.address());
    (p.row_token, p.row_weight, p.token_row) = (row_token.address(), row_weight.address(), token_row.address());
    let target = binder.target();
    let workspace = permute::bind(target, &mut p, 0);
    permute::bind(target, &mut p, binder.workspace(workspace)?);
    // SAFETY: every address is of an allocation as large as the tensor or workspace it stands for.
    unsafe { binder.run(permute::calls(target, p)) }?;
    // Past R rows mean nothing; where R stays on the device, so do they.
    if let Some(rows) = last(binder.take(offsets)?.as_ref()) {
        binder.take_first(row_token, rows)?;
        binder.take_first(row_weight, rows)?;
    }
    [counts, token_row, dropped].into_iter().try_for_each(|output| binder.take(output).map(drop))?;
    args.shared.map_or(Ok(()), |shared| shared_rows(binder, tokens, shared))
}

/// The tokens that are not masked, in order.
fn shared_rows<D: Device>(binder: &mut Binder<'_, D>, tokens: usize, args: SharedPermute<'_>) -> Result<()> {
    let mask = binder.input("mask", &args.mask)?;
    let offsets = binder.output("shared_plan.offsets", args.plan.offsets)?;
    let row_token = binder.output("shared_plan.row_token", args.plan.row_token)?;
    let token_row: Output<'_, i32> = binder.output("shared_plan.token_row", args.plan.token_row)?;
    let p = abi::PermuteUnmasked {
        mask,
        offsets: offsets.address(),
        row_token: row_token.address(),
        token_row: token_row.address(),
        tokens: tokens as i32,
        ..Default::default()
    };
    // SAFETY: every address is of an allocation as large as the tensor it stands for.
    unsafe { binder.run(std::iter::once(permute::unmasked_call(binder.target(), p))) }?;
    if let Some(rows) = last(binder.take(offsets)?.as_ref()) {
        binder.take_first(row_token, rows)?;
    }
    binder.take(token_row).map(drop)
}
