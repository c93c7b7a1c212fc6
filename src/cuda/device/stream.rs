//! Streams with room to work in, and calls recorded on them.

#![allow(unsafe_code, reason = "streams and recorded calls of an engine are the engine's word")]

use crate::cuda::device::memory::DeviceMemory;
use crate::cuda::device::workspace::Workspace;
use crate::cuda::device::{Call, Device};
use crate::{Buffer, DType, Error, Result, Slice};
use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// What a layer's kernels are started on: an ordered queue of a device, and a workspace that all layers called on it share.
///
/// A stream may move to another thread; two threads cannot use it at once, because its workspace belongs to one call at a
/// time. Calls return as soon as their kernels are queued.
pub struct Stream<D: Device> {
    device: Arc<D>,
    handle: u64,
    owned: bool,
    workspace: DeviceMemory<D>,
    /// What would have been started, while that is listed. No two threads may use a stream at once anyway.
    listed: RefCell<Option<Vec<Listed>>>,
}

/// A launch of a layer call that was listed instead of started.
#[derive(Clone, Copy, Debug)]
pub struct Listed {
    /// The stage that makes it.
    pub stage: &'static str,
    /// The kernel with its threads and parameters.
    pub call: Call,
}

impl<D: Device> Stream<D> {
    /// A new stream with that much workspace.
    pub(in crate::cuda) fn new(device: &Arc<D>, workspace: usize) -> Result<Self> {
        let workspace = DeviceMemory::alloc(device, "workspace", DType::U8, workspace.max(Workspace::HEADER))?;
        let handle = device.open_stream()?;
        Self { device: device.clone(), handle, owned: true, workspace, listed: RefCell::default() }.ready()
    }

    /// An engine's stream, with a workspace that the engine may own too.
    ///
    /// # Safety
    /// The handle is of a stream that is still there when the result is dropped.
    pub(in crate::cuda) unsafe fn on(device: &Arc<D>, handle: u64, workspace: DeviceMemory<D>) -> Result<Self> {
        // SAFETY: the caller's.
        if let Some(found) = unsafe { device.stream_elsewhere(handle) }? {
            let expected = format!("a stream of {}", device.describe());
            return Err(Error::Location { op: "stream", argument: "handle", expected, found });
        }
        if workspace.device().id() != device.id() {
            let found = format!("memory of {}", workspace.device().describe());
            return Err(Error::Location { op: "stream", argument: "workspace", expected: device.describe(), found });
        }
        if workspace.dtype() != DType::U8 {
            let (expected, found) = (DType::U8.to_string(), workspace.dtype());
            return Err(Error::DType { op: "stream", argument: "workspace", expected, found });
        }
        // SAFETY: the stream is the device's, and is there until the result is dropped, which returns it.
        unsafe { device.borrow_stream(handle) };
        Self { device: device.clone(), handle, owned: false, workspace, listed: RefCell::default() }.ready()
    }

    /// The workspace's header starts as zeros.
    fn ready(self) -> Result<Self> {
        if self.workspace.len() < Workspace::HEADER {
            return Err(self.too_small("stream", Workspace::HEADER));
        }
        if !self.workspace.address().is_multiple_of(256) {
            let problem = format!("the workspace at {:#x} is not at a multiple of 256", self.workspace.address());
            return Err(Error::Workspace { op: "stream", problem });
        }
        // SAFETY: the stream is the device's, and the workspace has a header.
        unsafe { self.device.fill(self.handle, self.workspace.address(), 0, Workspace::HEADER) }?;
        Ok(self)
    }

    /// The device's name for it: a `CUstream` as a number.
    pub fn handle(&self) -> u64 {
        self.handle
    }

    /// Bytes of workspace.
    pub fn workspace_bytes(&self) -> usize {
        self.workspace.len()
    }

    /// Waits for everything started on this stream.
    ///
    /// # Errors
    /// The device's, what went wrong in a kernel included.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the device's own streams.
        unsafe { self.device.synchronize(self.handle) }
    }

    /// Overwrites every element, in this stream's order; waits for this stream alone.
    ///
    /// # Errors
    /// [`Error::DType`], [`Error::Shape`] or [`Error::Location`] for elements that cannot take their place, or the device's.
    pub fn write<'a>(&self, to: &mut DeviceMemory<D>, from: impl Into<Slice<'a>>) -> Result<()> {
        self.expect_device("write", to.device())?;
        to.write_on(self.handle, from.into())
    }

    /// A copy in host memory, in this stream's order; waits for this stream alone.
    ///
    /// # Errors
    /// [`Error::Location`] for memory of another device, or the device's.
    pub fn read(&self, from: &DeviceMemory<D>) -> Result<Buffer> {
        self.expect_device("read", from.device())?;
        from.read_on(self.handle)
    }

    /// What is started here from now on waits, on the device, for what was started on `earlier` so far.
    ///
    /// # Errors
    /// [`Error::Location`] for a stream of another device, or the device's.
    pub fn wait_for(&self, earlier: &Self) -> Result<()> {
        self.expect_device("wait_for", &earlier.device)?;
        // SAFETY: the device's own streams.
        unsafe { self.device.order(earlier.handle, self.handle) }
    }

    /// Records everything that `calls` starts on this stream, instead of doing it.
    ///
    /// # Errors
    /// That of `calls`, or the device's. Nothing is being recorded any more in either case.
    pub fn capture(&self, calls: impl FnOnce() -> Result<()>) -> Result<Graph<D>> {
        // SAFETY: the device's own stream.
        unsafe { self.device.begin_capture(self.handle) }?;
        let called = calls();
        // SAFETY: as above.
        let graph = unsafe { self.device.end_capture(self.handle) };
        // The first thing that went wrong is the reason for what followed.
        let graph = graph.map(|handle| Graph { device: self.device.clone(), handle });
        called?;
        graph
    }

    /// The launches that `calls` would make on this stream, none of which is started: for who times or looks at single kernels.
    /// [`Call::run`] starts one, as long as the tensors are there; in their order they do what the call does. Fills are made, not
    /// listed.
    ///
    /// # Errors
    /// That of `calls`.
    pub fn list(&self, calls: impl FnOnce() -> Result<()>) -> Result<Vec<Listed>> {
        self.listed.replace(Some(Vec::new()));
        let called = calls();
        let listed = self.listed.take().unwrap_or_default();
        called.map(|()| listed)
    }

    /// Starts a launch of a stage, or lists it.
    ///
    /// # Safety
    /// As [`Call::run`].
    pub(in crate::cuda) unsafe fn start(&self, stage: &'static str, call: Call) -> Result<()> {
        match &mut *self.listed.borrow_mut() {
            Some(listed) => listed.push(Listed { stage, call }),
            // SAFETY: the caller's; the stream is the device's.
            None => unsafe { call.run(&*self.device, self.handle) }?,
        }
        Ok(())
    }

    /// How long the device takes for what `work` starts on this stream. Waits.
    ///
    /// # Errors
    /// The device's, or that of `work`.
    pub fn time(&self, mut work: impl FnMut() -> Result<()>) -> Result<Duration> {
        // SAFETY: the device's own streams.
        unsafe { self.device.time(self.handle, &mut work) }
    }

    /// Refuses to work for another device.
    pub(in crate::cuda) fn expect_device(&self, op: &'static str, device: &Arc<D>) -> Result<()> {
        if self.device.id() == device.id() {
            return Ok(());
        }
        let found = self.device.describe();
        Err(Error::Location { op, argument: "stream", expected: format!("a stream of {}", device.describe()), found })
    }

    /// Address of a workspace that is as large as a stage needs.
    pub(in crate::cuda) fn workspace(&self, op: &'static str, needed: Workspace) -> Result<u64> {
        if needed.bytes > self.workspace.len() {
            return Err(self.too_small(op, needed.bytes));
        }
        Ok(self.workspace.address())
    }

    fn too_small(&self, op: &'static str, needed: usize) -> Error {
        let problem = format!("{needed} bytes of workspace are needed, the stream has {}", self.workspace.len());
        Error::Workspace { op, problem }
    }
}

impl<D: Device> Drop for Stream<D> {
    fn drop(&mut self) {
        // SAFETY: opened by `new` or lent by `on`, and this is the only drop.
        unsafe {
            match self.owned {
                true => self.device.close_stream(self.handle),
                false => self.device.release_stream(self.handle),
            }
        }
    }
}

impl<D: Device> fmt::Debug for Stream<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream({:#x} of {}, {:?})", self.handle, self.device.describe(), self.workspace)
    }
}

/// Recorded calls, to be started again as one: with the same tensors, whose contents may have changed.
pub struct Graph<D: Device> {
    device: Arc<D>,
    handle: u64,
}

impl<D: Device> Graph<D> {
    /// Starts everything that was recorded.
    ///
    /// # Errors
    /// [`Error::Location`] for a stream of another device, or the device's.
    ///
    /// # Safety
    /// Every tensor and buffer of the recorded calls, the workspace of the stream that they were recorded on included, is
    /// still there, and nothing else uses them before this has ended.
    pub unsafe fn launch(&self, stream: &Stream<D>) -> Result<()> {
        stream.expect_device("graph", &self.device)?;
        // SAFETY: the caller's.
        unsafe { self.device.replay(self.handle, stream.handle) }
    }
}

impl<D: Device> Drop for Graph<D> {
    fn drop(&mut self) {
        // SAFETY: made by `capture`, and this is the only drop.
        unsafe { self.device.forget_graph(self.handle) };
    }
}
