//! The way back by kernels on host tensors, for all stages but the experts: the bodies of
//! [`Staged`](super::Staged)'s methods.

#![allow(unsafe_code, reason = "addresses of device memory; each block names what it relies on")]

use super::device::Device;
use super::staged::{STORAGE, row_stride};
use super::tray::{Output, Tray};
use super::{abi, combine, combine_backward, gate_backward, permute_backward, routing_backward};
use crate::{
    Buffer, CombineBackwardArgs, GateBackwardArgs, NullExpert, PermuteBackwardArgs, Result, RouterBackward, Routing,
    RoutingBackwardArgs, Slice, SliceMut, Storage, TensorMut, TensorRef,
};

pub(super) fn combine<D: Device>(mut tray: Tray<'_, D>, args: CombineBackwardArgs<'_>) -> Result<()> {
    args.check()?;
    let (op, storage, [tokens, width]) = ("combine_backward", args.x.dtype(), args.x.shape());
    args.x.expect_dtype(op, "x", &STORAGE)?;
    args.dy.expect_dtype(op, "dy", &[storage])?;
    args.constants.map_or(Ok(()), |constants| constants.expect_dtype(op, "constants", &[storage]))?;
    let mut p = abi::CombineBackward {
        experts: tray.input("selection.experts", &args.selection.experts)?,
        weights: tray.input("selection.weights", &args.selection.weights)?,
        experts_stride: row_stride(&args.selection.experts),
        weights_stride: row_stride(&args.selection.weights),
        x: tray.storage("x", &args.x)?,
        x_stride: row_stride(&args.x),
        constants: tray.optional_storage("constants", &args.constants)?,
        constants_stride: args.constants.as_ref().map_or(0, row_stride),
        dy: tray.storage("dy", &args.dy)?,
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
    let d_weights = tray.output("d_weights", args.d_weights)?;
    p.d_weights = d_weights.address();
    let mut d_constants = None;
    if let Some(to) = args.d_constants {
        to.expect_dtype(op, "d_constants", &[storage])?;
        p.gradients = to.shape()[0] as i32;
        let output = tray.storage_output("d_constants", to)?;
        p.d_constants = output.address();
        d_constants = Some(output);
    }
    let workspace = combine_backward::place(&mut p, 0);
    combine_backward::place(&mut p, tray.workspace(workspace)?);
    // SAFETY: every address is of an allocation as large as the tensor or workspace it stands for.
    unsafe { tray.run(combine_backward::calls(storage, p)) }?;
    tray.take(d_weights)?;
    d_constants.map_or(Ok(()), |output| tray.take(output))
}

pub(super) fn permute<D: Device>(mut tray: Tray<'_, D>, args: PermuteBackwardArgs<'_>) -> Result<()> {
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
    unsafe { tray.run(permute_backward::calls(storage, p)) }?;
    [d_weights, dx].into_iter().try_for_each(|output: Output<'_, f32>| tray.take(output))
}

/// `tokens_per_warp` overrides what the number of tokens says.
pub(super) fn gate<D: Device>(
    mut tray: Tray<'_, D>,
    mut args: GateBackwardArgs<'_>,
    tokens_per_warp: Option<usize>,
) -> Result<()> {
    args.check()?;
    let (op, storage, [tokens, width]) = ("gate_backward", args.x.dtype(), args.x.shape());
    args.x.expect_dtype(op, "x", &STORAGE)?;
    args.dx.expect_dtype(op, "dx", &[storage])?;
    let of_router = match args.router.take() {
        None => None,
        Some(mut router) => {
            d_logits(&mut tray, &args, &mut router, tokens_per_warp)?;
            Some(router_products(&args, router)?)
        }
    };
    let of_router = of_router.as_ref().map(|part| TensorRef::new(part, [tokens, width])).transpose()?;
    let mut p = abi::GateDx {
        dx_rows: tray.input("dx_rows", &args.dx_rows)?,
        dx_rows_stride: row_stride(&args.dx_rows),
        of_router: tray.optional("of_router", &of_router)?,
        of_router_stride: of_router.as_ref().map_or(0, row_stride),
        tokens: tokens as i32,
        width: width as i32,
        ..Default::default()
    };
    let dx = tray.storage_output("dx", args.dx)?;
    p.dx = dx.address();
    // SAFETY: every address is of an allocation as large as the tensor it stands for.
    unsafe { tray.run(gate_backward::dx_calls(storage, p)) }?;
    tray.take(dx)
}

fn d_logits<D: Device>(
    tray: &mut Tray<'_, D>,
    args: &GateBackwardArgs<'_>,
    router: &mut RouterBackward<'_>,
    tokens_per_warp: Option<usize>,
) -> Result<()> {
    let mut p = gate_backward::parameters(args.config, args.x.shape()[0]);
    p.tokens_per_warp = tokens_per_warp.map_or(p.tokens_per_warp, |tokens| tokens as i32);
    p.slots = args.selection.experts.shape()[1] as i32;
    p.logits = tray.input("logits", &router.logits)?;
    p.mask = tray.optional("mask", &args.mask)?;
    p.experts = tray.input("selection.experts", &args.selection.experts)?;
    p.ranked = tray.input("selection.ranked", &args.selection.ranked)?;
    p.d_weights = tray.input("d_weights", &args.d_weights)?;
    (p.logits_stride, p.experts_stride) = (row_stride(&router.logits), row_stride(&args.selection.experts));
    (p.ranked_stride, p.d_weights_stride) = (row_stride(&args.selection.ranked), row_stride(&args.d_weights));
    p.load = tray.input("load", &router.load)?;
    p.unmasked = tray.input("unmasked", &router.unmasked)?;
    let d_logits = tray.output("d_logits", router.d_logits.reborrow())?;
    p.d_logits = d_logits.address();
    // SAFETY: every address is of an allocation as large as the tensor it stands for.
    unsafe { tray.run(gate_backward::calls(p)) }?;
    tray.take(d_logits)
}

/// `dz W_r`, `[T, D]`, and `dW_r = dzᵀ x` into its place: the two products of the router's gradient, on the host until they
/// have kernels. Padding takes no part in `dW_r`, whatever its `x` holds: its `dz` is 0, but 0 · NaN is not.
fn router_products(args: &GateBackwardArgs<'_>, router: RouterBackward<'_>) -> Result<Vec<f32>> {
    let op = "gate_backward";
    let ([tokens, width], [candidates, _]) = (args.x.shape(), router.weight.shape());
    router.weight.expect_dtype(op, "router.weight", &STORAGE)?;
    router.d_weight.expect_dtype(op, "d.router.weight", &[router.weight.dtype()])?;
    let (x, weight) = (widened(&args.x), widened(&router.weight));
    let mask = args.mask.as_ref().and_then(TensorRef::elements::<u8>);
    let dz = router.d_logits.into_elements::<f32>().unwrap_or_default();
    let (mut of_x, mut of_weight) = (vec![0.0f64; tokens * width], vec![0.0f64; candidates * width]);
    for t in 0..tokens {
        let is_token = mask.is_none_or(|mask| mask[t] != 0);
        let (x, of_x) = (&x[t * width..][..width], &mut of_x[t * width..][..width]);
        for (e, dz) in dz[t * candidates..][..candidates].iter().enumerate() {
            let dz = f64::from(*dz);
            of_x.iter_mut().zip(&weight[e * width..]).for_each(|(sum, w)| *sum += dz * f64::from(*w));
            if is_token {
                of_weight[e * width..].iter_mut().zip(x).for_each(|(sum, x)| *sum += dz * f64::from(*x));
            }
        }
    }
    let rounded = |values: &[f64]| values.iter().map(|v| *v as f32).collect::<Vec<f32>>();
    round_into(router.d_weight, &rounded(&of_weight));
    Ok(rounded(&of_x))
}

/// A matrix of a storage type, without what lies between its rows.
fn widened(view: &TensorRef<'_, 2>) -> Vec<f32> {
    fn of<S: Storage>(elements: &[S], [rows, cols]: [usize; 2], stride: usize) -> Vec<f32> {
        (0..rows).flat_map(|row| elements[row * stride..][..cols].iter().map(|v| v.to_f32())).collect()
    }
    let (shape, [stride, _]) = (view.shape(), view.strides());
    match view.data() {
        Slice::F32(s) => of(s, shape, stride),
        Slice::Bf16(s) => of(s, shape, stride),
        Slice::F16(s) => of(s, shape, stride),
        Slice::I32(_) | Slice::U8(_) => Vec::new(),
    }
}

/// Values rounded once to the type of their place.
fn round_into(to: TensorMut<'_, 2>, values: &[f32]) {
    let rounded = Buffer::from_f32(to.as_ref().dtype(), values);
    match (to.into_data(), Slice::from(&rounded)) {
        (SliceMut::F32(to), Slice::F32(from)) => to.copy_from_slice(from),
        (SliceMut::Bf16(to), Slice::Bf16(from)) => to.copy_from_slice(from),
        (SliceMut::F16(to), Slice::F16(from)) => to.copy_from_slice(from),
        _ => {}
    }
}

pub(super) fn routing<D: Device>(mut tray: Tray<'_, D>, args: RoutingBackwardArgs<'_>) -> Result<()> {
    args.check()?;
    let [tokens, slots] = args.selection.experts.shape();
    let mut p = abi::RoutingBackward {
        ranked: tray.input("selection.ranked", &args.selection.ranked)?,
        ranked_stride: row_stride(&args.selection.ranked),
        d_weights: tray.input("d_weights", &args.d_weights)?,
        d_weights_stride: row_stride(&args.d_weights),
        tokens: tokens as i32,
        slots: slots as i32,
        ..Default::default()
    };
    match &args.routing {
        Routing::Padded { experts, .. } => p.columns = experts.shape()[1] as i32,
        Routing::Csr { offsets, experts, .. } => {
            p.offsets = tray.input("routing.offsets", offsets)?;
            p.entries = experts.shape()[0] as i32;
        }
    }
    let d_routing = tray.output("d_routing", args.d_routing)?;
    p.d_routing = d_routing.address();
    // SAFETY: every address is of an allocation as large as the tensor it stands for.
    unsafe { tray.run(routing_backward::calls(p)) }?;
    tray.take(d_routing)
}
