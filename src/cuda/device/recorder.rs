//! Recording on the emulator, by CUDA's rules: what waits for a stream that records is refused, and breaks the recording off.

use crate::cuda::device::Launch;
use crate::{Error, Result};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, ThreadId};

/// Streams, what they record, and graphs that were recorded.
#[derive(Debug, Default)]
pub(in crate::cuda) struct Recorder {
    streams: HashSet<u64>,
    recordings: HashMap<u64, Recording>,
    graphs: HashMap<u64, Arc<[Recorded]>>,
}

/// Something to be done again.
#[derive(Clone, Debug)]
pub(in crate::cuda) enum Recorded {
    Launch { launch: Launch, parameters: Vec<Vec<u8>> },
    Fill { address: u64, value: u8, bytes: usize },
    Copy { from: u64, to: u64, bytes: usize },
}

/// What a stream has recorded so far.
#[derive(Debug)]
struct Recording {
    what: Vec<Recorded>,
    /// Who began, and has to end it.
    by: ThreadId,
    /// Whether something was refused since.
    broken: bool,
}

impl Recorder {
    /// The stream of the device's own work.
    pub(in crate::cuda) const OWN_STREAM: u64 = 0;

    pub(in crate::cuda) fn open_stream(&mut self) -> u64 {
        let handle = new_handle();
        self.streams.insert(handle);
        handle
    }

    pub(in crate::cuda) fn close_stream(&mut self, stream: u64) {
        self.recordings.remove(&stream);
        self.streams.remove(&stream);
    }

    pub(in crate::cuda) fn knows(&self, stream: u64) -> bool {
        stream == Self::OWN_STREAM || self.streams.contains(&stream)
    }

    /// Refuses a call that waits for a stream that records.
    pub(in crate::cuda) fn wait(&mut self, call: &str, stream: u64) -> Result<()> {
        match self.recordings.get_mut(&stream) {
            None => Ok(()),
            Some(recording) => {
                recording.broken = true;
                Err(refused(call, "is not permitted when the stream is capturing"))
            }
        }
    }

    /// Keeps what is started on a stream that records; false for one that does not.
    pub(in crate::cuda) fn keep(&mut self, stream: u64, what: impl FnOnce() -> Result<Recorded>) -> Result<bool> {
        match self.recordings.get_mut(&stream) {
            None => Ok(false),
            Some(recording) if recording.broken => Err(refused("record", "failed in this recording before")),
            Some(recording) => {
                recording.what.push(what()?);
                Ok(true)
            }
        }
    }

    pub(in crate::cuda) fn begin(&mut self, stream: u64) -> Result<()> {
        if stream == Self::OWN_STREAM {
            return Err(refused("begin_capture", "is not permitted on the device's own stream"));
        }
        self.wait("begin_capture", stream)?;
        self.recordings.insert(stream, Recording { what: Vec::new(), by: thread::current().id(), broken: false });
        Ok(())
    }

    /// What was recorded, as a graph. The recording is over in any case.
    pub(in crate::cuda) fn end(&mut self, stream: u64) -> Result<u64> {
        let refuse = |problem| Err(refused("end_capture", problem));
        match self.recordings.remove(&stream) {
            None => refuse("is for a stream that records"),
            Some(recording) if recording.by != thread::current().id() => refuse("is for the thread that began"),
            Some(Recording { broken: true, .. }) => refuse("failed: something before was not permitted when capturing"),
            Some(Recording { what, .. }) => {
                let handle = new_handle();
                self.graphs.insert(handle, what.into());
                Ok(handle)
            }
        }
    }

    pub(in crate::cuda) fn graph(&self, graph: u64) -> Result<Arc<[Recorded]>> {
        self.graphs.get(&graph).cloned().ok_or_else(|| refused("replay", "is for a graph that was recorded"))
    }

    pub(in crate::cuda) fn forget(&mut self, graph: u64) {
        self.graphs.remove(&graph);
    }
}

/// Handles of streams and graphs: no two devices share one, nor is one used again.
fn new_handle() -> u64 {
    static HANDLES: AtomicU64 = AtomicU64::new(1);
    HANDLES.fetch_add(1, Ordering::Relaxed)
}

fn refused(call: &str, problem: &str) -> Error {
    Error::Kernel { kernel: call.into(), problem: format!("{call} {problem}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILL: Recorded = Recorded::Fill { address: 256, value: 1, bytes: 2 };

    #[test]
    fn what_waits_breaks_a_recording_off_and_leaves_others_alone() {
        let mut recorder = Recorder::default();
        let [a, b] = [recorder.open_stream(), recorder.open_stream()];
        recorder.begin(a).unwrap();
        recorder.begin(b).unwrap();
        assert!(recorder.begin(a).is_err(), "twice");
        assert!(recorder.wait("synchronize", a).is_err());
        assert!(recorder.keep(a, || Ok(FILL)).is_err(), "nothing goes on");
        assert!(recorder.keep(b, || Ok(FILL)).unwrap());
        assert!(!recorder.keep(Recorder::OWN_STREAM, || unreachable!()).unwrap());
        assert!(recorder.wait("synchronize", Recorder::OWN_STREAM).is_ok());
        let error = recorder.end(a).unwrap_err().to_string();
        assert!(error.contains("not permitted when capturing"), "{error}");
        let graph = recorder.end(b).unwrap();
        assert_eq!(recorder.graph(graph).unwrap().len(), 1);
        assert!(recorder.end(a).is_err() && recorder.begin(Recorder::OWN_STREAM).is_err());
    }

    #[test]
    fn who_began_ends() {
        let mut recorder = Recorder::default();
        let stream = recorder.open_stream();
        recorder.begin(stream).unwrap();
        thread::scope(|scope| {
            let ended = scope.spawn(|| recorder.end(stream));
            assert!(ended.join().unwrap().unwrap_err().to_string().contains("the thread that began"));
        });
    }
}
