#![doc = include_str!("../README.md")]

/// The examples of docs/ENGINES.md, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../docs/ENGINES.md")]
mod engines {}

pub mod cuda;

#[cfg(feature = "cuda")]
pub use cuda::Cuda;
pub use da_moe_core::*;
pub use da_moe_cpu::Cpu;
