//! Stage 2 for a routing from outside, backward.

#![allow(unsafe_code, reason = "addresses of device memory; each block names what it relies on")]

use super::row_stride;
use crate::cuda::abi;
use crate::cuda::device::Device;
use crate::cuda::launch::routing_backward as launches;
use crate::cuda::stage::binder::Binder;
use crate::{Result, Routing, RoutingBackwardArgs};

pub(in crate::cuda) fn routing_backward<D: Device>(
    binder: &mut Binder<'_, D>,
    args: RoutingBackwardArgs<'_>,
) -> Result<()> {
    args.check()?;
    let [tokens, slots] = args.selection.experts.shape();
    let mut p = abi::RoutingBackward {
        ranked: binder.input("selection.ranked", &args.selection.ranked)?,
        ranked_stride: row_stride(&args.selection.ranked),
        d_weights: binder.input("d_weights", &args.d_weights)?,
        d_weights_stride: row_stride(&args.d_weights),
        tokens: tokens as i32,
        slots: slots as i32,
        ..Default::default()
    };
    match &args.routing {
        Routing::Padded { experts, .. } => p.columns = experts.shape()[1] as i32,
        Routing::Csr { offsets, experts, .. } => {
            p.offsets = binder.input("routing.offsets", offsets)?;
            p.entries = experts.shape()[0] as i32;
        }
    }
    let d_routing = binder.output("d_routing", args.d_routing)?;
    p.d_routing = d_routing.address();
    // SAFETY: every address is of an allocation as large as the tensor it stands for.
    unsafe { binder.run(launches::calls(binder.target(), p)) }?;
    binder.take(d_routing).map(drop)
}
