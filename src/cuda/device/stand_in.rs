//! A device that counts what is asked of it, and can be told to fail: for tests of everything above a device.

#![allow(unsafe_code, reason = "passes unsafe calls on")]

use crate::cuda::abi::TensorMap;
use crate::cuda::device::{Device, Launch, Target, TensorBoxes};
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::ffi::c_void;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What was asked of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Of memory, those that were refused left out.
    pub allocations: usize,
    /// Bytes of these.
    pub bytes: usize,
    /// Allocations given back.
    pub frees: usize,
    /// Of kernels.
    pub launches: usize,
    /// Tensor maps that were asked for.
    pub maps: usize,
    /// Of memory with one value.
    pub fills: usize,
    /// Within the device.
    pub copies: usize,
    /// Copies to or from the host, and waiting.
    pub waits: usize,
    /// Streams that are open.
    pub streams: i64,
    /// An engine's streams that are lent.
    pub borrowed: i64,
    /// Graphs that are there.
    pub graphs: i64,
    /// Recordings that were begun.
    pub captures: usize,
    /// Of graphs.
    pub replays: usize,
}

/// When a device fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failing {
    /// The allocation of this number, from 0.
    Allocation(usize),
    /// The launch of this number, and nothing else.
    Launch(usize),
    /// Everything from the launch of this number on: the device is lost.
    LostAt(usize),
}

/// Passes everything on to another device.
#[derive(Debug)]
pub struct StandIn<D> {
    inner: Arc<D>,
    failing: Option<Failing>,
    elsewhere: bool,
    allocations: AtomicUsize,
    bytes: AtomicUsize,
    frees: AtomicUsize,
    launches: AtomicUsize,
    maps: AtomicUsize,
    fills: AtomicUsize,
    copies: AtomicUsize,
    waits: AtomicUsize,
    streams: AtomicI64,
    borrowed: AtomicI64,
    graphs: AtomicI64,
    captures: AtomicUsize,
    replays: AtomicUsize,
    kernels: Mutex<BTreeSet<&'static str>>,
}

impl<D: Device> StandIn<D> {
    /// All counts at zero.
    pub fn new(inner: Arc<D>, failing: Option<Failing>) -> Self {
        Self {
            inner,
            failing,
            elsewhere: false,
            allocations: AtomicUsize::default(),
            bytes: AtomicUsize::default(),
            frees: AtomicUsize::default(),
            launches: AtomicUsize::default(),
            maps: AtomicUsize::default(),
            fills: AtomicUsize::default(),
            copies: AtomicUsize::default(),
            waits: AtomicUsize::default(),
            streams: AtomicI64::default(),
            borrowed: AtomicI64::default(),
            graphs: AtomicI64::default(),
            captures: AtomicUsize::default(),
            replays: AtomicUsize::default(),
            kernels: Mutex::default(),
        }
    }

    /// The same as another device, as far as anybody can see.
    pub fn elsewhere(self) -> Self {
        Self { elsewhere: true, ..self }
    }

    /// What was asked so far.
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        Counts {
            allocations: read(&self.allocations),
            bytes: read(&self.bytes),
            frees: read(&self.frees),
            launches: read(&self.launches),
            maps: read(&self.maps),
            fills: read(&self.fills),
            copies: read(&self.copies),
            waits: read(&self.waits),
            streams: self.streams.load(Ordering::Relaxed),
            borrowed: self.borrowed.load(Ordering::Relaxed),
            graphs: self.graphs.load(Ordering::Relaxed),
            captures: read(&self.captures),
            replays: read(&self.replays),
        }
    }

    /// The kernels that were launched so far.
    pub fn kernels(&self) -> BTreeSet<&'static str> {
        self.kernels.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The device's own error once it is lost.
    fn alive(&self) -> Result<()> {
        match self.failing {
            Some(Failing::LostAt(launch)) if self.launches.load(Ordering::Relaxed) > launch => lost(),
            _ => Ok(()),
        }
    }
}

fn lost() -> Result<()> {
    Err(Error::Cuda { call: "stand-in", problem: "the device is lost".into() })
}

fn count(counter: &AtomicUsize) -> usize {
    counter.fetch_add(1, Ordering::Relaxed)
}

impl<D: Device> Device for StandIn<D> {
    fn id(&self) -> u64 {
        self.inner.id() ^ u64::from(self.elsewhere)
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn target(&self) -> Target {
        self.inner.target()
    }

    fn alloc(&self, name: &str, bytes: usize) -> Result<u64> {
        self.alive()?;
        if self.failing == Some(Failing::Allocation(count(&self.allocations))) {
            self.allocations.fetch_sub(1, Ordering::Relaxed);
            return Err(Error::Memory { bytes });
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.inner.alloc(name, bytes)
    }

    unsafe fn free(&self, address: u64) {
        count(&self.frees);
        // SAFETY: the caller's.
        unsafe { self.inner.free(address) }
    }

    fn open_stream(&self) -> Result<u64> {
        self.alive()?;
        self.streams.fetch_add(1, Ordering::Relaxed);
        self.inner.open_stream()
    }

    unsafe fn close_stream(&self, stream: u64) {
        self.streams.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { self.inner.close_stream(stream) }
    }

    fn own_stream(&self) -> u64 {
        self.inner.own_stream()
    }

    unsafe fn borrow_stream(&self, stream: u64) {
        self.borrowed.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { self.inner.borrow_stream(stream) }
    }

    unsafe fn release_stream(&self, stream: u64) {
        self.borrowed.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { self.inner.release_stream(stream) }
    }

    unsafe fn stream_elsewhere(&self, stream: u64) -> Result<Option<String>> {
        // SAFETY: the caller's.
        unsafe { self.inner.stream_elsewhere(stream) }
    }

    fn memory_elsewhere(&self, address: u64, bytes: usize) -> Result<Option<String>> {
        self.inner.memory_elsewhere(address, bytes)
    }

    unsafe fn synchronize(&self, stream: u64) -> Result<()> {
        self.alive()?;
        count(&self.waits);
        // SAFETY: the caller's.
        unsafe { self.inner.synchronize(stream) }
    }

    fn synchronize_all(&self) -> Result<()> {
        self.alive()?;
        count(&self.waits);
        self.inner.synchronize_all()
    }

    unsafe fn order(&self, earlier: u64, later: u64) -> Result<()> {
        self.alive()?;
        // SAFETY: the caller's.
        unsafe { self.inner.order(earlier, later) }
    }

    unsafe fn fill(&self, stream: u64, address: u64, value: u8, bytes: usize) -> Result<()> {
        self.alive()?;
        count(&self.fills);
        // SAFETY: the caller's.
        unsafe { self.inner.fill(stream, address, value, bytes) }
    }

    unsafe fn copy(&self, stream: u64, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.alive()?;
        count(&self.copies);
        // SAFETY: the caller's.
        unsafe { self.inner.copy(stream, from, to, bytes) }
    }

    unsafe fn upload(&self, stream: u64, address: u64, bytes: &[u8]) -> Result<()> {
        self.alive()?;
        count(&self.waits);
        // SAFETY: the caller's.
        unsafe { self.inner.upload(stream, address, bytes) }
    }

    unsafe fn download(&self, stream: u64, address: u64, bytes: &mut [u8]) -> Result<()> {
        self.alive()?;
        count(&self.waits);
        // SAFETY: the caller's.
        unsafe { self.inner.download(stream, address, bytes) }
    }

    unsafe fn read_only(&self, address: u64) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { self.inner.read_only(address) }
    }

    unsafe fn unwritten(&self, address: u64) -> Result<usize> {
        // SAFETY: the caller's.
        unsafe { self.inner.unwritten(address) }
    }

    fn tensor_map(&self, boxes: &TensorBoxes) -> Result<TensorMap> {
        self.alive()?;
        count(&self.maps);
        self.inner.tensor_map(boxes)
    }

    unsafe fn launch(&self, stream: u64, launch: &Launch, parameters: &[*mut c_void]) -> Result<()> {
        let number = count(&self.launches);
        self.kernels.lock().unwrap_or_else(PoisonError::into_inner).insert(launch.kernel);
        match self.failing {
            Some(Failing::Launch(failing)) if failing == number => {
                Err(Error::Cuda { call: "stand-in", problem: format!("launch {number} fails") })
            }
            Some(Failing::LostAt(failing)) if failing <= number => lost(),
            // SAFETY: the caller's.
            _ => unsafe { self.inner.launch(stream, launch, parameters) },
        }
    }

    unsafe fn begin_capture(&self, stream: u64) -> Result<()> {
        self.alive()?;
        count(&self.captures);
        // SAFETY: the caller's.
        unsafe { self.inner.begin_capture(stream) }
    }

    unsafe fn end_capture(&self, stream: u64) -> Result<u64> {
        // SAFETY: the caller's.
        let graph = unsafe { self.inner.end_capture(stream) }?;
        self.graphs.fetch_add(1, Ordering::Relaxed);
        Ok(graph)
    }

    unsafe fn replay(&self, graph: u64, stream: u64) -> Result<()> {
        self.alive()?;
        count(&self.replays);
        // SAFETY: the caller's.
        unsafe { self.inner.replay(graph, stream) }
    }

    unsafe fn forget_graph(&self, graph: u64) {
        self.graphs.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: the caller's.
        unsafe { self.inner.forget_graph(graph) }
    }
}
