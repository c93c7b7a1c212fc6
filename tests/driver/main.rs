//! The driver backend without a GPU: everything in `src/cuda/driver`, unmodified, on the emulator's `libcuda.so.1`, which keeps
//! the driver's rules and runs the kernels on the CPU.
//!
//! The loader looks for libraries where `LD_LIBRARY_PATH` says when a program starts, so this program starts itself again
//! before its tests run. The properties are the other test programs' own files.

#![allow(clippy::duplicate_mod, reason = "every file names the harness")]
#![allow(unsafe_code, reason = "memory and streams that are lent are their owner's word")]

mod borrowing;
#[path = "../harness/mod.rs"]
mod harness;
mod scenarios;
mod start;
mod trouble;

#[path = "../conformance/main.rs"]
mod conformance;
#[path = "../device_refusals.rs"]
mod device_refusals;
#[path = "../engine.rs"]
mod engine;
#[path = "../graphs.rs"]
mod graphs;
#[path = "../memory.rs"]
mod memory;
#[path = "../gpu/smoke.rs"]
mod smoke;
#[path = "../state.rs"]
mod state;
#[path = "../streams.rs"]
mod streams;

use da_moe::cuda::Device;
use da_moe_emulator::Counts;

/// Otherwise everything would pass without having been tried.
#[test]
fn the_driver_is_the_emulators() {
    assert!(Counts::of_this_process().is_some());
    let gpu = harness::kernels::on_gpu().expect("the driver opens");
    let description = gpu.kernels().device().describe();
    assert!(description.starts_with("Emulated "), "{description}");
    assert!(!harness::kernels::is_emulator_wanted(), "kernels run on the driver alone");
}
