//! Stage 5.

#![allow(unsafe_code, reason = "addresses of device memory; each block names what it relies on")]

use super::{STORAGE, row_stride};
use crate::cuda::abi;
use crate::cuda::device::Device;
use crate::cuda::launch::combine;
use crate::cuda::stage::binder::Binder;
use crate::{CombineArgs, DType, NullExpert, Result};

pub(in crate::cuda) fn combine<D: Device>(binder: &mut Binder<'_, D>, args: CombineArgs<'_>) -> Result<()> {
    args.check()?;
    let [tokens, width] = args.x.shape();
    let (storage, rows) = (args.x.dtype(), args.rows.dtype());
    check_types(&args)?;
    let mut p = abi::Combine {
        experts: binder.input("selection.experts", &args.selection.experts)?,
        weights: binder.input("selection.weights", &args.selection.weights)?,
        token_row: binder.input("plan.token_row", &args.plan.token_row)?,
        experts_stride: row_stride(&args.selection.experts),
        weights_stride: row_stride(&args.selection.weights),
        token_row_stride: row_stride(&args.plan.token_row),
        rows: binder.storage("rows", &args.rows)?,
        rows_stride: row_stride(&args.rows),
        shared: binder.optional_storage("shared", &args.shared)?,
        shared_stride: args.shared.as_ref().map_or(0, row_stride),
        shared_row: binder.optional("shared_row", &args.shared_row)?,
        x: binder.storage("x", &args.x)?,
        x_stride: row_stride(&args.x),
        constants: binder.optional_storage("constants", &args.constants)?,
        constants_stride: args.constants.as_ref().map_or(0, row_stride),
        tokens: tokens as i32,
        width: width as i32,
        slots: args.selection.experts.shape()[1] as i32,
        routed: args.experts as i32,
        nulls: args.constants.map_or(i32::MAX, |constants| constants.shape()[0] as i32),
        null_kind: match args.null_expert {
            NullExpert::Zero => abi::NULL_ZERO,
            NullExpert::Copy => abi::NULL_COPY,
            NullExpert::Constant => abi::NULL_CONSTANT,
        },
        row_count: args.rows.shape()[0] as i32,
        ..Default::default()
    };
    let y = binder.storage_output("y", args.y)?;
    p.y = y.address();
    // SAFETY: every address is of an allocation as large as the tensor it stands for.
    unsafe { binder.run(combine::calls(binder.target(), storage, rows, p)) }?;
    binder.take(y).map(drop)
}

/// Refuses types that combine has no kernel for.
fn check_types(args: &CombineArgs<'_>) -> Result<()> {
    let (op, storage, rows) = ("combine", args.x.dtype(), args.rows.dtype());
    args.x.expect_dtype(op, "x", &STORAGE)?;
    args.rows.expect_dtype(op, "rows", &[storage, DType::F32])?;
    args.shared.map_or(Ok(()), |shared| shared.expect_dtype(op, "shared", &[rows]))?;
    args.constants.map_or(Ok(()), |constants| constants.expect_dtype(op, "constants", &[storage]))?;
    args.y.expect_dtype(op, "y", &[storage])
}
