//! Stage 3, backward.

#![allow(unsafe_code, reason = "addresses of device memory; each block names what it relies on")]

use super::{STORAGE, row_stride};
use crate::cuda::abi;
use crate::cuda::device::Device;
use crate::cuda::launch::combine;
use crate::cuda::launch::permute_backward as launches;
use crate::cuda::stage::binder::{Binder, Output};
use crate::{DType, PermuteBackwardArgs, Result};

pub(in crate::cuda) fn permute_backward<D: Device>(
    binder: &mut Binder<'_, D>,
    args: PermuteBackwardArgs<'_>,
) -> Result<()> {
    args.check()?;
    let (op, [tokens, width]) = ("permute_backward", args.dy.shape());
    let (storage, rows) = (args.dy.dtype(), args.dx_rows.dtype());
    args.dy.expect_dtype(op, "dy", &STORAGE)?;
    args.dx_rows.expect_dtype(op, "dx_rows", &[storage, DType::F32])?;
    args.shared_dx.map_or(Ok(()), |shared| shared.expect_dtype(op, "shared_dx", &[rows]))?;
    let mut p = abi::PermuteBackward {
        experts: binder.input("selection.experts", &args.selection.experts)?,
        weights: binder.input("selection.weights", &args.selection.weights)?,
        token_row: binder.input("plan.token_row", &args.plan.token_row)?,
        experts_stride: row_stride(&args.selection.experts),
        weights_stride: row_stride(&args.selection.weights),
        token_row_stride: row_stride(&args.plan.token_row),
        dx_rows: binder.storage("dx_rows", &args.dx_rows)?,
        dx_rows_stride: row_stride(&args.dx_rows),
        d_row_weight: binder.input("d_row_weight", &args.d_row_weight)?,
        shared_dx: binder.optional_storage("shared_dx", &args.shared_dx)?,
        shared_stride: args.shared_dx.as_ref().map_or(0, row_stride),
        shared_row: binder.optional("shared_row", &args.shared_row)?,
        dy: binder.storage("dy", &args.dy)?,
        dy_stride: row_stride(&args.dy),
        tokens: tokens as i32,
        width: width as i32,
        slots: args.selection.experts.shape()[1] as i32,
        routed: args.experts as i32,
        null_kind: combine::null_kind(args.null_expert),
        row_count: args.dx_rows.shape()[0] as i32,
        ..Default::default()
    };
    let d_weights = binder.in_out("d_weights", args.d_weights)?;
    let dx = binder.output("dx", args.dx)?;
    (p.d_weights, p.dx) = (d_weights.address(), dx.address());
    // SAFETY: every address is of an allocation as large as the tensor it stands for.
    unsafe { binder.run(launches::calls(binder.target(), storage, rows, p)) }?;
    [d_weights, dx].into_iter().try_for_each(|output: Output<'_, f32>| binder.take(output).map(drop))
}
