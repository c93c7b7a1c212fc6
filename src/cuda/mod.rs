//! NVIDIA GPUs: the kernels of `kernels/`, which of them run for given sizes and types, and what they run on.
//!
//! - [`abi`] is what a kernel takes: one struct each, generated from `kernels/abi.h`.
//! - [`importance`], [`attention`], [`gate`], [`permute`], [`experts`] and [`combine`] say which launches a stage makes,
//!   with how many threads and how much workspace: pure functions of sizes, types and addresses. So do
//!   [`combine_backward`], [`experts_backward`] with [`gradient_products`], [`permute_backward`], [`gate_backward`] and
//!   [`routing_backward`] for the way back.
//! - A [`Device`] runs launches: the driver, or an emulator on machines without a GPU.
//! - [`Kernels`] is the backend: [`Layer`](crate::Layer)`<Cuda>` calls it with [`DeviceMemory`] and a [`Stream`].
//! - [`Staged`] runs the kernels on host tensors, stage by stage, for tests.

pub mod abi;
pub mod attention;
mod bytes;
mod columns;
pub mod combine;
pub mod combine_backward;
#[cfg(feature = "emulator")]
pub mod conformance;
mod copies;
pub mod cost;
mod cost_machine;
mod cost_products;
mod cost_tiles;
mod device;
#[cfg(feature = "cuda")]
mod driver;
#[cfg(feature = "emulator")]
mod emulated;
pub mod experts;
pub mod experts_backward;
pub mod gate;
pub mod gate_backward;
pub mod gradient_products;
mod images;
pub mod importance;
mod kernels;
#[doc(hidden)]
pub mod layout;
mod memory;
mod needs;
pub mod permute;
pub mod permute_backward;
mod products;
#[cfg(feature = "emulator")]
mod recorder;
pub mod routing_backward;
#[cfg(feature = "emulator")]
mod shim;
mod staged;
mod stages;
mod stream;
mod tray;
mod workspace;

pub use copies::{Copies, GradientCopies};
pub use device::{Call, Device, Launch, Parameters};
#[cfg(feature = "cuda")]
pub use driver::{Driver, LoadedKernels};
/// The kernels on an NVIDIA GPU.
#[cfg(feature = "cuda")]
pub type Cuda = Kernels<Driver>;
#[cfg(feature = "emulator")]
pub use emulated::Emulated;
pub use images::{BuildReport, Image, build_report, kernels, require_kernels};
pub use kernels::Kernels;
pub use memory::DeviceMemory;
pub use needs::{Bytes, Most, bytes};
pub use products::{BiasGradientArgs, Gathered, WeightGradientArgs};
#[cfg(feature = "emulator")]
pub use shim::{Counts, Failing, Shim};
pub use staged::Staged;
pub use stream::{Graph, Listed, Stream};
pub use workspace::Workspace;
