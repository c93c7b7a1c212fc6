//! Which kernels a stage starts, with how many threads and how much workspace, and what each costs at least: pure functions of sizes,
//! types, addresses and the [`Target`](crate::cuda::Target). One file a stage, its way back beside its way there.

pub mod attention;
pub mod combine;
pub mod combine_backward;
pub mod experts;
pub mod experts_backward;
pub mod gate;
pub mod gate_backward;
pub mod gradient_products;
mod hopper;
pub mod importance;
pub mod permute;
pub mod permute_backward;
mod product_tiles;
mod product_work;
pub mod routing_backward;
#[cfg(test)]
mod tests;
mod vectorized;

pub use hopper::{Way, in_another_way};
pub use product_work::prediction;
