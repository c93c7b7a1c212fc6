//! NVIDIA GPUs: the kernels of `kernels/`, which of them run for given sizes and types, and what they run on.
//!
//! Rooms, from the ground up; none names one above it:
//!
//! - [`abi`]: what a kernel takes, one struct each, generated from `kernels/abi.h`.
//! - [`cost`]: what work is, and how long a machine takes for it at least, by arithmetic.
//! - [`device`]: what kernels run on. A [`Device`] starts launches: the driver, or an emulator on machines without a GPU; with it come
//!   [`DeviceMemory`], [`Stream`] and [`Workspace`].
//! - [`launch`]: which kernels a stage starts, with how many threads and how much workspace, and what each costs: pure functions of
//!   sizes, types, addresses and the [`Target`].
//! - `stage`: from checked tensors to launches.
//!
//! Above them [`Kernels`] is the backend: [`Layer`](crate::Layer)`<Cuda>` calls it. [`Staged`] runs the kernels on host tensors, stage by
//! stage, for tests.

#[allow(clippy::derivable_impls, reason = "long arrays have no default, so that none of the structs derives it")]
pub mod abi;
#[cfg(feature = "emulator")]
pub mod conformance;
mod copies;
pub mod cost;
pub mod device;
mod grouped_products;
mod kernels;
pub mod launch;
#[doc(hidden)]
pub mod layout;
mod memory_plan;
mod stage;
mod staged;

pub use copies::{Copies, GradientCopies};
#[cfg(feature = "cuda")]
pub use device::driver::{Driver, LoadedKernels};
pub use device::images::{BuildReport, Image, build_report, kernels, require_kernels};
pub use device::memory::DeviceMemory;
pub use device::stream::{Graph, Listed, Stream};
pub use device::workspace::Workspace;
pub use device::{Architecture, Call, Device, Launch, Parameters, Target};
/// The kernels on an NVIDIA GPU.
#[cfg(feature = "cuda")]
pub type Cuda = Kernels<Driver>;
#[cfg(feature = "emulator")]
pub use device::emulated::Emulated;
#[cfg(feature = "emulator")]
pub use device::stand_in::{Counts, Failing, StandIn};
pub use grouped_products::{BiasGradientArgs, Gathered, WeightGradientArgs};
pub use kernels::Kernels;
pub use memory_plan::{Bytes, Most, bytes, row_type};
pub use staged::Staged;
