//! Stage 3, backward.

#![allow(unsafe_code, reason = "addresses of device memory; each block names what it relies on")]

use super::{STORAGE, row_stride};
use crate::cuda::device::Device;
use crate::cuda::tray::{Output, Tray};
use crate::cuda::{abi, combine, permute_backward as launches};
use crate::{PermuteBackwardArgs, Result};

pub(in crate::cuda) fn permute_backward<D: Device>(
    tray: &mut Tray<'_, D>,
    args: PermuteBackwardArgs<'_>,
) -> Result<()> {
    args.check()?;
    let (storage, [tokens, width]) = (args.dy.dtype(), args.dy.shape());
    args.dy.expect_dtype("permute_backward", "dy", &STORAGE)?;
    let mut p = abi::PermuteBackward {
        experts: tray.input("selection.experts", &args.selection.experts)?,
        weights: tray.input("selection.weights", &args.selection.weights)?,
        token_row: tray.input("plan.token_row", &args.plan.token_row)?,
        experts_stride: row_stride(&args.selection.experts),
        weights_stride: row_stride(&args.selection.weights),
        token_row_stride: row_stride(&args.plan.token_row),
        dx_rows: tray.input("dx_rows", &args.dx_rows)?,
        dx_rows_stride: row_stride(&args.dx_rows),
        d_row_weight: tray.input("d_row_weight", &args.d_row_weight)?,
        shared_dx: tray.optional("shared_dx", &args.shared_dx)?,
        shared_stride: args.shared_dx.as_ref().map_or(0, row_stride),
        shared_row: tray.optional("shared_row", &args.shared_row)?,
        dy: tray.storage("dy", &args.dy)?,
        dy_stride: row_stride(&args.dy),
        tokens: tokens as i32,
        width: width as i32,
        slots: args.selection.experts.shape()[1] as i32,
        routed: args.experts as i32,
        null_kind: combine::null_kind(args.null_expert),
        row_count: args.dx_rows.shape()[0] as i32,
        ..Default::default()
    };
    let d_weights = tray.in_out("d_weights", args.d_weights)?;
    let dx = tray.output("dx", args.dx)?;
    (p.d_weights, p.dx) = (d_weights.address(), dx.address());
    // SAFETY: every address is of an allocation as large as the tensor it stands for.
    unsafe { tray.run(launches::calls(storage, p)) }?;
    [d_weights, dx].into_iter().try_for_each(|output: Output<'_, f32>| tray.take(output).map(drop))
}
