//! The kernels on an NVIDIA GPU, through the driver. **Not yet run on a GPU**: only its refusals are tested.
//!
//! Everything goes through the null stream, so calls take effect in the order in which they are made. The driver's library
//! is loaded when the first GPU is opened; a program that never asks for one runs without it.

#![allow(unsafe_code, reason = "calls into the driver; each block names what it relies on")]

mod functions;
mod memory;
mod open;

use super::device::{Device, Launch};
use crate::{Error, Result};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use functions::Functions;
use memory::Memory;
use std::ffi::c_void;
use std::fmt;

/// One GPU with its kernels loaded and the memory taken from it. Dropping it gives everything back.
pub struct Driver {
    // Given back in this order: modules and memory belong to the context.
    functions: Functions,
    memory: Memory,
    context: Context,
    description: String,
    multiprocessors: usize,
}

impl Driver {
    /// Opens a GPU by number and loads every kernel.
    ///
    /// # Errors
    /// [`Error::KernelsNotBuilt`]; [`Error::NoDevice`] without a driver or a GPU of that number; [`Error::Cuda`] where the
    /// driver refuses the GPU or the kernels.
    pub fn open(ordinal: u32) -> Result<Self> {
        let images = super::require_kernels()?;
        let gpu = open::gpu(ordinal)?;
        let context = Context::retain(gpu.device)?;
        let functions = Functions::load(images, &gpu.description)?;
        let (description, multiprocessors) = (gpu.description, gpu.multiprocessors);
        Ok(Self { functions, memory: Memory::default(), context, description, multiprocessors })
    }

    /// The address of `bytes` bytes of uninitialised memory, aligned to 256.
    ///
    /// # Errors
    /// [`Error::Cuda`] when the memory cannot be had.
    pub fn alloc(&self, bytes: usize) -> Result<u64> {
        self.context.make_current()?;
        self.memory.alloc(bytes)
    }

    /// Gives back what [`Driver::alloc`] gave.
    ///
    /// # Errors
    /// [`Error::Cuda`] for any other address, and when the driver reports what went wrong earlier.
    pub fn free(&self, address: u64) -> Result<()> {
        self.context.make_current()?;
        self.memory.free(address)
    }

    /// Copies to the GPU.
    ///
    /// # Errors
    /// [`Error::Cuda`] when that is not all inside one allocation, or the driver refuses.
    pub fn upload(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.context.make_current()?;
        self.memory.upload(address, bytes)
    }

    /// Copies from the GPU, after everything launched before.
    ///
    /// # Errors
    /// [`Error::Cuda`] when that is not all inside one allocation, or a kernel failed, or the driver refuses.
    pub fn download(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        self.context.make_current()?;
        self.memory.download(address, bytes)
    }

    /// Sets `length` bytes to `value`.
    ///
    /// # Errors
    /// [`Error::Cuda`] when they are not all inside one allocation, or the driver refuses.
    pub fn memset(&self, address: u64, value: u8, length: usize) -> Result<()> {
        self.context.make_current()?;
        self.memory.set(address, value, length)
    }

    /// Starts a kernel, with one address for each of its parameters.
    ///
    /// # Errors
    /// [`Error::Cuda`] when there is no kernel of that name or the driver refuses the sizes. What goes wrong while it runs
    /// is reported by a later call.
    ///
    /// # Safety
    /// There are as many parameters as the kernel has, each the address of a value of its type. What they point to is
    /// memory of this GPU, as large as the kernel expects for this grid.
    pub unsafe fn launch(
        &self,
        kernel: &str,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: u32,
        parameters: &[*mut c_void],
    ) -> Result<()> {
        self.context.make_current()?;
        let function = self.functions.find(kernel, shared_bytes)?;
        let ([gx, gy, gz], [bx, by, bz]) = (grid, block);
        let parameters = parameters.as_ptr().cast_mut();
        let stream = result::stream::null();
        // SAFETY: the function belongs to a module that lives as long as `self`, in the context that is current; the driver
        // only reads the array, and copies the parameters before it returns; they are the caller's word.
        let done = unsafe {
            sys::cuLaunchKernel(
                function,
                gx,
                gy,
                gz,
                bx,
                by,
                bz,
                shared_bytes,
                stream,
                parameters,
                std::ptr::null_mut(),
            )
        };
        done.result().map_err(|error| {
            refused(
                "cuLaunchKernel",
                error,
                &format!("`{kernel}` with grid {grid:?}, block {block:?}, {shared_bytes} bytes"),
            )
        })
    }

    /// Waits until everything launched has ended.
    ///
    /// # Errors
    /// [`Error::Cuda`] when a kernel failed.
    pub fn synchronize(&self) -> Result<()> {
        self.context.make_current()?;
        result::ctx::synchronize().map_err(|error| refused("cuCtxSynchronize", error, &self.description))
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
        let _ = self.context.make_current();
        let _ = result::ctx::synchronize();
    }
}

impl Device for Driver {
    fn describe(&self) -> String {
        self.description.clone()
    }

    fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    /// Filled with ones, which are NaN in every floating type: what a kernel leaves unwritten shows.
    fn alloc(&self, _name: &str, bytes: usize) -> Result<u64> {
        let address = Driver::alloc(self, bytes)?;
        Driver::memset(self, address, 0xff, bytes).map(|()| address)
    }

    fn free(&self, address: u64) {
        // What went wrong in a kernel is reported by the next call that can.
        let _ = Driver::free(self, address);
    }

    fn upload(&self, address: u64, bytes: &[u8]) -> Result<()> {
        Driver::upload(self, address, bytes)
    }

    fn download(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        Driver::download(self, address, bytes)
    }

    unsafe fn launch(&self, launch: &Launch, parameters: &[*mut c_void]) -> Result<()> {
        // SAFETY: the caller's word.
        unsafe { Driver::launch(self, launch.kernel, launch.grid, [launch.threads, 1, 1], launch.shared, parameters) }
    }
}

/// The GPU's primary context, which every library in the process shares.
struct Context {
    device: sys::CUdevice,
    handle: sys::CUcontext,
}

// SAFETY: the handle is the driver's, valid in every thread of the process, and the driver locks what it needs to.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Takes hold of the context, and makes it current.
    fn retain(device: sys::CUdevice) -> Result<Self> {
        // SAFETY: the device is one that the driver named.
        let handle = unsafe { result::primary_ctx::retain(device) };
        let handle = handle.map_err(|error| refused("cuDevicePrimaryCtxRetain", error, "the GPU's context"))?;
        let context = Self { device, handle };
        context.make_current()?;
        Ok(context)
    }

    /// What is current is a thread's own affair, so every call says it again; that costs some nanoseconds.
    fn make_current(&self) -> Result<()> {
        // SAFETY: the context is held until `self` is dropped.
        let done = unsafe { result::ctx::set_current(self.handle) };
        done.map_err(|error| refused("cuCtxSetCurrent", error, "the GPU's context"))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once, by `retain`. The driver's refusal would change nothing.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// The driver's words about a call, and what the call was about.
fn refused(call: &'static str, error: DriverError, about: &str) -> Error {
    let words = error.error_string().map(|text| text.to_string_lossy().into_owned());
    let words = words.unwrap_or_else(|_| "an error the driver has no words for".into());
    Error::Cuda { call, problem: format!("{words} ({:?}): {about}", error.0) }
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
            Err(Error::NoDevice { reason }) => assert!(!reason.is_empty() && !reason.contains('\n'), "{reason}"),
            Err(other) => panic!("{other}"),
        }
        assert!(Driver::open(u32::MAX).is_err());
    }

    fn round_trip(driver: &Driver) {
        let address = driver.alloc(6).expect("memory");
        driver.upload(address, &[1, 2, 3, 4, 5, 6]).expect("a copy");
        driver.memset(address + 2, 9, 2).expect("a fill");
        let mut bytes = [0; 6];
        driver.download(address, &mut bytes).expect("a copy");
        assert_eq!(bytes, [1, 2, 9, 9, 5, 6]);
        assert!(driver.upload(address + 1, &bytes).is_err(), "past the end of the allocation");
        driver.synchronize().expect("no kernel failed");
        driver.free(address).expect("an allocation");
        assert!(driver.free(address).is_err(), "freed twice");
        // SAFETY: there is no such kernel, so nothing runs.
        assert!(unsafe { Driver::launch(driver, "no such kernel", [1; 3], [1; 3], 0, &[]) }.is_err());
    }

    #[test]
    fn it_may_be_shared_by_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Driver>();
    }
}
