//! Stage 2, backward, with the router's two products.

#![allow(unsafe_code, reason = "addresses of device memory; each block names what it relies on")]

use super::{Options, STORAGE, beta, row_stride};
use crate::cuda::abi;
use crate::cuda::device::Device;
use crate::cuda::launch::experts::{Factors, Operands};
use crate::cuda::launch::gate_backward as launches;
use crate::cuda::launch::gradient_products;
use crate::cuda::stage::binder::{Binder, Output};
use crate::{DType, GateBackwardArgs, Result, RouterBackward, TensorMut, TensorRef};
use std::ffi::c_void;

pub(in crate::cuda) fn gate_backward<D: Device>(
    binder: &mut Binder<'_, D>,
    options: Options,
    mut args: GateBackwardArgs<'_>,
) -> Result<()> {
    args.check()?;
    let (op, storage, [tokens, width]) = ("gate_backward", args.x.dtype(), args.x.shape());
    args.x.expect_dtype(op, "x", &STORAGE)?;
    args.dx.expect_dtype(op, "dx", &[storage])?;
    let mut p = abi::GateDx {
        dx_rows: binder.input("dx_rows", &args.dx_rows)?,
        dx_rows_stride: row_stride(&args.dx_rows),
        tokens: tokens as i32,
        width: width as i32,
        ..Default::default()
    };
    if let Some(router) = args.router.take() {
        p.of_router = binder.scratch("of_router", tokens * width * size_of::<f32>())? as *const f32;
        p.of_router_stride = width as i64;
        way_back(binder, options, &args, router, p.of_router.cast_mut())?;
    }
    let dx = binder.storage_output("dx", args.dx)?;
    p.dx = dx.address();
    // SAFETY: every address is of an allocation as large as the tensor it stands for.
    unsafe { binder.run(launches::dx_calls(binder.target(), storage, p)) }?;
    binder.take(dx).map(drop)
}

/// `dz`, `dW_r = dzᵀ x` and `dz W_r`, the last to `of_router`.
fn way_back<D: Device>(
    binder: &mut Binder<'_, D>,
    options: Options,
    args: &GateBackwardArgs<'_>,
    router: RouterBackward<'_>,
    of_router: *mut f32,
) -> Result<()> {
    let op = "gate_backward";
    let ([tokens, width], [candidates, _]) = (args.x.shape(), router.weight.shape());
    let (storage, weights) = (args.x.dtype(), router.weight.dtype());
    router.weight.expect_dtype(op, "router.weight", &[storage, DType::F32])?;
    let weight = binder.storage("router.weight", &router.weight)?;
    let weight_stride = row_stride(&router.weight);
    let x = abi::RoutedOperand {
        rows: binder.storage("x", &args.x)?,
        // Padding takes no part in `dW_r`, whatever its `x` holds: its `dz` is 0, but 0 · NaN is not.
        mask: binder.optional("mask", &args.mask)?,
        stride: row_stride(&args.x),
        sources: tokens as i32,
        columns: width as i32,
        ..Default::default()
    };
    let scores = [&router.logits, &args.d_weights];
    let d_logits = d_logits(binder, options, args, scores, [&router.load, &router.unmasked], router.d_logits)?;
    let dz = abi::RoutedOperand {
        rows: d_logits.address().cast::<c_void>(),
        stride: candidates as i64,
        sources: tokens as i32,
        columns: candidates as i32,
        ..Default::default()
    };
    let (beta, out_f32) = (beta(router.accumulate), i32::from(router.d_weight.dtype() == DType::F32));
    let d_weight = binder.storage_in_out("d.router.weight", router.d_weight, beta)?;
    let gradient = abi::WeightGradient {
        left: dz,
        right: x,
        out: d_weight.address(),
        out_expert_stride: (candidates * width) as i64,
        out_stride: width as i64,
        rows: tokens as i32,
        experts: 1,
        out_f32,
        beta,
        ..Default::default()
    };
    let parts = gradient_products::parts(binder.target(), tokens, [candidates, width]) * size_of::<f32>();
    let parts = binder.scratch("parts of d.router.weight", parts)? as *mut f32;
    let product = abi::GroupedGemm {
        a: dz.rows,
        b: weight,
        out: of_router.cast(),
        a_stride: dz.stride,
        b_stride: weight_stride,
        out_stride: width as i64,
        rows: tokens as i32,
        a_rows: tokens as i32,
        experts: 1,
        depth: candidates as i32,
        columns: width as i32,
        activation: abi::ACTIVATION_NONE,
        out_f32: 1,
        ..Default::default()
    };
    let operands = Operands { rows: DType::F32, weights };
    // SAFETY: every address is of an allocation as large as the tensor or scratch it stands for.
    unsafe {
        binder.run(gradient_products::divided_weight_gradient(binder.target(), storage, gradient, parts))?;
        binder.run(gradient_products::across(binder.target(), operands, Factors::F32, product))?;
    }
    binder.take(d_logits)?;
    binder.take(d_weight).map(drop)
}

/// `dz`, where the caller has room for it.
fn d_logits<'t, D: Device>(
    binder: &mut Binder<'_, D>,
    options: Options,
    args: &GateBackwardArgs<'_>,
    [logits, d_weights]: [&TensorRef<'_, 2>; 2],
    [load, unmasked]: [&TensorRef<'_, 1>; 2],
    to: TensorMut<'t, 2>,
) -> Result<Output<'t, f32>> {
    let mut p = launches::parameters(args.config, args.x.shape()[0], args.loss_scale);
    p.tokens_per_warp = options.tokens_per_warp.map_or(p.tokens_per_warp, |tokens| tokens as i32);
    p.slots = args.selection.experts.shape()[1] as i32;
    p.logits = binder.input("logits", logits)?;
    p.mask = binder.optional("mask", &args.mask)?;
    p.experts = binder.input("selection.experts", &args.selection.experts)?;
    p.ranked = binder.input("selection.ranked", &args.selection.ranked)?;
    p.d_weights = binder.input("d_weights", d_weights)?;
    (p.logits_stride, p.experts_stride) = (row_stride(logits), row_stride(&args.selection.experts));
    (p.ranked_stride, p.d_weights_stride) = (row_stride(&args.selection.ranked), row_stride(d_weights));
    p.load = binder.input("load", load)?;
    p.unmasked = binder.input("unmasked", unmasked)?;
    let d_logits = binder.output("d_logits", to)?;
    p.d_logits = d_logits.address();
    // SAFETY: every address is of an allocation as large as the tensor it stands for.
    unsafe { binder.run(launches::calls(binder.target(), p)) }?;
    Ok(d_logits)
}
