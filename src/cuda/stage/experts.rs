//! Stage 4.

#![allow(unsafe_code, reason = "addresses of device memory; each block names what it relies on")]

use super::{Options, STORAGE, last, row_stride};
use crate::cuda::abi;
use crate::cuda::device::Device;
use crate::cuda::launch::experts;
use crate::cuda::stage::binder::{Binder, Output};
use crate::{DType, ExpertsArgs, Result, Rows, TensorRef};

pub(in crate::cuda) fn experts<D: Device>(
    binder: &mut Binder<'_, D>,
    options: Options,
    args: ExpertsArgs<'_>,
) -> Result<()> {
    args.check()?;
    let op = "experts";
    let storage = args.x.dtype();
    args.x.expect_dtype(op, "x", &STORAGE)?;
    args.out.expect_dtype(op, "out", &[storage, DType::F32])?;
    let ([tokens, hidden], [count, _, width]) = (args.x.shape(), args.weights.w_out.shape());
    let room = args.out.shape()[0];
    let mut first = product(binder, storage, &args.weights.w_in, &args.weights.b_in, ["w_in", "b_in"])?;
    let mut second = product(binder, storage, &args.weights.w_out, &args.weights.b_out, ["w_out", "b_out"])?;
    let (most, rows) = match args.rows {
        Rows::Routed { offsets, row_token, .. } => {
            first.offsets = binder.input("offsets", &offsets)?;
            first.row_token = binder.input("row_token", &row_token)?;
            (room, last(offsets.data()).map(|rows| rows.min(room)))
        }
        Rows::All => (tokens, Some(tokens)),
    };
    (second.offsets, second.rows) = (first.offsets, most as i32);
    let stride = experts::activated_stride(width);
    let activated = binder.scratch("activated", room * stride * storage.size())?;
    let out_f32 = i32::from(args.out.dtype() == DType::F32);
    let out = binder.storage_output("out", args.out)?;
    let kept = match args.hidden {
        None => None,
        Some(kept) => {
            first.hidden_f32 = i32::from(kept.dtype() == DType::F32);
            first.hidden_stride = kept.shape()[1] as i64;
            Some(binder.storage_output("hidden", kept)?)
        }
    };
    let hidden_width = first.hidden_stride as usize;
    first = abi::GroupedGemm {
        a: binder.storage("x", &args.x)?,
        out: activated as *mut _,
        hidden: kept.as_ref().map_or(std::ptr::null_mut(), Output::address),
        a_stride: row_stride(&args.x),
        out_stride: stride as i64,
        rows: second.rows,
        a_rows: tokens as i32,
        columns: width as i32,
        activation: experts::activation(args.activation),
        out_f32: i32::from(storage == DType::F32),
        ..first
    };
    second = abi::GroupedGemm {
        a: activated as *const _,
        out: out.address(),
        a_stride: stride as i64,
        out_stride: hidden as i64,
        a_rows: room as i32,
        columns: hidden as i32,
        activation: abi::ACTIVATION_NONE,
        out_f32,
        ..second
    };
    debug_assert!(first.experts as usize == count && second.experts as usize == count);
    let target = binder.target();
    for p in [first, second] {
        // SAFETY: every address is of an allocation as large as the tensor or workspace it stands for.
        unsafe { binder.run(experts::calls(target, storage, options.factors, p)) }?;
    }
    // Past R rows mean nothing; where R stays on the device, so do they.
    let Some(rows) = rows else { return Ok(()) };
    kept.map_or(Ok(()), |kept| binder.take_first(kept, rows * hidden_width))?;
    binder.take_first(out, rows * hidden)
}

/// A product with the weights `[E, rows, depth]` and biases of some experts; the rest is to be set.
fn product<D: Device>(
    binder: &mut Binder<'_, D>,
    storage: DType,
    weights: &TensorRef<'_, 3>,
    bias: &Option<TensorRef<'_, 2>>,
    [weights_name, bias_name]: [&'static str; 2],
) -> Result<abi::GroupedGemm> {
    weights.expect_dtype("experts", weights_name, &[storage])?;
    bias.map_or(Ok(()), |bias| bias.expect_dtype("experts", bias_name, &[storage]))?;
    let ([experts, _, depth], [expert_stride, ..]) = (weights.shape(), weights.strides());
    Ok(abi::GroupedGemm {
        b: binder.storage(weights_name, weights)?,
        bias: binder.optional_storage(bias_name, bias)?,
        b_expert_stride: expert_stride as i64,
        b_stride: row_stride(weights),
        bias_stride: bias.as_ref().map_or(0, row_stride),
        experts: experts as i32,
        depth: depth as i32,
        ..Default::default()
    })
}
