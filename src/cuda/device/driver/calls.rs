//! The driver as a device: each of its calls, with what it was about where the driver refuses.

use super::context::Refused;
use super::event::{BesideRecordings, Event, is_recording};
use super::pool::Source;
use super::recent::Words;
use super::{Driver, maps, streams};
use crate::cuda::Device;
use crate::cuda::Launch;
use crate::cuda::abi::TensorMap;
use crate::cuda::device::{Target, TensorBoxes};
use crate::{Error, Result};
use cudarc::driver::result;
use cudarc::driver::sys::{self, CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};
use std::ffi::c_void;
use std::time::Duration;

const RECORDED_ELSEWHERE: &str = "a stream that was lent to the library is being recorded by its owner, so what was started on \
                                  it before cannot be waited for; a `Stream` reads and writes in its own order";

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

    fn target(&self) -> Target {
        self.target
    }

    fn alloc(&self, name: &str, bytes: usize) -> Result<u64> {
        let found = if self.pooled { self.memory.alloc(self, bytes)? } else { self.take(bytes.max(1))? };
        let Some(address) = found else {
            let problem = format!("{bytes} bytes for `{name}` cannot be had from {}", self.description);
            return Err(Error::Cuda { call: "cuMemAlloc", problem });
        };
        if let Some(byte) = self.poison {
            let own = self.streams.own();
            // SAFETY: it was allocated with as many bytes, and nobody else has it.
            unsafe {
                self.fill(own, address, byte, bytes)?;
                // Other streams do not wait for this one, and must find it done.
                self.synchronize(own)?;
            }
        }
        Ok(address)
    }

    unsafe fn free(&self, address: u64) {
        match self.pooled {
            true => self.memory.free(address),
            // What was started before may still use it. Where that cannot be waited for it is kept; what went wrong is
            // reported by the next call that can.
            false => match self.wait() {
                Ok(true) => self.give(address),
                Ok(false) | Err(_) => self.memory.keep(address),
            },
        }
    }

    fn own_stream(&self) -> u64 {
        self.streams.own()
    }

    fn open_stream(&self) -> Result<u64> {
        self.context.make_current()?;
        let _beside = BesideRecordings::enter();
        let handle = streams::open()?;
        self.streams.hold(handle);
        Ok(handle)
    }

    unsafe fn close_stream(&self, handle: u64) {
        // SAFETY: the caller's.
        let _ = self.context.make_current().map(|()| unsafe {
            self.streams.let_go(handle);
            streams::close(handle);
        });
    }

    unsafe fn borrow_stream(&self, handle: u64) {
        self.streams.hold(handle);
    }

    unsafe fn release_stream(&self, handle: u64) {
        // SAFETY: the caller's.
        let _ = self.context.make_current().map(|()| unsafe { self.streams.let_go(handle) });
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
        let _beside = BesideRecordings::enter();
        // SAFETY: the caller's.
        unsafe { result::stream::synchronize(stream(handle)) }.refused("cuStreamSynchronize", self.blamed())
    }

    fn synchronize_all(&self) -> Result<()> {
        if self.wait()? {
            return Ok(());
        }
        Err(Error::Cuda { call: "cuStreamIsCapturing", problem: RECORDED_ELSEWHERE.into() })
    }

    unsafe fn order(&self, earlier: u64, later: u64) -> Result<()> {
        self.context.make_current()?;
        // SAFETY: the caller's.
        unsafe { Event::of(earlier)?.hold_back(later) }
    }

    unsafe fn fill(&self, handle: u64, address: u64, value: u8, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.context.make_current()?;
        // SAFETY: the caller's.
        unsafe { result::memset_d8_async(address, value, bytes, stream(handle)) }
            .refused("cuMemsetD8Async", format_args!("{bytes} bytes; {}", self.recent))?;
        // SAFETY: the caller's.
        unsafe { self.streams.used(handle) }
    }

    unsafe fn copy(&self, handle: u64, from: u64, to: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.context.make_current()?;
        // SAFETY: the caller's.
        unsafe { result::memcpy_dtod_async(to, from, bytes, stream(handle)) }
            .refused("cuMemcpyDtoDAsync", format_args!("{bytes} bytes; {}", self.recent))?;
        // SAFETY: the caller's.
        unsafe { self.streams.used(handle) }
    }

    unsafe fn upload(&self, handle: u64, address: u64, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.context.make_current()?;
        let _beside = BesideRecordings::enter();
        // SAFETY: the caller's for the destination; the source is a slice, and is waited for.
        unsafe {
            result::memcpy_htod_async(address, bytes, stream(handle))
                .refused("cuMemcpyHtoDAsync", format_args!("{} bytes; {}", bytes.len(), self.recent))?;
            self.synchronize(handle)
        }
    }

    unsafe fn download(&self, handle: u64, address: u64, bytes: &mut [u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.context.make_current()?;
        let _beside = BesideRecordings::enter();
        let count = bytes.len();
        // SAFETY: the caller's for the source; the destination is a slice, and is waited for.
        unsafe {
            result::memcpy_dtoh_async(bytes, address, stream(handle))
                .refused("cuMemcpyDtoHAsync", format_args!("{count} bytes; {}", self.recent))?;
            self.synchronize(handle)
        }
    }

    fn tensor_map(&self, boxes: &TensorBoxes) -> Result<TensorMap> {
        self.maps.get(boxes, || maps::encode(boxes))
    }

    unsafe fn launch(&self, handle: u64, launch: &Launch, parameters: &[*mut c_void]) -> Result<()> {
        self.context.make_current()?;
        let Launch { grid: [x, y, z], threads, shared, .. } = *launch;
        let function = self.functions.find(launch)?;
        let (list, none) = (parameters.as_ptr().cast_mut(), std::ptr::null_mut());
        // SAFETY: the function belongs to a module that lives as long as `self`, in the context that is current; the driver
        // only reads the array, and copies the parameters before it returns; they and the stream are the caller's word.
        let done = unsafe { sys::cuLaunchKernel(function, x, y, z, threads, 1, 1, shared, stream(handle), list, none) };
        done.result().refused("cuLaunchKernel", format_args!("{}; {}", Words(launch), self.recent))?;
        self.recent.note(launch);
        // SAFETY: the caller's.
        unsafe {
            self.streams.used(handle)?;
            if self.one_by_one && is_recording(handle) == Some(false) {
                result::stream::synchronize(stream(handle)).refused("cuStreamSynchronize", Words(launch))?;
            }
        }
        Ok(())
    }

    unsafe fn begin_capture(&self, handle: u64) -> Result<()> {
        self.context.make_current()?;
        // This thread is refused what would be lost to the recording; other threads go on, but for what no mode allows.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the caller's.
        let begin = || {
            unsafe { result::stream::begin_capture(stream(handle), mode) }.refused("cuStreamBeginCapture", "a stream")
        };
        // SAFETY: the caller's.
        unsafe { self.streams.begin(handle, begin) }
    }

    unsafe fn end_capture(&self, handle: u64) -> Result<u64> {
        self.context.make_current()?;
        // SAFETY: the caller's.
        let graph = unsafe { result::stream::end_capture(stream(handle)) };
        self.streams.end(handle);
        let graph = graph.refused("cuStreamEndCapture", "a stream")?;
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
        unsafe {
            result::graph::launch(graph as sys::CUgraphExec, stream(handle))
                .refused("cuGraphLaunch", format_args!("a graph; {}", self.recent))?;
            self.streams.used(handle)
        }
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
            Ok(Duration::from_secs_f64(f64::from(start.until(&end)?.max(0.0)) / 1e3))
        }
    }
}
