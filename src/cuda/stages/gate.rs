//! Stage 2, and the bias that follows the load.

#![allow(unsafe_code, reason = "addresses of device memory; each block names what it relies on")]

use super::{Options, SelectionOutputs, row_stride};
use crate::cuda::device::Device;
use crate::cuda::tray::Tray;
use crate::cuda::{abi, gate};
use crate::{BiasUpdate, GateArgs, Result, TensorMut, TensorRef};

pub(in crate::cuda) fn gate<D: Device>(tray: &mut Tray<'_, D>, options: Options, args: GateArgs<'_>) -> Result<()> {
    args.check()?;
    let tokens = args.logits.shape()[0];
    let mut p = gate::parameters(args.config, tokens, args.training);
    p.tokens_per_warp = options.tokens_per_warp.map_or(p.tokens_per_warp, |tokens| tokens as i32);
    p.logits = tray.input("logits", &args.logits)?;
    p.logits_stride = row_stride(&args.logits);
    p.importance = tray.input("importance", &args.importance)?;
    p.bias = tray.optional("bias", &args.bias)?;
    p.mask = tray.optional("mask", &args.mask)?;
    p.k_given = tray.optional("k_given", &args.k_given)?;
    let state = tray.in_out("state", args.state)?;
    let outputs = SelectionOutputs::new(tray, args.selection, args.load, args.unmasked, args.losses)?;
    p.state = state.address();
    (p.k, p.experts) = (outputs.k.address(), outputs.experts.address());
    (p.weights, p.ranked) = (outputs.weights.address(), outputs.ranked.address());
    (p.load, p.unmasked) = (outputs.load.address(), outputs.unmasked.address());
    p.losses = outputs.losses.address();
    let workspace = gate::place(&mut p, 0);
    gate::place(&mut p, tray.workspace(workspace)?);
    if let Some(mut budget) = gate::budget(args.config, tokens) {
        (budget.importance, budget.mask, budget.k) = (p.importance, p.mask, p.k);
        let workspace = gate::place_budget(&mut budget, 0);
        gate::place_budget(&mut budget, tray.workspace(workspace)?);
        // SAFETY: every address is of an allocation as large as the tensor or workspace it stands for.
        unsafe { tray.run(gate::budget_calls(budget)) }?;
    }
    // SAFETY: as above.
    unsafe { tray.run(gate::calls(p)) }?;
    tray.take(state)?;
    outputs.take(tray)
}

pub(in crate::cuda) fn update_bias<D: Device>(
    tray: &mut Tray<'_, D>,
    update: BiasUpdate,
    load: TensorRef<'_, 1>,
    bias: TensorMut<'_, 1>,
) -> Result<()> {
    load.expect_shape("update_bias", "load", bias.shape())?;
    let candidates = bias.shape()[0] as i32;
    let load = tray.input("load", &load)?;
    let bias = tray.in_out("bias", bias)?;
    let p = abi::GateBias { load, bias: bias.address(), candidates, ..Default::default() };
    // SAFETY: both are allocations of `candidates` elements.
    unsafe { tray.run([gate::bias_call(update, p)]) }?;
    tray.take(bias).map(drop)
}
