//! The emulator as a device: the kernels' own sources, compiled for this machine, run and watched.

#![allow(unsafe_code, reason = "a launch's parameters are the caller's word")]

use super::device::{Device, Launch};
use crate::{Error, Result};
use da_moe_emulator as emulator;
use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A device whose kernels run on the CPU. Everything a kernel does wrong (races, accesses out of bounds, reads of what was
/// never written, divergence, deadlocks) is an [`Error::Kernel`] with file and line.
#[derive(Clone, Debug)]
pub struct Emulated {
    device: Arc<emulator::Device>,
    schedule: emulator::Schedule,
}

impl Emulated {
    /// The folder of the kernels' sources.
    pub fn sources() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")
    }

    /// How every kernel is compiled; libraries are kept below `cache`.
    pub fn compiler(cache: impl Into<PathBuf>) -> emulator::Compiler {
        let sources = Self::sources();
        let compiler = emulator::Compiler::new(cache).include(&sources);
        SOURCES.iter().fold(compiler, |compiler, name| compiler.file(sources.join(name)))
    }

    /// A device that runs the kernels of `module` in the order of `schedule`.
    pub fn new(module: Arc<emulator::Module>, schedule: emulator::Schedule) -> Self {
        Self { device: Arc::new(emulator::Device::new(module, schedule)), schedule }
    }
}

/// Every file of kernels.
const SOURCES: &[&str] = &[
    "budget.cu",
    "combine.cu",
    "combine_backward.cu",
    "conformance.cu",
    "gate.cu",
    "gate_backward.cu",
    "gate_dx.cu",
    "grouped_gemm_sm80.cu",
    "importance.cu",
    "importance_attention.cu",
    "importance_attention_f32.cu",
    "importance_probabilities.cu",
    "permute.cu",
    "permute_backward.cu",
    "routing.cu",
    "routing_backward.cu",
];

fn failed(kernel: &str, error: emulator::Error) -> Error {
    Error::Kernel { kernel: kernel.into(), problem: error.to_string() }
}

impl Device for Emulated {
    fn describe(&self) -> String {
        format!("emulated kernels, {:?}", self.schedule)
    }

    /// One, so that blocks that stay have several tiles even in small products.
    fn multiprocessors(&self) -> usize {
        1
    }

    fn alloc(&self, name: &str, bytes: usize) -> Result<u64> {
        self.device.alloc(name, bytes).map_err(|error| failed(name, error))
    }

    fn free(&self, address: u64) {
        // An address that is not an allocation leaves nothing to give back.
        let _ = self.device.free(address);
    }

    fn upload(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.device.upload(address, bytes).map_err(|error| failed("upload", error))
    }

    fn download(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        self.device.download(address, bytes).map_err(|error| failed("download", error))
    }

    fn read_only(&self, address: u64) -> Result<()> {
        self.device.read_only(address).map_err(|error| failed("read_only", error))
    }

    fn unwritten(&self, address: u64) -> Result<usize> {
        self.device.unwritten(address).map_err(|error| failed("unwritten", error))
    }

    unsafe fn launch(&self, launch: &Launch, parameters: &[*mut c_void]) -> Result<()> {
        // SAFETY: the caller's word; accesses of the kernel itself are checked by the emulator.
        unsafe { self.device.launch(launch.kernel, launch.grid, [launch.threads, 1, 1], launch.shared, parameters) }
            .map_err(|error| failed(launch.kernel, error))
    }
}
