//! NVIDIA GPUs: the kernels of `kernels/`, which of them run for given sizes and types, and what they run on.
//!
//! - [`abi`] is what a kernel takes: one struct each, generated from `kernels/abi.h`.
//! - [`importance`], [`attention`], [`gate`], [`permute`] and [`combine`] say which launches a stage makes, with how many
//!   threads and how much workspace: pure functions of sizes, types and addresses. So do [`combine_backward`],
//!   [`permute_backward`], [`gate_backward`] and [`routing_backward`] for the way back.
//! - A [`Device`] runs launches: the driver, or an emulator on machines without a GPU.
//! - [`Staged`] runs the kernels on host tensors, stage by stage, for tests.

pub mod abi;
pub mod attention;
mod columns;
pub mod combine;
pub mod combine_backward;
#[cfg(feature = "emulator")]
pub mod conformance;
pub mod cost;
mod device;
#[cfg(feature = "cuda")]
mod driver;
#[cfg(feature = "emulator")]
mod emulated;
pub mod experts;
pub mod gate;
pub mod gate_backward;
mod images;
pub mod importance;
#[doc(hidden)]
pub mod layout;
pub mod permute;
pub mod permute_backward;
pub mod routing_backward;
mod staged;
mod staged_gradients;
mod tray;
mod workspace;

pub use device::{Call, Device, Launch, Parameters};
#[cfg(feature = "cuda")]
pub use driver::Driver;
#[cfg(feature = "emulator")]
pub use emulated::Emulated;
pub use images::{BuildReport, Image, build_report, kernels, require_kernels};
pub use staged::Staged;
pub use workspace::Workspace;
