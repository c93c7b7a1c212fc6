//! The kernels on an NVIDIA GPU, through the driver. **Not yet run on a GPU**: tested on a library that keeps the driver's
//! rules and runs kernels on the emulator (`tests/driver`).
//!
//! The driver's library is loaded when the first GPU is opened; a program that never asks for one runs without it. The GPU's
//! primary context is used, which every library in the process shares, an engine's included.

#![allow(unsafe_code, reason = "calls into the driver; each block names what it relies on")]

mod calls;
mod context;
mod event;
mod functions;
mod maps;
mod open;
mod pool;
mod recent;
mod streams;

use crate::Result;
use crate::cuda::device::Target;
use crate::cuda::device::tensor_map::MapCache;
use context::{Context, refused};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use event::BesideRecordings;
use functions::Functions;
pub use functions::LoadedKernels;
use pool::{Pool, Source};
use recent::Recent;
use std::{env, fmt};
use streams::Streams;

/// One GPU with its kernels loaded and the memory taken from it. Dropping it gives everything back.
pub struct Driver {
    // Given back in this order: modules, memory and streams belong to the context.
    functions: Functions,
    memory: Pool,
    streams: Streams,
    context: Context,
    /// Whether memory is kept for later.
    pooled: bool,
    recent: Recent,
    maps: MapCache,
    /// Whether each launch is waited for, so that what goes wrong in it is told with its name.
    one_by_one: bool,
    description: String,
    target: Target,
    /// What new memory is filled with, so that tests see what is read before it is written.
    poison: Option<u8>,
}

impl Driver {
    /// Opens a GPU by number and loads every kernel. With the environment variable `DA_MOE_SYNC=1` each launch that is not
    /// recorded is waited for, so that a fault is told with its kernel's name.
    ///
    /// # Errors
    /// [`KernelsNotBuilt`](crate::Error::KernelsNotBuilt), [`NoDriver`](crate::Error::NoDriver),
    /// [`NoDevice`](crate::Error::NoDevice) without a GPU of that number, [`DriverTooOld`](crate::Error::DriverTooOld) or
    /// [`Architecture`](crate::Error::Architecture) where the kernels cannot run, [`Cuda`](crate::Error::Cuda) where the
    /// driver refuses.
    pub fn open(ordinal: u32) -> Result<Self> {
        let mut driver = Self::open_lazily(ordinal)?;
        driver.functions.load_all()?;
        Ok(driver)
    }

    /// As [`Driver::open`] without loading a kernel before it is first started: for tools like `compute-sanitizer`, which
    /// work on all that is loaded. What is recorded must have been started before.
    ///
    /// # Errors
    /// As [`Driver::open`].
    pub fn open_lazily(ordinal: u32) -> Result<Self> {
        let images = crate::cuda::device::images::require_kernels()?;
        let gpu = open::gpu(ordinal)?;
        let context = Context::retain(gpu.device)?;
        let images = images.iter().filter(|image| gpu.target.architecture.runs(image.architecture));
        let functions = Functions::find_all(images, gpu.shared_bytes, &gpu.description)?;
        let streams = Streams::new()?;
        Ok(Self {
            functions,
            memory: Pool::default(),
            streams,
            context,
            pooled: true,
            recent: Recent::default(),
            maps: MapCache::new(),
            one_by_one: env::var_os("DA_MOE_SYNC").is_some_and(|wanted| wanted == "1"),
            description: gpu.description,
            target: gpu.target,
            poison: None,
        })
    }

    /// What was loaded onto the GPU: which machine code, and what it takes.
    pub fn loaded(&self) -> LoadedKernels {
        self.functions.loaded()
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
    /// [`Error::Cuda`](crate::Error::Cuda) when something that ran before failed.
    pub fn trim(&self) -> Result<()> {
        self.memory.trim(self)
    }

    /// The GPU and what may be to blame for an error that shows only now.
    fn blamed(&self) -> impl fmt::Display {
        fmt::from_fn(|f| write!(f, "{}; {}", self.description, self.recent))
    }
}

impl Source for Driver {
    fn take(&self, bytes: usize) -> Result<Option<u64>> {
        self.context.make_current()?;
        let _beside = BesideRecordings::enter();
        // SAFETY: a context is current; the memory is not read before it is written.
        match unsafe { result::malloc_sync(bytes) } {
            Ok(address) => Ok(Some(address)),
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Ok(None),
            Err(error) => Err(refused("cuMemAlloc", error, format_args!("{bytes} bytes; {}", self.recent))),
        }
    }

    fn give(&self, address: u64) {
        let _beside = BesideRecordings::enter();
        // SAFETY: the pool gives each address back once. What went wrong in a kernel is reported by the next call that can.
        let _ = self.context.make_current().map(|()| unsafe { result::free_sync(address) });
    }

    fn wait(&self) -> Result<bool> {
        self.context.make_current()?;
        // SAFETY: every stream that is held is of this context, which is current.
        unsafe { self.streams.wait(self.blamed()) }
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
        let _ = self.wait();
        self.memory.release(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use crate::cuda::Device;
    use crate::cuda::Launch;

    /// With or without kernels, driver and GPU: an answer, and never a panic.
    #[test]
    fn opening_answers() {
        match Driver::open(0) {
            Ok(driver) => round_trip(&driver),
            Err(Error::KernelsNotBuilt { reason }) => {
                assert!(crate::cuda::device::images::kernels().is_none() && !reason.is_empty())
            }
            Err(Error::NoDriver { problem }) => assert!(!problem.contains('\n'), "{problem}"),
            Err(Error::NoDevice { reason }) => assert!(!reason.is_empty() && !reason.contains('\n'), "{reason}"),
            Err(other) => panic!("{other}"),
        }
        assert!(Driver::open(u32::MAX).is_err());
    }

    fn round_trip(driver: &Driver) {
        let own = driver.own_stream();
        let address = driver.alloc("bytes", 6).expect("memory");
        let mut bytes = [0; 6];
        // SAFETY: six bytes of this GPU, given back once; there is no such kernel, so nothing runs.
        unsafe {
            driver.upload(own, address, &[1, 2, 3, 4, 5, 6]).expect("a copy");
            driver.fill(own, address + 2, 9, 2).expect("a fill");
            driver.download(own, address, &mut bytes).expect("a copy");
            driver.free(address);
            assert!(driver.launch(own, &Launch::linear("no such kernel", 1, 1), &[]).is_err());
        }
        assert_eq!(bytes, [1, 2, 9, 9, 5, 6]);
        driver.synchronize_all().expect("no kernel failed");
        driver.trim().expect("no kernel failed");
    }

    #[test]
    fn it_may_be_shared_by_threads_and_its_streams_handed_on() {
        fn shared<T: Send + Sync>() {}
        fn handed_on<T: Send>() {}
        shared::<Driver>();
        handed_on::<crate::cuda::Stream<Driver>>();
    }
}
