//! The kernels themselves: where their blocks, tiles and warps end, what they make of contents that no stage hands over, how
//! much they do, and single instructions. `tests/gpu` has those that a GPU can be asked for as well.

mod alone;
mod attention;
mod backward;
mod conformance;
mod contents;
mod experts;
mod experts_backward;
mod experts_hopper;
mod experts_hopper_backward;
mod forward;
mod rows;
mod schedule;
mod stages_backward;
mod traffic;
