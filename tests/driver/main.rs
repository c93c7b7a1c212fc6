//! The driver backend without a GPU: everything in `src/cuda/device/driver`, unmodified, on the emulator's `libcuda.so.1`, which keeps
//! the driver's rules and runs the kernels on the CPU.
//!
//! The loader looks for libraries where `LD_LIBRARY_PATH` says when a program starts, so this program starts itself again
//! before its tests run, and is one of its own for that. The properties are the other test programs' own files.

#![allow(unsafe_code, reason = "memory and streams that are lent are their owner's word")]

mod borrowing;
mod hopper;
#[path = "../kernels"]
mod kernels {
    mod conformance;
}
#[path = "../properties"]
mod properties {
    mod engine;
    mod graphs;
    mod memory;
    mod state;
    mod streams;
}
#[path = "../refusals"]
mod refusals {
    mod device;
}
mod scenarios;
#[path = "../gpu/smoke.rs"]
mod smoke;
mod start;
mod trouble;

use da_moe::cuda::Device;
use da_moe_emulator::Counts;

/// Otherwise everything would pass without having been tried.
#[test]
fn the_driver_is_the_emulators() {
    assert!(Counts::of_this_process().is_some());
    let gpu = da_moe_harness::kernels::on_gpu().expect("the driver opens");
    let description = gpu.kernels().device().describe();
    assert!(description.starts_with("Emulated "), "{description}");
    assert!(!da_moe_harness::kernels::is_emulator_wanted(), "kernels run on the driver alone");
}
