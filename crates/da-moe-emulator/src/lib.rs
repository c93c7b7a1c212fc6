#![doc = include_str!("../README.md")]

mod cache;
mod compiler;
mod device;
mod error;
mod libcuda;
mod module;
mod runtime;
mod sources;
mod tensor_map;
mod traffic;
mod work;

pub use compiler::Compiler;
pub use device::{Device, Grid, Policy, Schedule};
pub use error::{Error, Kind, Report};
pub use libcuda::{Counts, Libcuda};
pub use module::Module;
pub use tensor_map::{TensorMap, TensorMapShape};
pub use traffic::{SharedPlace, Traffic};
pub use work::Work;
