//! Which streams may have work of the library, so that it can be waited for stream by stream: waiting for the whole context
//! would break every recording in it, whoever makes it ("Prohibited and Unhandled Operations" in the CUDA programming
//! guide), and be broken by it.

use super::context::Refused;
use super::event::{BesideRecordings, Event, is_recording};
use crate::Result;
use cudarc::driver::result::stream::{self, StreamKind};
use cudarc::driver::sys::{CUevent_flags, CUstream};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

/// The stream that every thread has of its own behind one handle (`CU_STREAM_PER_THREAD`).
const PER_THREAD: u64 = 2;

/// The library's own streams and those that are lent to it.
pub(super) struct Streams {
    /// For what belongs to no caller's stream.
    own: u64,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    streams: HashMap<u64, Stream>,
    /// Where each thread's own stream was when the library last used it.
    threads: HashMap<ThreadId, Arc<Event>>,
    /// Where streams were when they were given back.
    ended: Vec<Arc<Event>>,
}

#[derive(Default)]
struct Stream {
    /// How many hold it.
    holders: usize,
    /// Where it was when the library began to record on it.
    before_recording: Option<Arc<Event>>,
}

/// Points after which everything that was started so far has ended.
pub(super) struct Marks {
    events: Vec<Arc<Event>>,
    /// Whether that is so: a stream that somebody else records on cannot be asked.
    complete: bool,
}

/// A new stream of the current context, which waits for no other.
pub(super) fn open() -> Result<u64> {
    stream::create(StreamKind::NonBlocking).refused("cuStreamCreate", "a stream").map(|stream| stream as u64)
}

/// Gives a stream back when its work is done.
///
/// # Safety
/// [`open`] made it, and nobody uses it any more.
pub(super) unsafe fn close(handle: u64) {
    // SAFETY: the caller's. A refusal would change nothing.
    let _ = unsafe { stream::destroy(handle as CUstream) };
}

impl Streams {
    /// With a stream of its own in the current context.
    pub(super) fn new() -> Result<Self> {
        let streams = Self { own: open()?, known: Mutex::default() };
        streams.hold(streams.own);
        Ok(streams)
    }

    /// The stream for what belongs to no caller's.
    pub(super) fn own(&self) -> u64 {
        self.own
    }

    // Every change under the lock is complete, so a panicking thread leaves nothing half-done.
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream is held once more.
    pub(super) fn hold(&self, stream: u64) {
        self.lock().streams.entry(stream).or_default().holders += 1;
    }

    /// A stream is held once less; what was started on it may go on.
    ///
    /// # Safety
    /// The stream is one of the current context.
    pub(super) unsafe fn let_go(&self, stream: u64) {
        let _beside = BesideRecordings::enter();
        let mut known = self.lock();
        let Some(held) = known.streams.get_mut(&stream) else { return };
        held.holders = held.holders.saturating_sub(1);
        if held.holders > 0 {
            return;
        }
        let before = known.streams.remove(&stream).and_then(|held| held.before_recording);
        // Nothing goes on where the driver refuses: the context is lost then.
        // SAFETY: the caller's.
        let last = before.or_else(|| unsafe { mark_of(stream) }.ok().flatten());
        known.ended.retain(|event| !event.is_past());
        known.ended.extend(last);
    }

    /// The library used a stream, with whatever is not being recorded.
    ///
    /// # Safety
    /// The stream is one of the current context.
    pub(super) unsafe fn used(&self, stream: u64) -> Result<()> {
        // Other streams can be asked for later, by any thread.
        // SAFETY: the caller's.
        if stream != PER_THREAD || unsafe { is_recording(stream) } != Some(false) {
            return Ok(());
        }
        let mut known = self.lock();
        let event = match known.threads.entry(thread::current().id()) {
            Entry::Occupied(event) => event.into_mut(),
            Entry::Vacant(thread) => thread.insert(Arc::new(Event::new(CUevent_flags::CU_EVENT_DISABLE_TIMING)?)),
        };
        // SAFETY: the caller's.
        unsafe { event.record(stream) }
    }

    /// Begins a recording by `begin`. What was started before can still be waited for.
    ///
    /// # Safety
    /// The stream is one of the current context.
    pub(super) unsafe fn begin(&self, stream: u64, begin: impl FnOnce() -> Result<()>) -> Result<()> {
        // Under the lock, so that nobody marks a stream that has just begun to record: the mark would be recorded.
        let mut known = self.lock();
        // SAFETY: the caller's. A stream that records already is refused by the driver, with the driver's words.
        let before = unsafe { mark_of(stream) }?;
        begin()?;
        known.streams.entry(stream).or_default().before_recording = before;
        Ok(())
    }

    /// A recording of the library's is over.
    pub(super) fn end(&self, stream: u64) {
        let mut known = self.lock();
        if let Some(held) = known.streams.get_mut(&stream) {
            held.before_recording = None;
        }
        if known.streams.get(&stream).is_some_and(|held| held.holders == 0) {
            known.streams.remove(&stream);
        }
    }

    /// Where everything is that was started so far and is not being recorded.
    ///
    /// # Safety
    /// A context is current, the one that all the streams are of.
    unsafe fn mark(&self) -> Result<Marks> {
        let known = self.lock();
        let mut marks = Marks { events: Vec::new(), complete: true };
        for (&stream, held) in &known.streams {
            let mark = match &held.before_recording {
                Some(before) => Some(before.clone()),
                // SAFETY: a stream that is held is there.
                None => unsafe { mark_of(stream) }?,
            };
            marks.complete &= mark.is_some();
            marks.events.extend(mark);
        }
        marks.events.extend(known.threads.values().chain(&known.ended).cloned());
        Ok(marks)
    }

    /// Waits for everything that was started so far and is not being recorded. False where that cannot be waited for,
    /// because somebody else records on a stream that was lent to the library.
    ///
    /// # Errors
    /// The driver's, what went wrong in a kernel included.
    ///
    /// # Safety
    /// As [`Streams::mark`].
    pub(super) unsafe fn wait(&self, about: impl Display) -> Result<bool> {
        let _beside = BesideRecordings::enter();
        // SAFETY: the caller's.
        let marks = unsafe { self.mark() }?;
        // Without the lock: other threads go on meanwhile.
        marks.events.iter().try_for_each(|event| event.wait(&about))?;
        self.lock().ended.retain(|ended| !marks.events.iter().any(|event| Arc::ptr_eq(ended, event)));
        Ok(marks.complete)
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        // SAFETY: `new` opened it, and whoever used it borrowed `self`.
        unsafe { close(self.own) };
    }
}

/// Where a stream is now; `None` for one that records, which has no such place.
///
/// # Safety
/// The stream is one of the current context.
unsafe fn mark_of(stream: u64) -> Result<Option<Arc<Event>>> {
    // SAFETY: the caller's.
    match unsafe { is_recording(stream) } {
        // SAFETY: the caller's.
        Some(false) => unsafe { Event::of(stream) }.map(|event| Some(Arc::new(event))),
        _ => Ok(None),
    }
}
