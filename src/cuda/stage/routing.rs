//! Stage 2 for a routing from outside.

#![allow(unsafe_code, reason = "addresses of device memory; each block names what it relies on")]

use super::{Options, SelectionOutputs, row_stride};
use crate::cuda::device::Device;
use crate::cuda::launch::gate;
use crate::cuda::stage::binder::Binder;
use crate::{Result, Routing, RoutingArgs};

pub(in crate::cuda) fn routing<D: Device>(
    binder: &mut Binder<'_, D>,
    options: Options,
    args: RoutingArgs<'_>,
) -> Result<()> {
    args.check()?;
    let [tokens, slots] = args.selection.experts.shape();
    let mut p = gate::routing(tokens, args.candidates, slots);
    p.tokens_per_warp = options.tokens_per_warp.map_or(p.tokens_per_warp, |tokens| tokens as i32);
    match &args.routing {
        Routing::Padded { experts, weights } => {
            p.given_experts = binder.input("routing.experts", experts)?;
            p.given_weights = binder.input("routing.weights", weights)?;
            (p.experts_stride, p.weights_stride) = (row_stride(experts), row_stride(weights));
            p.columns = experts.shape()[1] as i32;
        }
        Routing::Csr { offsets, experts, weights } => {
            p.offsets = binder.input("routing.offsets", offsets)?;
            p.given_experts = binder.input("routing.experts", experts)?;
            p.given_weights = binder.input("routing.weights", weights)?;
            p.entries = experts.shape()[0] as i32;
        }
    }
    p.mask = binder.optional("mask", &args.mask)?;
    let outputs = SelectionOutputs::new(binder, args.selection, args.load, args.unmasked, args.losses)?;
    (p.k, p.experts) = (outputs.k.address(), outputs.experts.address());
    (p.weights, p.ranked) = (outputs.weights.address(), outputs.ranked.address());
    (p.load, p.unmasked) = (outputs.load.address(), outputs.unmasked.address());
    p.losses = outputs.losses.address();
    let target = binder.target();
    let workspace = gate::bind_routing(target, &mut p, 0);
    gate::bind_routing(target, &mut p, binder.workspace(workspace)?);
    // SAFETY: every address is of an allocation as large as the tensor or workspace it stands for.
    unsafe { binder.run(gate::routing_calls(target, p)) }?;
    outputs.take(binder)
}
