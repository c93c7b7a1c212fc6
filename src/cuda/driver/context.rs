//! The GPU's primary context, and the driver's words when it refuses.

use crate::{Error, Result};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

/// The GPU's primary context, which every library in the process shares.
pub(super) struct Context {
    device: sys::CUdevice,
    handle: sys::CUcontext,
}

// SAFETY: the handle is the driver's, valid in every thread of the process, and the driver locks what it needs to.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Takes hold of the context, and makes it current.
    pub(super) fn retain(device: sys::CUdevice) -> Result<Self> {
        // SAFETY: the device is one that the driver named.
        let handle = unsafe { result::primary_ctx::retain(device) };
        let context = Self { device, handle: handle.refused("cuDevicePrimaryCtxRetain", "the GPU's context")? };
        context.make_current()?;
        Ok(context)
    }

    /// The same for all who share the context.
    pub(super) fn id(&self) -> u64 {
        self.handle as u64
    }

    /// What is current is a thread's own affair, so every call says it again; that costs some nanoseconds.
    pub(super) fn make_current(&self) -> Result<()> {
        // SAFETY: the context is held until `self` is dropped.
        unsafe { result::ctx::set_current(self.handle) }.refused("cuCtxSetCurrent", "the GPU's context")
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once, by `retain`. The driver's refusal would change nothing.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Turns the driver's error into ours.
pub(super) trait Refused<T> {
    fn refused(self, call: &'static str, about: &str) -> Result<T>;
}

impl<T> Refused<T> for Result<T, DriverError> {
    fn refused(self, call: &'static str, about: &str) -> Result<T> {
        self.map_err(|error| refused(call, error, about))
    }
}

/// The driver's words about a call, and what the call was about.
pub(super) fn refused(call: &'static str, error: DriverError, about: &str) -> Error {
    let words = error.error_string().map(|text| text.to_string_lossy().into_owned());
    let words = words.unwrap_or_else(|_| "an error the driver has no words for".into());
    Error::Cuda { call, problem: format!("{words} ({:?}): {about}", error.0) }
}
