//! Stage 2, and the bias that follows the load.

#![allow(unsafe_code, reason = "addresses of device memory; each block names what it relies on")]

use super::{Options, SelectionOutputs, row_stride};
use crate::cuda::abi;
use crate::cuda::device::Device;
use crate::cuda::launch::gate;
use crate::cuda::stage::binder::Binder;
use crate::{BiasUpdate, GateArgs, Result, TensorMut, TensorRef};

pub(in crate::cuda) fn gate<D: Device>(binder: &mut Binder<'_, D>, options: Options, args: GateArgs<'_>) -> Result<()> {
    args.check()?;
    let tokens = args.logits.shape()[0];
    let mut p = gate::parameters(args.config, tokens, args.training);
    p.tokens_per_warp = options.tokens_per_warp.map_or(p.tokens_per_warp, |tokens| tokens as i32);
    p.logits = binder.input("logits", &args.logits)?;
    p.logits_stride = row_stride(&args.logits);
    p.importance = binder.input("importance", &args.importance)?;
    p.bias = binder.optional("bias", &args.bias)?;
    p.mask = binder.optional("mask", &args.mask)?;
    p.k_given = binder.optional("k_given", &args.k_given)?;
    let state = binder.in_out("state", args.state)?;
    let outputs = SelectionOutputs::new(binder, args.selection, args.load, args.unmasked, args.losses)?;
    p.state = state.address();
    (p.k, p.experts) = (outputs.k.address(), outputs.experts.address());
    (p.weights, p.ranked) = (outputs.weights.address(), outputs.ranked.address());
    (p.load, p.unmasked) = (outputs.load.address(), outputs.unmasked.address());
    p.losses = outputs.losses.address();
    let target = binder.target();
    let workspace = gate::bind(target, &mut p, 0);
    gate::bind(target, &mut p, binder.workspace(workspace)?);
    if let Some(mut budget) = gate::budget(args.config, tokens) {
        (budget.importance, budget.mask, budget.k) = (p.importance, p.mask, p.k);
        let workspace = gate::bind_budget(target, &mut budget, 0);
        gate::bind_budget(target, &mut budget, binder.workspace(workspace)?);
        // SAFETY: every address is of an allocation as large as the tensor or workspace it stands for.
        unsafe { binder.run(gate::budget_calls(target, budget)) }?;
    }
    // SAFETY: as above.
    unsafe { binder.run(gate::calls(target, p)) }?;
    binder.take(state)?;
    outputs.take(binder)
}

pub(in crate::cuda) fn update_bias<D: Device>(
    binder: &mut Binder<'_, D>,
    update: BiasUpdate,
    load: TensorRef<'_, 1>,
    bias: TensorMut<'_, 1>,
) -> Result<()> {
    load.expect_shape("update_bias", "load", bias.shape())?;
    let candidates = bias.shape()[0] as i32;
    let load = binder.input("load", &load)?;
    let bias = binder.in_out("bias", bias)?;
    let p = abi::GateBias { load, bias: bias.address(), candidates, ..Default::default() };
    // SAFETY: both are allocations of `candidates` elements.
    unsafe { binder.run([gate::bias_call(binder.target(), update, p)]) }?;
    binder.take(bias).map(drop)
}
