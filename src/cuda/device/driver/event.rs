//! Points in streams, and what a thread may do while something is being recorded.

use super::context::Refused;
use crate::Result;
use cudarc::driver::result;
use cudarc::driver::sys::{self, CUevent_flags, CUstreamCaptureMode, CUstreamCaptureStatus};
use std::fmt::Display;
use std::marker::PhantomData;

/// A point in a stream.
pub(super) struct Event(sys::CUevent);

// SAFETY: the handle is the driver's, valid in every thread of the process, and the driver locks what it needs to.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// In the current context, of no stream yet.
    pub(super) fn new(flags: CUevent_flags) -> Result<Self> {
        result::event::create(flags).refused("cuEventCreate", "an event").map(Self)
    }

    /// Where a stream is now.
    ///
    /// # Safety
    /// The stream is one of the current context.
    pub(super) unsafe fn of(stream: u64) -> Result<Self> {
        let event = Self::new(CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
        // SAFETY: the caller's.
        unsafe { event.record(stream) }?;
        Ok(event)
    }

    /// From now on this is where a stream is now.
    ///
    /// # Safety
    /// The stream is one of the current context.
    pub(super) unsafe fn record(&self, stream: u64) -> Result<()> {
        // SAFETY: the caller's; the event is live.
        unsafe { result::event::record(self.0, stream as sys::CUstream) }.refused("cuEventRecord", "an event")
    }

    /// What is started on a stream from now on waits, on the device, for this point.
    ///
    /// # Safety
    /// The stream is one of the current context.
    pub(super) unsafe fn hold_back(&self, stream: u64) -> Result<()> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: the caller's; the event is live, and the driver keeps what it still needs of it.
        unsafe { result::stream::wait_event(stream as sys::CUstream, self.0, flags) }
            .refused("cuStreamWaitEvent", "an event")
    }

    /// Waits until the device is there.
    pub(super) fn wait(&self, about: impl Display) -> Result<()> {
        // SAFETY: the event is live.
        unsafe { result::event::synchronize(self.0) }.refused("cuEventSynchronize", about)
    }

    /// Whether the device is there, as far as the driver says.
    pub(super) fn is_past(&self) -> bool {
        // SAFETY: the event is live.
        unsafe { result::event::query(self.0) }.is_ok()
    }

    /// Milliseconds from this point to a later one; both were made to be timed, and the device is past both.
    pub(super) fn until(&self, later: &Self) -> Result<f32> {
        // SAFETY: both events are live.
        unsafe { result::event::elapsed(self.0, later.0) }.refused("cuEventElapsedTime", "two events")
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created by `new`, and this is the only drop. A refusal would change nothing.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

/// Whether a stream is being recorded; `None` where the driver cannot say, for the legacy stream beside a recording.
///
/// # Safety
/// The stream is one of the current context.
pub(super) unsafe fn is_recording(stream: u64) -> Option<bool> {
    let mut status = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    // SAFETY: the address is of a live status; the stream is the caller's word.
    let answer = unsafe { sys::cuStreamIsCapturing(stream as sys::CUstream, &raw mut status) };
    answer.result().ok().map(|()| status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
}

/// While this is there, its thread may allocate and wait for events although some thread, this one included, records: none
/// of what the library does under it touches a stream that is recorded.
pub(super) struct BesideRecordings {
    before: CUstreamCaptureMode,
    /// The mode is the thread's.
    in_one_thread: PhantomData<*const ()>,
}

impl BesideRecordings {
    pub(super) fn enter() -> Self {
        let relaxed = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        Self { before: exchange(relaxed), in_one_thread: PhantomData }
    }
}

impl Drop for BesideRecordings {
    fn drop(&mut self) {
        exchange(self.before);
    }
}

/// Sets what the thread may do beside recordings; what it was before.
fn exchange(mut mode: CUstreamCaptureMode) -> CUstreamCaptureMode {
    // SAFETY: the address is of a live mode. A refusal leaves the thread as it was, which is stricter.
    let _ = unsafe { sys::cuThreadExchangeStreamCaptureMode(&raw mut mode) };
    mode
}
