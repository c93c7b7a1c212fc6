#![doc = include_str!("../README.md")]

pub mod cuda;

pub use da_moe_core::*;
pub use da_moe_cpu::Cpu;
