//! The kernels on an NVIDIA GPU, through the driver. **Not yet run on a GPU**: only its refusals and its pool are tested.
//!
//! The driver's library is loaded when the first GPU is opened; a program that never asks for one runs without it. The GPU's
//! primary context is used, which every library in the process shares, an engine's included.

#![allow(unsafe_code, reason = "calls into the driver; each block names what it relies on")]

mod context;
mod functions;
mod open;
mod pool;

use super::device::{Device, Launch};
use crate::{Error, Result};
use context::{Context, Refused, refused};
use cudarc::driver::result::{self, DriverError, stream::StreamKind};
use cudarc::driver::sys::{self, CUevent_flags, CUevent_wait_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};
use functions::Functions;
use pool::{Pool, Source};
use std::ffi::c_void;
use std::fmt;
use std::time::Duration;

/// One GPU with its kernels loaded and the memory taken from it. Dropping it gives everything back.
pub struct Driver {
    // Given back in this order: modules and memory belong to the context.
    functions: Functions,
    memory: Pool,
    /// Whether memory is kept for later.
    pooled: bool,
    context: Context,
    description: String,
    multiprocessors: usize,
    /// What new memory is filled with, so that tests see what is read before it is written.
    poison: Option<u8>,
}

impl Driver {
    /// Opens a GPU by number and loads every kernel.
    ///
    /// # Errors
    /// [`Error::KernelsNotBuilt`], [`Error::NoDriver`], [`Error::NoDevice`] without a GPU of that number,
    /// [`Error::DriverTooOld`] or [`Error::Architecture`] where the kernels cannot run, [`Error::Cuda`] where the driver
    /// refuses.
    pub fn open(ordinal: u32) -> Result<Self> {
        let images = super::require_kernels()?;
        let gpu = open::gpu(ordinal)?;
        let context = Context::retain(gpu.device)?;
        let functions = Functions::load(images, gpu.shared_bytes, &gpu.description)?;
        let (description, multiprocessors) = (gpu.description, gpu.multiprocessors);
        let memory = Pool::default();
        Ok(Self { functions, memory, pooled: true, context, description, multiprocessors, poison: None })
    }

    /// The same with new memory filled with `byte`.
    pub fn poisoned(mut self, byte: u8) -> Self {
        self.poison = Some(byte);
        self
    }

    /// The same with an allocation of its own for all memory, of exactly its size and given back at once: slow, and what tools
    /// like `compute-sanitizer` need to see what is used outside of it.
    pub fn unpooled(mut self) -> Self {
        self.pooled = false;
        self
    }

    /// Gives memory that is kept for later back to the driver. Waits.
    ///
    /// # Errors
    /// [`Error::Cuda`] when something that ran before failed.
    pub fn trim(&self) -> Result<()> {
        self.memory.trim(self)
    }
}

impl Source for Driver {
    fn take(&self, bytes: usize) -> Result<Option<u64>> {
        self.context.make_current()?;
        // SAFETY: a context is current; the memory is not read before it is written.
        match unsafe { result::malloc_sync(bytes) } {
            Ok(address) => Ok(Some(address)),
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Ok(None),
            Err(error) => Err(refused("cuMemAlloc", error, &format!("{bytes} bytes"))),
        }
    }

    fn give(&self, address: u64) {
        // SAFETY: the pool gives each address back once. What went wrong in a kernel is reported by the next call that can.
        let _ = self.context.make_current().map(|()| unsafe { result::free_sync(address) });
    }

    fn wait(&self) -> Result<()> {
        self.synchronize_all()
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Driver({})", self.description)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // The fields are dropped next, and need the context. There is nobody to tell when the driver has already failed.
        let _ = self.synchronize_all();
        self.memory.release(self);
    }
}

fn stream(handle: u64) -> sys::CUstream {
    handle as sys::CUstream
}

impl Device for Driver {
    fn id(&self) -> u64 {
        self.context.id()
    }

    fn describe(&self) -> String {
        self.description.clone()
    }

    fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    fn alloc(&self, name: &str, bytes: usize) -> Result<u64> {
        let found = if self.pooled { self.memory.alloc(self, bytes)? } else { self.take(bytes.max(1))? };
        let Some(address) = found else {
            let problem = format!("{bytes} bytes for `{name}` cannot be had from {}", self.description);
            return Err(Error::Cuda { call: "cuMemAlloc", problem });
        };
        if let Some(byte) = self.poison {
            // SAFETY: it was allocated with as many bytes, and nobody else has it.
            unsafe { self.fill(0, address, byte, bytes) }?;
            // Streams that do not wait for stream 0 must find it done.
            self.synchronize_all()?;
        }
        Ok(address)
    }

    unsafe fn free(&self, address: u64) {
        match self.pooled {
            true => self.memory.free(address),
            false => {
                // What was started before may still use it. What went wrong there is reported by the next call that can.
                let _ = self.synchronize_all();
                self.give(address);
            }
        }
    }

    fn open_stream(&self) -> Result<u64> {
        self.context.make_current()?;
        result::stream::create(StreamKind::NonBlocking).refused("cuStreamCreate", "a stream").map(|s| s as u64)
    }

    unsafe fn close_stream(&self, handle: u64) {
        // SAFETY: the caller's. The driver lets go of the stream when its work is done; a refusal would change nothing.
        let _ = self.context.make_current().map(|()| unsafe { result::stream::destroy(stream(handle)) });
    }

    unsafe fn stream_elsewhere(&self, handle: u64) -> Result<Option<String>> {
        // SAFETY: the caller's.
        unsafe { self.context.stream_elsewhere(stream(handle)) }
    }

    fn memory_elsewhere(&self, address: u64, _: usize) -> Result<Option<String>> {
        self.context.memory_elsewhere(address)
    }

    unsafe fn synchronize(&self, handle: u64) -> Result<()> {
        self.context.make_current()?;
        // SAFETY: the caller's.
        unsafe { result::stream::synchronize(stream(handle)) }.refused("cuStreamSynchronize", &self.description)
    }

    fn synchronize_all(&self) -> Result<()> {
        self.context.make_current()?;
        result::ctx::synchronize().refused("cuCtxSynchronize", &self.description)
    }

    unsafe fn order(&self, earlier: u64, later: u64) -> Result<()> {
        self.context.make_current()?;
        let event = Event::new(CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
        // SAFETY: the event is live until both calls have been made, and the driver keeps what it still needs of it.
        unsafe { event.record(earlier) }?;
        let flags = CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: as above; the stream is the caller's word.
        unsafe { result::stream::wait_event(stream(later), event.0, flags) }.refused("cuStreamWaitEvent", "an event")
    }

    unsafe fn fill(&self, handle: u64, address: u64, value: u8, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.context.make_current()?;
        // SAFETY: the caller's.
        unsafe { result::memset_d8_async(address, value, bytes, stream(handle)) }
            .refused("cuMemsetD8Async", &format!("{bytes} bytes"))
    }

    unsafe fn copy(&self, handle: u64, from: u64, to: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.context.make_current()?;
        // SAFETY: the caller's.
        unsafe { result::memcpy_dtod_async(to, from, bytes, stream(handle)) }
            .refused("cuMemcpyDtoDAsync", &format!("{bytes} bytes"))
    }

    unsafe fn upload(&self, handle: u64, address: u64, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.context.make_current()?;
        // SAFETY: the caller's for the destination; the source is a slice, and is waited for.
        unsafe {
            result::memcpy_htod_async(address, bytes, stream(handle))
                .refused("cuMemcpyHtoDAsync", &format!("{} bytes", bytes.len()))?;
            self.synchronize(handle)
        }
    }

    unsafe fn download(&self, handle: u64, address: u64, bytes: &mut [u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.context.make_current()?;
        let about = format!("{} bytes", bytes.len());
        // SAFETY: the caller's for the source; the destination is a slice, and is waited for.
        unsafe {
            result::memcpy_dtoh_async(bytes, address, stream(handle)).refused("cuMemcpyDtoHAsync", &about)?;
            self.synchronize(handle)
        }
    }

    unsafe fn launch(&self, handle: u64, launch: &Launch, parameters: &[*mut c_void]) -> Result<()> {
        self.context.make_current()?;
        let Launch { kernel, grid, threads, shared } = *launch;
        let function = self.functions.find(launch)?;
        let [x, y, z] = grid;
        let (list, none) = (parameters.as_ptr().cast_mut(), std::ptr::null_mut());
        // SAFETY: the function belongs to a module that lives as long as `self`, in the context that is current; the driver
        // only reads the array, and copies the parameters before it returns; they and the stream are the caller's word.
        let done = unsafe { sys::cuLaunchKernel(function, x, y, z, threads, 1, 1, shared, stream(handle), list, none) };
        let about = || format!("`{kernel}` with grid {grid:?}, {threads} threads, {shared} bytes");
        done.result().map_err(|error| refused("cuLaunchKernel", error, &about()))
    }

    unsafe fn begin_capture(&self, handle: u64) -> Result<()> {
        self.context.make_current()?;
        // Other threads may go on with what a recording forbids.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the caller's.
        unsafe { result::stream::begin_capture(stream(handle), mode) }.refused("cuStreamBeginCapture", "a stream")
    }

    unsafe fn end_capture(&self, handle: u64) -> Result<u64> {
        self.context.make_current()?;
        // SAFETY: the caller's.
        let graph = unsafe { result::stream::end_capture(stream(handle)) }.refused("cuStreamEndCapture", "a stream")?;
        if graph.is_null() {
            let problem = "the recording was broken off".into();
            return Err(Error::Cuda { call: "cuStreamEndCapture", problem });
        }
        // SAFETY: the graph was made just now, and is not needed once it is instantiated.
        let executable = unsafe {
            let executable = result::graph::instantiate(graph, CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(graph);
            executable
        };
        executable.refused("cuGraphInstantiate", "recorded calls").map(|graph| graph as u64)
    }

    unsafe fn replay(&self, graph: u64, handle: u64) -> Result<()> {
        self.context.make_current()?;
        // SAFETY: the caller's.
        unsafe { result::graph::launch(graph as sys::CUgraphExec, stream(handle)) }.refused("cuGraphLaunch", "a graph")
    }

    unsafe fn forget_graph(&self, graph: u64) {
        // SAFETY: the caller's. A refusal would change nothing.
        let _ = self.context.make_current().map(|()| unsafe { result::graph::exec_destroy(graph as sys::CUgraphExec) });
    }

    unsafe fn time(&self, handle: u64, work: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
        self.context.make_current()?;
        let [start, end] = [Event::new(CUevent_flags::CU_EVENT_DEFAULT)?, Event::new(CUevent_flags::CU_EVENT_DEFAULT)?];
        // SAFETY: both events are live; the stream is the caller's word.
        unsafe { start.record(handle) }?;
        work()?;
        // SAFETY: as above.
        unsafe {
            end.record(handle)?;
            self.synchronize(handle)?;
            let milliseconds = result::event::elapsed(start.0, end.0).refused("cuEventElapsedTime", "two events")?;
            Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
        }
    }
}

/// A point in a stream.
struct Event(sys::CUevent);

impl Event {
    fn new(flags: CUevent_flags) -> Result<Self> {
        result::event::create(flags).refused("cuEventCreate", "an event").map(Self)
    }

    /// # Safety
    /// The stream is one of the current context.
    unsafe fn record(&self, handle: u64) -> Result<()> {
        // SAFETY: the caller's; the event is live.
        unsafe { result::event::record(self.0, stream(handle)) }.refused("cuEventRecord", "an event")
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created by `new`, and this is the only drop. A refusal would change nothing.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With or without kernels, driver and GPU: an answer, and never a panic.
    #[test]
    fn opening_answers() {
        match Driver::open(0) {
            Ok(driver) => round_trip(&driver),
            Err(Error::KernelsNotBuilt { reason }) => assert!(crate::cuda::kernels().is_none() && !reason.is_empty()),
            Err(Error::NoDriver { problem }) => assert!(!problem.contains('\n'), "{problem}"),
            Err(Error::NoDevice { reason }) => assert!(!reason.is_empty() && !reason.contains('\n'), "{reason}"),
            Err(other) => panic!("{other}"),
        }
        assert!(Driver::open(u32::MAX).is_err());
    }

    fn round_trip(driver: &Driver) {
        let address = driver.alloc("bytes", 6).expect("memory");
        let mut bytes = [0; 6];
        // SAFETY: six bytes of this GPU, given back once; there is no such kernel, so nothing runs.
        unsafe {
            driver.upload(0, address, &[1, 2, 3, 4, 5, 6]).expect("a copy");
            driver.fill(0, address + 2, 9, 2).expect("a fill");
            driver.download(0, address, &mut bytes).expect("a copy");
            driver.free(address);
            assert!(driver.launch(0, &Launch::linear("no such kernel", 1, 1), &[]).is_err());
        }
        assert_eq!(bytes, [1, 2, 9, 9, 5, 6]);
        driver.synchronize_all().expect("no kernel failed");
        driver.trim().expect("no kernel failed");
    }

    #[test]
    fn it_may_be_shared_by_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Driver>();
    }
}
