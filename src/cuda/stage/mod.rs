//! The stages: from checked tensors to launches, the same for tensors on the device and in host memory.

pub(super) mod binder;
mod combine;
mod combine_backward;
mod experts;
mod experts_backward;
mod gate;
mod gate_backward;
mod importance;
mod permute;
mod permute_backward;
mod router;
mod routing;
mod routing_backward;

pub(super) use combine::combine;
pub(super) use combine_backward::combine_backward;
pub(super) use experts::experts;
pub(super) use experts_backward::experts_backward;
pub(super) use gate::{gate, update_bias};
pub(super) use gate_backward::gate_backward;
pub(super) use importance::importance;
pub(super) use permute::permute;
pub(super) use permute_backward::permute_backward;
pub(super) use router::router;
pub(super) use routing::routing;
pub(super) use routing_backward::routing_backward;

use crate::cuda::device::Device;
use crate::cuda::launch::experts::Factors;
use crate::{DType, Result, SelectionMut, Slice, TensorMut, TensorRef};
use binder::{Binder, Output};

/// What is chosen once for all calls.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Options {
    /// Tokens for each warp of the gate, whatever their number.
    pub tokens_per_warp: Option<usize>,
    /// How f32 operands are multiplied.
    pub factors: Factors,
}

/// What activations and weights may be stored as.
pub(super) const STORAGE: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

/// The distance between a matrix's rows.
pub(super) fn row_stride<const R: usize>(view: &TensorRef<'_, R>) -> i64 {
    view.strides()[R - 2] as i64
}

/// Factor on what a weight's gradient already holds.
fn beta(accumulate: bool) -> f32 {
    if accumulate { 1.0 } else { 0.0 }
}

/// The last of some offsets, where the host knows it: rows that there are.
fn last(offsets: Slice<'_>) -> Option<usize> {
    let Slice::I32(offsets) = offsets else { return None };
    offsets.last().and_then(|&rows| usize::try_from(rows).ok())
}

/// The selection's outputs, which gate and routing share.
struct SelectionOutputs<'a> {
    k: Output<'a, i32>,
    experts: Output<'a, i32>,
    weights: Output<'a, f32>,
    ranked: Output<'a, i32>,
    load: Output<'a, i32>,
    unmasked: Output<'a, i32>,
    losses: Output<'a, f32>,
}

impl<'a> SelectionOutputs<'a> {
    fn new<D: Device>(
        binder: &mut Binder<'_, D>,
        selection: SelectionMut<'a>,
        load: TensorMut<'a, 1>,
        unmasked: TensorMut<'a, 1>,
        losses: TensorMut<'a, 1>,
    ) -> Result<Self> {
        Ok(Self {
            k: binder.output("k", selection.k)?,
            experts: binder.output("experts", selection.experts)?,
            weights: binder.output("weights", selection.weights)?,
            ranked: binder.output("ranked", selection.ranked)?,
            load: binder.output("load", load)?,
            unmasked: binder.output("unmasked", unmasked)?,
            losses: binder.output("losses", losses)?,
        })
    }

    fn take<D: Device>(self, binder: &Binder<'_, D>) -> Result<()> {
        let integers = [self.k, self.experts, self.ranked, self.load, self.unmasked];
        integers.into_iter().try_for_each(|output| binder.take(output).map(drop))?;
        [self.weights, self.losses].into_iter().try_for_each(|output| binder.take(output).map(drop))
    }
}
