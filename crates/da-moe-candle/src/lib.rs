#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

mod autograd;
mod call;
mod carried;
#[cfg(feature = "cuda")]
mod cuda;
mod engine;
mod how;
mod inputs;
mod integers;
mod interop;
mod module;
mod record;
mod steps;
mod types;
mod weights;

pub use carried::Carried;
pub use da_moe::{LayerConfig, Report};
pub use how::How;
pub use inputs::Inputs;
pub use module::{DaMoe, Output};
pub use record::Record;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a call that panicked left half-written is not read: a step's results count only after its forward has ended.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
