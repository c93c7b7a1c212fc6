//! Stage 5, backward.

#![allow(unsafe_code, reason = "addresses of device memory; each block names what it relies on")]

use super::{STORAGE, beta, row_stride};
use crate::cuda::abi;
use crate::cuda::device::Device;
use crate::cuda::launch::combine;
use crate::cuda::launch::combine_backward as launches;
use crate::cuda::stage::binder::Binder;
use crate::{CombineBackwardArgs, DType, NullExpert, Result};

pub(in crate::cuda) fn combine_backward<D: Device>(
    binder: &mut Binder<'_, D>,
    args: CombineBackwardArgs<'_>,
) -> Result<()> {
    args.check()?;
    let (op, storage, [tokens, width]) = ("combine_backward", args.x.dtype(), args.x.shape());
    args.x.expect_dtype(op, "x", &STORAGE)?;
    args.dy.expect_dtype(op, "dy", &[storage])?;
    args.constants.map_or(Ok(()), |constants| constants.expect_dtype(op, "constants", &[storage]))?;
    let mut p = abi::CombineBackward {
        experts: binder.input("selection.experts", &args.selection.experts)?,
        weights: binder.input("selection.weights", &args.selection.weights)?,
        experts_stride: row_stride(&args.selection.experts),
        weights_stride: row_stride(&args.selection.weights),
        x: binder.storage("x", &args.x)?,
        x_stride: row_stride(&args.x),
        constants: binder.optional_storage("constants", &args.constants)?,
        constants_stride: args.constants.as_ref().map_or(0, row_stride),
        dy: binder.storage("dy", &args.dy)?,
        dy_stride: row_stride(&args.dy),
        tokens: tokens as i32,
        width: width as i32,
        slots: args.selection.experts.shape()[1] as i32,
        routed: args.experts as i32,
        nulls: match (args.null_expert, args.constants) {
            (NullExpert::Zero, _) | (NullExpert::Constant, None) => 0,
            (NullExpert::Copy, _) => i32::MAX,
            (NullExpert::Constant, Some(constants)) => constants.shape()[0] as i32,
        },
        null_kind: combine::null_kind(args.null_expert),
        ..Default::default()
    };
    let d_weights = binder.output("d_weights", args.d_weights)?;
    p.d_weights = d_weights.address();
    let mut d_constants = None;
    if let Some(to) = args.d_constants {
        p.gradients = to.shape()[0] as i32;
        (p.beta, p.gradients_f32) = (beta(args.accumulate), i32::from(to.dtype() == DType::F32));
        let output = binder.storage_in_out("d_constants", to, p.beta)?;
        p.d_constants = output.address();
        d_constants = Some(output);
    }
    let target = binder.target();
    let workspace = launches::bind(target, &mut p, 0);
    launches::bind(target, &mut p, binder.workspace(workspace)?);
    // SAFETY: every address is of an allocation as large as the tensor or workspace it stands for.
    unsafe { binder.run(launches::calls(target, storage, p)) }?;
    binder.take(d_weights)?;
    d_constants.map_or(Ok(()), |output| binder.take(output).map(drop))
}
