//! The emulator as a device: the kernels' own sources, compiled for this machine, run and watched.

#![allow(unsafe_code, reason = "a launch's parameters are the caller's word")]

use super::device::{Device, Launch};
use crate::{Error, Result};
use da_moe_emulator as emulator;
use std::collections::{HashMap, HashSet};
use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A device whose kernels run on the CPU. Everything a kernel does wrong (races, accesses out of bounds, reads of what was
/// never written, divergence, deadlocks) is an [`Error::Kernel`] with file and line. Whatever is started has ended when the
/// call returns, so all streams are one, but for recording.
#[derive(Debug)]
pub struct Emulated {
    device: emulator::Device,
    schedule: emulator::Schedule,
    id: u64,
    recorder: Mutex<Recorder>,
}

/// Streams that record, and graphs that were recorded.
#[derive(Debug, Default)]
struct Recorder {
    streams: HashSet<u64>,
    recording: HashMap<u64, Vec<Recorded>>,
    graphs: HashMap<u64, Arc<[Recorded]>>,
}

/// Something to be done again.
#[derive(Clone, Debug)]
enum Recorded {
    Launch { launch: Launch, parameters: Vec<Vec<u8>> },
    Fill { address: u64, value: u8, bytes: usize },
    Copy { from: u64, to: u64, bytes: usize },
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
        static DEVICES: AtomicU64 = AtomicU64::new(0);
        let id = DEVICES.fetch_add(2, Ordering::Relaxed);
        Self { device: emulator::Device::new(module, schedule), schedule, id, recorder: Mutex::default() }
    }

    /// Every change under the lock is complete, so a panicking thread leaves nothing half-done.
    fn recorder(&self) -> MutexGuard<'_, Recorder> {
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of each parameter of a kernel.
    ///
    /// # Safety
    /// The parameters are of the kernel's types.
    unsafe fn copies(&self, kernel: &str, parameters: &[*mut c_void]) -> Result<Vec<Vec<u8>>> {
        let sizes = self.device.module().parameter_sizes(kernel).map_err(|error| failed(kernel, error))?;
        // SAFETY: the caller's word: each address is of a value of its parameter's type, which has that size.
        let copy = |(&address, &size): (&*mut c_void, &usize)| unsafe {
            std::slice::from_raw_parts(address.cast::<u8>().cast_const(), size).to_vec()
        };
        Ok(parameters.iter().zip(sizes).map(copy).collect())
    }

    /// Addresses are checked by the emulator, so any may be tried.
    fn set(&self, address: u64, value: u8, bytes: usize) -> Result<()> {
        self.device.upload(address, &vec![value; bytes]).map_err(|error| failed("fill", error))
    }

    /// As [`Emulated::set`].
    fn move_bytes(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        let mut held = vec![0; bytes];
        self.device.download(from, &mut held).map_err(|error| failed("copy", error))?;
        self.device.upload(to, &held).map_err(|error| failed("copy", error))
    }

    /// Whether a stream records; what is started on it is kept then.
    fn records(&self, stream: u64, what: Recorded) -> bool {
        self.recorder().recording.get_mut(&stream).map(|recording| recording.push(what)).is_some()
    }

    fn again(&self, recorded: &Recorded) -> Result<()> {
        match recorded {
            Recorded::Fill { address, value, bytes } => self.set(*address, *value, *bytes),
            Recorded::Copy { from, to, bytes } => self.move_bytes(*from, *to, *bytes),
            Recorded::Launch { launch, parameters } => {
                let parameters: Vec<&[u8]> = parameters.iter().map(Vec::as_slice).collect();
                self.device
                    .launch_bytes(launch.kernel, launch.grid, [launch.threads, 1, 1], launch.shared, &parameters)
                    .map_err(|error| failed(launch.kernel, error))
            }
        }
    }
}

/// Every file of kernels.
const SOURCES: &[&str] = &[
    "budget.cu",
    "combine.cu",
    "combine_backward.cu",
    "conformance.cu",
    "experts_backward.cu",
    "gate.cu",
    "gate_backward.cu",
    "gate_dx.cu",
    "grouped_gemm_back_sm80.cu",
    "grouped_gemm_sm80.cu",
    "importance.cu",
    "importance_attention.cu",
    "importance_attention_f32.cu",
    "importance_probabilities.cu",
    "permute.cu",
    "permute_backward.cu",
    "routing.cu",
    "routing_backward.cu",
    "weight_gradient_sm80.cu",
];

/// Handles of streams and graphs: no two devices share one, nor is one used again.
fn new_handle() -> u64 {
    static HANDLES: AtomicU64 = AtomicU64::new(1);
    HANDLES.fetch_add(1, Ordering::Relaxed)
}

fn failed(kernel: &str, error: emulator::Error) -> Error {
    Error::Kernel { kernel: kernel.into(), problem: error.to_string() }
}

fn unknown(call: &str, handle: u64) -> Error {
    Error::Kernel { kernel: call.into(), problem: format!("{handle} is not recorded, or not recording") }
}

impl Device for Emulated {
    fn id(&self) -> u64 {
        self.id
    }

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

    unsafe fn free(&self, address: u64) {
        // An address that is not an allocation leaves nothing to give back.
        let _ = self.device.free(address);
    }

    fn open_stream(&self) -> Result<u64> {
        let handle = new_handle();
        self.recorder().streams.insert(handle);
        Ok(handle)
    }

    unsafe fn close_stream(&self, stream: u64) {
        let mut recorder = self.recorder();
        recorder.recording.remove(&stream);
        recorder.streams.remove(&stream);
    }

    unsafe fn stream_elsewhere(&self, stream: u64) -> Result<Option<String>> {
        let known = stream == 0 || self.recorder().streams.contains(&stream);
        Ok((!known).then(|| "another device".into()))
    }

    fn memory_elsewhere(&self, address: u64, bytes: usize) -> Result<Option<String>> {
        let ends = [address, address.saturating_add(bytes.saturating_sub(1) as u64)];
        // The emulator checks addresses, so any may be tried.
        let reached = ends.into_iter().all(|end| self.device.download(end, &mut [0]).is_ok());
        Ok((!reached).then(|| "memory that the emulator did not allocate".into()))
    }

    unsafe fn synchronize(&self, _: u64) -> Result<()> {
        Ok(())
    }

    fn synchronize_all(&self) -> Result<()> {
        Ok(())
    }

    unsafe fn order(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    unsafe fn fill(&self, stream: u64, address: u64, value: u8, bytes: usize) -> Result<()> {
        if self.records(stream, Recorded::Fill { address, value, bytes }) {
            return Ok(());
        }
        self.set(address, value, bytes)
    }

    unsafe fn copy(&self, stream: u64, from: u64, to: u64, bytes: usize) -> Result<()> {
        if self.records(stream, Recorded::Copy { from, to, bytes }) {
            return Ok(());
        }
        self.move_bytes(from, to, bytes)
    }

    unsafe fn upload(&self, _: u64, address: u64, bytes: &[u8]) -> Result<()> {
        self.device.upload(address, bytes).map_err(|error| failed("upload", error))
    }

    unsafe fn download(&self, _: u64, address: u64, bytes: &mut [u8]) -> Result<()> {
        self.device.download(address, bytes).map_err(|error| failed("download", error))
    }

    unsafe fn read_only(&self, address: u64) -> Result<()> {
        self.device.read_only(address).map_err(|error| failed("read_only", error))
    }

    unsafe fn unwritten(&self, address: u64) -> Result<usize> {
        self.device.unwritten(address).map_err(|error| failed("unwritten", error))
    }

    unsafe fn launch(&self, stream: u64, launch: &Launch, parameters: &[*mut c_void]) -> Result<()> {
        if self.recorder().recording.contains_key(&stream) {
            // SAFETY: the caller's word.
            let parameters = unsafe { self.copies(launch.kernel, parameters) }?;
            let launch = Recorded::Launch { launch: *launch, parameters };
            self.recorder().recording.entry(stream).or_default().push(launch);
            return Ok(());
        }
        // SAFETY: the caller's word; accesses of the kernel itself are checked by the emulator.
        unsafe { self.device.launch(launch.kernel, launch.grid, [launch.threads, 1, 1], launch.shared, parameters) }
            .map_err(|error| failed(launch.kernel, error))
    }

    unsafe fn begin_capture(&self, stream: u64) -> Result<()> {
        self.recorder().recording.insert(stream, Vec::new());
        Ok(())
    }

    unsafe fn end_capture(&self, stream: u64) -> Result<u64> {
        let mut recorder = self.recorder();
        let recorded = recorder.recording.remove(&stream).ok_or_else(|| unknown("end_capture", stream))?;
        let handle = new_handle();
        recorder.graphs.insert(handle, recorded.into());
        Ok(handle)
    }

    unsafe fn replay(&self, graph: u64, _: u64) -> Result<()> {
        let recorded = self.recorder().graphs.get(&graph).cloned().ok_or_else(|| unknown("replay", graph))?;
        recorded.iter().try_for_each(|recorded| self.again(recorded))
    }

    unsafe fn forget_graph(&self, graph: u64) {
        self.recorder().graphs.remove(&graph);
    }
}
