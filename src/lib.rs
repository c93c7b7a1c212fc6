#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub use da_moe_core::*;
pub use da_moe_cpu::Cpu;
