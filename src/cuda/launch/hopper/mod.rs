//! Which products run on Hopper's own kernels, and how many clusters (`kernels/experts/hopper`): those of 16-bit operands whose rows
//! and matrices all are at multiples of 16 bytes, as the tensor memory accelerator wants them. What only the device knows decides
//! nothing.

mod gradients;
mod maps;
mod products;
#[cfg(test)]
mod tests;
mod ways;

pub(super) use gradients::{hidden_gradient, weight_gradient};
pub(super) use products::{across, along};
pub use ways::{Way, in_another_way};

use crate::cuda::abi;
use crate::cuda::device::{Architecture, Launch, Target, TensorBoxes};
use crate::cuda::launch::experts::ragged_experts;

/// Of a block: one warpgroup that brings, two that multiply.
const THREADS: u32 = 384;
/// Of a cluster.
const BLOCKS: usize = 2;

/// As many clusters as have units and fit the device, if it is Hopper.
fn launch(target: Target, kernel: &'static str, units: usize) -> Option<Launch> {
    let clusters = units.min((target.multiprocessors / BLOCKS).max(1));
    let grid = [(BLOCKS * clusters) as u32, 1, 1];
    let shared = abi::HOPPER_SHARED_BYTES as u32;
    (target.architecture == Architecture::Hopper && clusters > 0).then_some(Launch {
        kernel,
        grid,
        threads: THREADS,
        shared,
        cluster: BLOCKS as u32,
    })
}

/// Units of a product of rows when every expert's rows end in a unit of their own. `halves` of a unit's columns are the output's.
fn most_units(halves: usize, p: &abi::GroupedGemm) -> usize {
    let width = abi::HOPPER_TILE_COLUMNS as usize / halves;
    let rows = p.rows as usize;
    (rows / abi::HOPPER_TILE_ROWS as usize + ragged_experts(p)) * (p.columns as usize).div_ceil(width)
}

/// Whether a map of each can be made.
fn are_mapped(boxes: &[Option<TensorBoxes>]) -> bool {
    boxes.iter().flatten().all(maps::strides_nest)
}
