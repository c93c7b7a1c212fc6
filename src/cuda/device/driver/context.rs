//! The GPU's primary context, what belongs to it, and the driver's words when it refuses.

use crate::{Error, Result};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute, CUpointer_attribute, CUresult};
use std::ffi::{c_int, c_uint};
use std::fmt::Display;

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

    /// What a stream is of, unless it is this context's.
    ///
    /// # Safety
    /// There is such a stream.
    pub(super) unsafe fn stream_elsewhere(&self, stream: sys::CUstream) -> Result<Option<String>> {
        // Stream 0 is of whatever context is current.
        self.make_current()?;
        let mut of = std::ptr::null_mut();
        // SAFETY: the address is of a live handle; the stream is the caller's word.
        unsafe { sys::cuStreamGetCtx(stream, &raw mut of) }.result().refused("cuStreamGetCtx", "a stream")?;
        Ok((of != self.handle).then(|| "another context".into()))
    }

    /// Where memory is, if this context is known not to reach it.
    pub(super) fn memory_elsewhere(&self, address: u64) -> Result<Option<String>> {
        self.make_current()?;
        let Some(memory) = Known::of(address)? else { return Ok(None) };
        let pageable = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS;
        // SAFETY: the device is one that the driver named.
        let pageable = unsafe { result::device::get_attribute(self.device, pageable) };
        let pageable = pageable.refused("cuDeviceGetAttribute", "access to host memory")? != 0;
        Ok(memory.elsewhere(self.handle, self.device, pageable).map(Into::into))
    }
}

/// What the driver knows of an address.
#[derive(Clone, Copy)]
struct Known {
    /// Null where there is none: for memory of a pool, or mapped by hand.
    context: sys::CUcontext,
    /// 0 where the driver knows nothing.
    kind: c_uint,
    device: c_int,
}

impl Known {
    /// None where the driver does not answer: the caller's word counts then.
    fn of(address: u64) -> Result<Option<Self>> {
        let mut known = Self { context: std::ptr::null_mut(), kind: 0, device: 0 };
        let mut asked = [
            CUpointer_attribute::CU_POINTER_ATTRIBUTE_CONTEXT,
            CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
            CUpointer_attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
        ];
        let mut answers =
            [(&raw mut known.context).cast(), (&raw mut known.kind).cast(), (&raw mut known.device).cast()];
        // SAFETY: there are as many attributes as answers, each of its attribute's type; any address may be asked about.
        let done = unsafe { sys::cuPointerGetAttributes(3, asked.as_mut_ptr(), answers.as_mut_ptr(), address) };
        match done.result() {
            Ok(()) => Ok(Some(known)),
            Err(DriverError(CUresult::CUDA_ERROR_INVALID_VALUE)) => Ok(None),
            Err(error) => Err(refused("cuPointerGetAttributes", error, format_args!("the address {address:#x}"))),
        }
    }

    /// Where it is, if a context of a device does not reach it. `pageable`: the device reads any host memory.
    fn elsewhere(self, context: sys::CUcontext, device: c_int, pageable: bool) -> Option<&'static str> {
        match self {
            Self { kind: 0, .. } => (!pageable).then_some("memory that the GPU does not reach"),
            Self { context: none, device: of, .. } if none.is_null() => {
                (of != device).then_some("memory of another GPU")
            }
            Self { context: of, .. } => (of != context).then_some("memory of another context"),
        }
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
    /// What the call was about is put into words only then.
    fn refused(self, call: &'static str, about: impl Display) -> Result<T>;
}

impl<T> Refused<T> for Result<T, DriverError> {
    fn refused(self, call: &'static str, about: impl Display) -> Result<T> {
        self.map_err(|error| refused(call, error, about))
    }
}

/// The driver's words about a call, and what the call was about.
pub(super) fn refused(call: &'static str, error: DriverError, about: impl Display) -> Error {
    let words = error.error_string().map(|text| text.to_string_lossy().into_owned());
    let words = words.unwrap_or_else(|_| "an error the driver has no words for".into());
    Error::Cuda { call, problem: format!("{words} ({:?}): {about}", error.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_other_contexts_is_elsewhere() {
        let context = |number: usize| number as sys::CUcontext;
        let known = |of, kind, device| Known { context: context(of), kind, device };
        let elsewhere = |known: Known, pageable| known.elsewhere(context(8), 1, pageable);
        for (reached, pageable) in [(known(8, 2, 1), false), (known(0, 2, 1), false), (known(0, 0, 0), true)] {
            assert_eq!(elsewhere(reached, pageable), None);
        }
        assert_eq!(elsewhere(known(16, 2, 1), true), Some("memory of another context"));
        assert_eq!(elsewhere(known(0, 2, 0), true), Some("memory of another GPU"));
        assert_eq!(elsewhere(known(0, 0, 1), false), Some("memory that the GPU does not reach"));
    }
}
