//! Stage 4, backward.

#![allow(unsafe_code, reason = "addresses of device memory; each block names what it relies on")]

use super::{Options, STORAGE, beta, last, row_stride};
use crate::cuda::device::Device;
use crate::cuda::launch::experts_backward::{Backward, Stack};
use crate::cuda::stage::binder::Binder;
use crate::{DType, ExpertsBackwardArgs, Result, Rows, TensorRef};
use std::ffi::c_void;

/// The scratch that the arguments bring stays unused: what passes between launches is in the workspace.
pub(in crate::cuda) fn experts_backward<D: Device>(
    binder: &mut Binder<'_, D>,
    options: Options,
    args: ExpertsBackwardArgs<'_>,
) -> Result<()> {
    args.check()?;
    let op = "experts_backward";
    let storage = args.x.dtype();
    args.x.expect_dtype(op, "x", &STORAGE)?;
    args.dy.expect_dtype(op, "dy", &[storage])?;
    args.dx_rows.expect_dtype(op, "dx_rows", &[storage, DType::F32])?;
    let ([tokens, hidden], [experts, _, width]) = (args.x.shape(), args.weights.w_out.shape());
    let room = args.dx_rows.shape()[0];
    let mut p = Backward::new(storage, args.activation, [tokens, room, hidden, width, experts]);
    p.x = (binder.storage("x", &args.x)?, row_stride(&args.x));
    p.dy = (binder.storage("dy", &args.dy)?, row_stride(&args.dy));
    let rows = match args.rows {
        Rows::Routed { offsets, row_token, row_weight } => {
            p.offsets = binder.input("offsets", &offsets)?;
            p.row_token = binder.input("row_token", &row_token)?;
            p.row_weight = binder.optional("row_weight", &row_weight)?;
            last(offsets.data()).map(|rows| rows.min(room))
        }
        Rows::All => Some(tokens),
    };
    let weights = &args.weights;
    p.w_in = stack(binder, storage, "w_in", &weights.w_in)?;
    p.w_out = stack(binder, storage, "w_out", &weights.w_out)?;
    p.b_in = bias(binder, storage, "b_in", &weights.b_in)?;
    p.b_out = bias(binder, storage, "b_out", &weights.b_out)?;
    if let Some(kept) = &args.hidden {
        p.kept = binder.storage("hidden", kept)?;
    }
    p.dx_rows_f32 = args.dx_rows.dtype() == DType::F32;
    let dx_rows = binder.storage_output("dx_rows", args.dx_rows)?;
    let d_row_weight = binder.output::<f32, 1>("d_row_weight", args.d_row_weight)?;
    (p.dx_rows, p.d_row_weight) = (dx_rows.address(), d_row_weight.address());
    p.beta = beta(args.accumulate);
    p.gradients_f32 = args.gradients.w_in.dtype() == DType::F32;
    let mut gradients = vec![
        binder.storage_in_out("d.w_in", args.gradients.w_in, p.beta)?,
        binder.storage_in_out("d.w_out", args.gradients.w_out, p.beta)?,
    ];
    (p.d_w_in, p.d_w_out) = (gradients[0].address(), gradients[1].address());
    let biases = [("d.b_in", args.gradients.b_in, &mut p.d_b_in), ("d.b_out", args.gradients.b_out, &mut p.d_b_out)];
    for (name, gradient, address) in biases {
        if let Some(gradient) = gradient {
            let output = binder.storage_in_out(name, gradient, p.beta)?;
            *address = output.address();
            gradients.push(output);
        }
    }
    let target = binder.target();
    let workspace = p.bind(target, 0);
    p.bind(target, binder.workspace(workspace)?);
    // SAFETY: every address is of an allocation as large as the tensor or workspace it stands for.
    unsafe { binder.run(p.calls(target, options.factors)) }?;
    gradients.into_iter().try_for_each(|gradient| binder.take(gradient).map(drop))?;
    // Past R rows mean nothing; where R stays on the device, so do they.
    let Some(rows) = rows else { return Ok(()) };
    binder.take_first(dx_rows, rows * hidden)?;
    binder.take_first(d_row_weight, rows)
}

fn stack<D: Device>(
    binder: &mut Binder<'_, D>,
    storage: DType,
    name: &'static str,
    weights: &TensorRef<'_, 3>,
) -> Result<Stack<*const c_void>> {
    weights.expect_dtype("experts_backward", name, &[storage])?;
    let [expert_stride, stride, _] = weights.strides();
    Ok(Stack { at: binder.storage(name, weights)?, expert_stride: expert_stride as i64, stride: stride as i64 })
}

fn bias<D: Device>(
    binder: &mut Binder<'_, D>,
    storage: DType,
    name: &'static str,
    bias: &Option<TensorRef<'_, 2>>,
) -> Result<(*const c_void, i64)> {
    bias.map_or(Ok(()), |bias| bias.expect_dtype("experts_backward", name, &[storage]))?;
    Ok((binder.optional_storage(name, bias)?, bias.as_ref().map_or(0, row_stride)))
}
