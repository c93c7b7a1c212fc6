//! Where kernels run: the CUDA driver, or the emulator on machines without a GPU. Everything above this file decides what
//! to launch and with which parameters, and never knows which of the two it talks to.

#![allow(unsafe_code, reason = "addresses of device memory; each block names what it relies on")]

pub(in crate::cuda) mod bytes;
mod call;
#[cfg(feature = "cuda")]
pub(in crate::cuda) mod driver;
#[cfg(feature = "emulator")]
pub(in crate::cuda) mod emulated;
pub(in crate::cuda) mod images;
pub(in crate::cuda) mod memory;
#[cfg(feature = "emulator")]
mod recorder;
#[cfg(feature = "emulator")]
pub(in crate::cuda) mod stand_in;
pub(in crate::cuda) mod stream;
mod target;
pub(in crate::cuda) mod tensor_map;
pub(in crate::cuda) mod workspace;

pub use call::{Call, Launch, Parameters};
pub use target::{Architecture, Target};
pub use tensor_map::{Elements, TensorBoxes};

use crate::Result;
use crate::cuda::abi::TensorMap;
use std::ffi::c_void;
use std::time::{Duration, Instant};

/// Memory, streams and launches of one device. What is started on one stream happens in the order in which it was
/// started. Nothing here disturbs a recording of another thread: no wait is for the whole of a context.
pub trait Device: Send + Sync + 'static {
    /// The same for devices that can reach each other's memory and streams, and for no others.
    fn id(&self) -> u64;

    /// What it is, for people.
    fn describe(&self) -> String;

    /// What it has, for who chooses kernels.
    fn target(&self) -> Target;

    /// The address of `bytes` bytes of uninitialised memory, aligned to 256. `name` is for reports. May wait.
    ///
    /// # Errors
    /// When the memory cannot be had.
    fn alloc(&self, name: &str, bytes: usize) -> Result<u64>;

    /// Gives back what [`Device::alloc`] gave. What was started before may still use it.
    ///
    /// # Safety
    /// The address came from [`Device::alloc`], and was not given back before.
    unsafe fn free(&self, address: u64);

    /// The stream for what belongs to no caller's: it is always there, for any thread, is never recorded, and orders nothing
    /// on other streams.
    fn own_stream(&self) -> u64;

    /// Another stream.
    ///
    /// # Errors
    /// The device's.
    fn open_stream(&self) -> Result<u64>;

    /// Gives a stream back when what was started on it has ended.
    ///
    /// # Safety
    /// The stream came from [`Device::open_stream`], and was not given back before.
    unsafe fn close_stream(&self, stream: u64);

    /// An engine's stream is used from now on, and counts in [`Device::synchronize_all`], until
    /// [`Device::release_stream`].
    ///
    /// # Safety
    /// The stream is one of this device, and is there until then.
    unsafe fn borrow_stream(&self, _stream: u64) {}

    /// An engine's stream is not used any more. What was started on it may go on.
    ///
    /// # Safety
    /// It was lent, and not returned as often.
    unsafe fn release_stream(&self, _stream: u64) {}

    /// What a stream is of, unless it is one of this device.
    ///
    /// # Errors
    /// The device's.
    ///
    /// # Safety
    /// The handle is of a stream that is there, of whatever device.
    unsafe fn stream_elsewhere(&self, stream: u64) -> Result<Option<String>>;

    /// Where memory is, if this device is known not to reach it.
    ///
    /// # Errors
    /// The device's.
    fn memory_elsewhere(&self, address: u64, bytes: usize) -> Result<Option<String>>;

    /// Waits for everything started on a stream.
    ///
    /// # Errors
    /// The device's, what went wrong in a kernel included.
    ///
    /// # Safety
    /// The stream is one of this device.
    unsafe fn synchronize(&self, stream: u64) -> Result<()>;

    /// Waits for everything started on any stream that this device opened or was lent; what is being recorded is not started.
    ///
    /// # Errors
    /// As [`Device::synchronize`], and while somebody else records on a stream that was lent, which cannot be waited for.
    fn synchronize_all(&self) -> Result<()>;

    /// What is started on `later` from now on waits, on the device, for what was started on `earlier` so far.
    ///
    /// # Errors
    /// The device's.
    ///
    /// # Safety
    /// Both are streams of this device.
    unsafe fn order(&self, earlier: u64, later: u64) -> Result<()>;

    /// Sets bytes to `value`.
    ///
    /// # Errors
    /// The device's.
    ///
    /// # Safety
    /// The stream is one of this device, and the bytes are memory of it.
    unsafe fn fill(&self, stream: u64, address: u64, value: u8, bytes: usize) -> Result<()>;

    /// Copies bytes to where they do not overlap.
    ///
    /// # Errors
    /// The device's.
    ///
    /// # Safety
    /// The stream is one of this device, and both are memory of it.
    unsafe fn copy(&self, stream: u64, from: u64, to: u64, bytes: usize) -> Result<()>;

    /// Copies to the device; the source may change as soon as this returns.
    ///
    /// # Errors
    /// The device's.
    ///
    /// # Safety
    /// The stream is one of this device, and the bytes are memory of it.
    unsafe fn upload(&self, stream: u64, address: u64, bytes: &[u8]) -> Result<()>;

    /// Copies from the device, and waits for that.
    ///
    /// # Errors
    /// The device's.
    ///
    /// # Safety
    /// The stream is one of this device, and the bytes are memory of it.
    unsafe fn download(&self, stream: u64, address: u64, bytes: &mut [u8]) -> Result<()>;

    /// From now on kernels may only read this allocation, where the device can watch that.
    ///
    /// # Errors
    /// The device's.
    ///
    /// # Safety
    /// The address came from [`Device::alloc`].
    unsafe fn read_only(&self, _address: u64) -> Result<()> {
        Ok(())
    }

    /// Bytes of an allocation that nothing has written yet; 0 where the device cannot know.
    ///
    /// # Errors
    /// The device's.
    ///
    /// # Safety
    /// The address came from [`Device::alloc`].
    unsafe fn unwritten(&self, _address: u64) -> Result<usize> {
        Ok(0)
    }

    /// What the tensor memory accelerator is to know of a tensor: a kernel's parameter. Asks nothing of the device itself.
    ///
    /// # Errors
    /// The device's, for what breaks the rules of [`TensorBoxes`], and where there is no such accelerator.
    fn tensor_map(&self, boxes: &TensorBoxes) -> Result<TensorMap>;

    /// Starts a kernel with `parameters` as `cuLaunchKernel` takes them: one address for each of its parameters.
    ///
    /// # Errors
    /// The device's.
    ///
    /// # Safety
    /// The stream is one of this device; the parameters are of the kernel's types, and what they point to is memory of this
    /// device of the size the kernel expects.
    unsafe fn launch(&self, stream: u64, launch: &Launch, parameters: &[*mut c_void]) -> Result<()>;

    /// From now on what is started on a stream is recorded instead.
    ///
    /// # Errors
    /// The device's.
    ///
    /// # Safety
    /// The stream is one of this device.
    unsafe fn begin_capture(&self, stream: u64) -> Result<()>;

    /// What was recorded, as a graph.
    ///
    /// # Errors
    /// The device's; the recording is over then too.
    ///
    /// # Safety
    /// The stream is one of this device.
    unsafe fn end_capture(&self, stream: u64) -> Result<u64>;

    /// Starts everything that a graph recorded, in order.
    ///
    /// # Errors
    /// The device's.
    ///
    /// # Safety
    /// Graph and stream are of this device; what the recorded kernels point to is still memory of this device, as large as it was.
    unsafe fn replay(&self, graph: u64, stream: u64) -> Result<()>;

    /// Gives a graph back.
    ///
    /// # Safety
    /// The graph came from [`Device::end_capture`], and was not given back before.
    unsafe fn forget_graph(&self, graph: u64);

    /// How long the device takes for what `work` starts on a stream. Waits.
    ///
    /// # Errors
    /// The device's, or that of `work`.
    ///
    /// # Safety
    /// The stream is one of this device.
    unsafe fn time(&self, stream: u64, work: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
        // SAFETY: the caller's.
        unsafe { self.synchronize(stream) }?;
        let start = Instant::now();
        work()?;
        // SAFETY: the caller's.
        unsafe { self.synchronize(stream) }?;
        Ok(start.elapsed())
    }
}
