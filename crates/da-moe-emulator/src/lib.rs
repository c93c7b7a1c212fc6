#![doc = include_str!("../README.md")]

mod cache;
mod compiler;
mod device;
mod error;
mod module;
mod runtime;
mod sources;
mod traffic;

pub use compiler::Compiler;
pub use device::{Device, Policy, Schedule, TensorMap, TensorMap2d, Work};
pub use error::{Error, Kind, Report};
pub use module::Module;
pub use traffic::{SharedPlace, Traffic};
