//! The emulator as a device: the kernels' own sources, compiled for this machine, run and watched.

#![allow(unsafe_code, reason = "a launch's parameters are the caller's word")]

use crate::cuda::abi::TensorMap;
use crate::cuda::device::recorder::{Recorded, Recorder};
use crate::cuda::device::tensor_map::BOX_BYTES;
use crate::cuda::device::{Architecture, Device, Launch, Target, TensorBoxes};
use crate::{Error, Result};
use da_moe_emulator as emulator;
use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A device whose kernels run on the CPU. Everything a kernel does wrong (races, accesses out of bounds, reads of what was
/// never written, divergence, deadlocks) is an [`Error::Kernel`] with file and line. Whatever is started has ended when the
/// call returns, so all streams are one, but for recording, where what CUDA refuses is refused.
#[derive(Debug)]
pub struct Emulated {
    device: emulator::Device,
    schedule: emulator::Schedule,
    architecture: Architecture,
    id: u64,
    recorder: Mutex<Recorder>,
}

impl Emulated {
    /// The folder of the kernels' sources.
    pub fn sources() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")
    }

    /// How every kernel is compiled; libraries are kept below `cache`.
    pub fn compiler(cache: impl Into<PathBuf>) -> emulator::Compiler {
        emulator::Compiler::new(cache).include(Self::sources()).folder(Self::sources())
    }

    /// A device that runs the kernels of `module` in the order of `schedule`. It has all of Hopper's instructions.
    pub fn new(module: Arc<emulator::Module>, schedule: emulator::Schedule) -> Self {
        static DEVICES: AtomicU64 = AtomicU64::new(0);
        let id = DEVICES.fetch_add(2, Ordering::Relaxed);
        let device = emulator::Device::new(module, schedule);
        Self { device, schedule, architecture: Architecture::Hopper, id, recorder: Mutex::default() }
    }

    /// The same as a device of another architecture.
    pub fn of_architecture(self, architecture: Architecture) -> Self {
        Self { architecture, ..self }
    }

    /// What kernels have multiplied and copied so far.
    pub fn work(&self) -> emulator::Work {
        self.device.work()
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

    fn again(&self, recorded: &Recorded) -> Result<()> {
        match recorded {
            Recorded::Fill { address, value, bytes } => self.set(*address, *value, *bytes),
            Recorded::Copy { from, to, bytes } => self.move_bytes(*from, *to, *bytes),
            Recorded::Launch { launch, parameters } => {
                let parameters: Vec<&[u8]> = parameters.iter().map(Vec::as_slice).collect();
                self.device
                    .launch_bytes(launch.kernel, blocks_of(launch), [launch.threads, 1, 1], launch.shared, &parameters)
                    .map_err(|error| failed(launch.kernel, error))
            }
        }
    }
}

fn blocks_of(launch: &Launch) -> emulator::Grid {
    emulator::Grid { blocks: launch.grid, cluster: launch.cluster }
}

fn failed(kernel: &str, error: emulator::Error) -> Error {
    Error::Kernel { kernel: kernel.into(), problem: error.to_string() }
}

impl Device for Emulated {
    fn id(&self) -> u64 {
        self.id
    }

    fn describe(&self) -> String {
        format!("emulated kernels, {:?}", self.schedule)
    }

    /// One multiprocessor, so that blocks that stay have several tiles even in small products.
    fn target(&self) -> Target {
        Target { architecture: self.architecture, multiprocessors: 1 }
    }

    fn alloc(&self, name: &str, bytes: usize) -> Result<u64> {
        self.device.alloc(name, bytes).map_err(|error| failed(name, error))
    }

    unsafe fn free(&self, address: u64) {
        // An address that is not an allocation leaves nothing to give back.
        let _ = self.device.free(address);
    }

    fn own_stream(&self) -> u64 {
        Recorder::OWN_STREAM
    }

    fn open_stream(&self) -> Result<u64> {
        Ok(self.recorder().open_stream())
    }

    unsafe fn close_stream(&self, stream: u64) {
        self.recorder().close_stream(stream);
    }

    unsafe fn stream_elsewhere(&self, stream: u64) -> Result<Option<String>> {
        Ok((!self.recorder().knows(stream)).then(|| "another device".into()))
    }

    fn memory_elsewhere(&self, address: u64, bytes: usize) -> Result<Option<String>> {
        let ends = [address, address.saturating_add(bytes.saturating_sub(1) as u64)];
        // The emulator checks addresses, so any may be tried.
        let reached = ends.into_iter().all(|end| self.device.download(end, &mut [0]).is_ok());
        Ok((!reached).then(|| "memory that the emulator did not allocate".into()))
    }

    unsafe fn synchronize(&self, stream: u64) -> Result<()> {
        self.recorder().wait("synchronize", stream)
    }

    fn synchronize_all(&self) -> Result<()> {
        Ok(())
    }

    unsafe fn order(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    unsafe fn fill(&self, stream: u64, address: u64, value: u8, bytes: usize) -> Result<()> {
        match self.recorder().keep(stream, || Ok(Recorded::Fill { address, value, bytes }))? {
            true => Ok(()),
            false => self.set(address, value, bytes),
        }
    }

    unsafe fn copy(&self, stream: u64, from: u64, to: u64, bytes: usize) -> Result<()> {
        match self.recorder().keep(stream, || Ok(Recorded::Copy { from, to, bytes }))? {
            true => Ok(()),
            false => self.move_bytes(from, to, bytes),
        }
    }

    unsafe fn upload(&self, stream: u64, address: u64, bytes: &[u8]) -> Result<()> {
        self.recorder().wait("upload", stream)?;
        self.device.upload(address, bytes).map_err(|error| failed("upload", error))
    }

    unsafe fn download(&self, stream: u64, address: u64, bytes: &mut [u8]) -> Result<()> {
        self.recorder().wait("download", stream)?;
        self.device.download(address, bytes).map_err(|error| failed("download", error))
    }

    unsafe fn read_only(&self, address: u64) -> Result<()> {
        self.device.read_only(address).map_err(|error| failed("read_only", error))
    }

    unsafe fn unwritten(&self, address: u64) -> Result<usize> {
        self.device.unwritten(address).map_err(|error| failed("unwritten", error))
    }

    fn tensor_map(&self, boxes: &TensorBoxes) -> Result<TensorMap> {
        let (rank, [first, second, third, fourth]) = (boxes.rank as u32, boxes.box_extents());
        let mut shape = emulator::TensorMapShape {
            rank,
            element_bytes: boxes.elements.size(),
            swizzle: BOX_BYTES,
            dims: [1; 5],
            strides: [0; 4],
            box_dims: [first, second, third, fourth, 1],
        };
        shape.dims[..4].copy_from_slice(&boxes.extents);
        shape.strides[..3].copy_from_slice(&boxes.strides);
        let map = self.device.tensor_map(boxes.address, &shape).map_err(|error| failed("a tensor map", error))?;
        Ok(TensorMap { words: map.words() })
    }

    unsafe fn launch(&self, stream: u64, launch: &Launch, parameters: &[*mut c_void]) -> Result<()> {
        let record = || {
            // SAFETY: the caller's word.
            let parameters = unsafe { self.copies(launch.kernel, parameters) }?;
            Ok(Recorded::Launch { launch: *launch, parameters })
        };
        if self.recorder().keep(stream, record)? {
            return Ok(());
        }
        // SAFETY: the caller's word; accesses of the kernel itself are checked by the emulator.
        unsafe {
            self.device.launch(launch.kernel, blocks_of(launch), [launch.threads, 1, 1], launch.shared, parameters)
        }
        .map_err(|error| failed(launch.kernel, error))
    }

    unsafe fn begin_capture(&self, stream: u64) -> Result<()> {
        self.recorder().begin(stream)
    }

    unsafe fn end_capture(&self, stream: u64) -> Result<u64> {
        self.recorder().end(stream)
    }

    unsafe fn replay(&self, graph: u64, stream: u64) -> Result<()> {
        self.recorder().wait("replay", stream)?;
        let recorded = self.recorder().graph(graph)?;
        recorded.iter().try_for_each(|recorded| self.again(recorded))
    }

    unsafe fn forget_graph(&self, graph: u64) {
        self.recorder().forget(graph);
    }
}
