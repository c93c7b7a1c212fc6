//! Dynamic mixture-of-experts.
pub use da_moe_core::*;
pub use da_moe_cpu::Cpu;
