//! Recordings: what is kept, what breaks them, and whom they keep from what.

use std::ptr::null_mut;
use std::thread;

use crate::image::sum;
use crate::library::{Cuda, Handle, LEGACY};

const GLOBAL: i32 = 0;
const THREAD_LOCAL: i32 = 1;
const RELAXED: i32 = 2;

/// What the end of a recording answers.
fn end(cuda: &Cuda, stream: Handle) -> i32 {
    let mut graph = null_mut();
    let result = cuda.end(stream, &mut graph);
    assert_eq!(graph.is_null(), result != 0);
    result
}

fn status(cuda: &Cuda, stream: Handle) -> i32 {
    let mut status = -1;
    assert_eq!(cuda.is_recording(stream, &mut status), 0);
    status
}

/// What `work` answers in another thread with the same context.
fn elsewhere(context: Handle, cuda: &Cuda, work: impl FnOnce() -> i32 + Send) -> i32 {
    let context = context as usize;
    let work = move || {
        assert_eq!(cuda.set_current(std::ptr::with_exposed_provenance_mut(context)), 0);
        work()
    };
    thread::scope(|scope| scope.spawn(work).join().expect("an answer"))
}

fn take(cuda: &Cuda) -> i32 {
    cuda.alloc(&mut 0, 8)
}

#[test]
fn what_is_recorded_runs_when_it_is_replayed() {
    let (cuda, _) = Cuda::open();
    let (function, stream) = (cuda.loaded(sum()), cuda.stream(1));
    let [a, b, out] = [[1, 2], [10, 20], [0, 0]].map(|values| cuda.memory(&values));
    assert_eq!(cuda.begin(stream, THREAD_LOCAL), 0);
    assert_eq!(status(&cuda, stream), 1);
    assert_eq!(cuda.sum(function, stream, [a, b, out], 2), 0);
    assert_eq!(cuda.copy(a, out, 8, stream), 0);
    assert_eq!(cuda.fill(b, 0, 4, stream), 0);
    let (mut graph, mut executable) = (null_mut(), null_mut());
    assert_eq!(cuda.end(stream, &mut graph), 0);
    assert_eq!(status(&cuda, stream), 0);
    assert_eq!(cuda.values(out), [0, 0], "nothing has run yet");
    assert_eq!(cuda.instantiate(&mut executable, graph, 0), 0);
    for expected in [[11, 22], [11, 42]] {
        assert_eq!(cuda.replay(executable, stream), 0);
        assert_eq!(cuda.values(a), expected);
    }
    assert_eq!(cuda.free(out), 0);
    assert_eq!(cuda.replay(executable, stream), 0);
    assert_eq!(cuda.wait(stream), 700, "its memory was given back");
}

#[test]
fn begin_and_end_must_be_a_pair() {
    let (cuda, context) = Cuda::open();
    let stream = cuda.stream(1);
    assert_eq!(end(&cuda, stream), 401);
    assert_eq!(cuda.begin(LEGACY, RELAXED), 900);
    assert_eq!(cuda.begin(stream, THREAD_LOCAL), 0);
    assert_eq!(cuda.begin(stream, THREAD_LOCAL), 401);
    let handle = stream as usize;
    let ended = || end(&cuda, std::ptr::with_exposed_provenance_mut(handle));
    assert_eq!(elsewhere(context, &cuda, ended), 908);
    assert_eq!(end(&cuda, stream), 0, "which has harmed nothing");
    assert_eq!(cuda.begin(stream, RELAXED), 0);
    assert_eq!(elsewhere(context, &cuda, ended), 0);
}

#[test]
fn no_thread_waits_for_the_context_beside_a_recording() {
    let (cuda, context) = Cuda::open();
    let (stream, memory) = (cuda.stream(1), cuda.memory(&[0]));
    for mode in [GLOBAL, THREAD_LOCAL, RELAXED] {
        assert_eq!(cuda.begin(stream, mode), 0);
        assert_eq!(elsewhere(context, &cuda, || cuda.wait_for_all()), 900);
        assert_eq!(status(&cuda, stream), 2);
        assert_eq!(cuda.fill(memory, 0, 4, stream), 901);
        assert_eq!(end(&cuda, stream), 901);
        assert_eq!(cuda.wait_for_all(), 0);
    }
}

#[test]
fn modes_say_whom_a_recording_keeps_from_taking_memory() {
    let (cuda, context) = Cuda::open();
    let stream = cuda.stream(1);
    for (mode, here, there) in [(GLOBAL, 900, 900), (THREAD_LOCAL, 900, 0), (RELAXED, 0, 0)] {
        for (expected, own) in [(here, true), (there, false)] {
            assert_eq!(cuda.begin(stream, mode), 0);
            let found = if own { take(&cuda) } else { elsewhere(context, &cuda, || take(&cuda)) };
            assert_eq!(found, expected, "mode {mode}, own {own}");
            assert_eq!(end(&cuda, stream), if expected == 0 { 0 } else { 901 });
        }
    }
    // A thread may say that it knows what it does.
    let mut mode = RELAXED;
    assert_eq!(cuda.begin(stream, GLOBAL), 0);
    assert_eq!((cuda.exchange_mode(&mut mode), mode), (0, GLOBAL));
    assert_eq!(take(&cuda), 0);
    assert_eq!((cuda.exchange_mode(&mut mode), mode), (0, RELAXED));
    assert_eq!(take(&cuda), 900);
    assert_eq!(end(&cuda, stream), 901);
}

#[test]
fn a_stream_that_records_is_not_waited_for() {
    let (cuda, _) = Cuda::open();
    let [stream, other] = [cuda.stream(1), cuda.stream(1)];
    let event = cuda.new_event();
    let asked: [&dyn Fn() -> i32; 5] =
        [&|| cuda.wait(stream), &|| cuda.is_done(stream), &|| cuda.wait(other), &|| cuda.is_past(event), &|| {
            cuda.wait_for(event)
        }];
    for ask in asked {
        assert_eq!(cuda.begin(stream, THREAD_LOCAL), 0);
        assert_eq!(ask(), 900);
        assert_eq!(end(&cuda, stream), 901);
    }
    assert_eq!(cuda.begin(stream, RELAXED), 0);
    assert_eq!((cuda.wait(other), cuda.wait_for(event)), (0, 0));
    assert_eq!(cuda.mark(event, stream), 0);
    assert_eq!(cuda.is_past(event), 907, "a point of the recording");
    assert_eq!(end(&cuda, stream), 901);
}

#[test]
fn the_legacy_stream_waits_for_streams_that_do_not_say_otherwise() {
    let (cuda, _) = Cuda::open();
    let memory = cuda.memory(&[1]);
    let [blocking, other] = [cuda.stream(0), cuda.stream(1)];
    assert_eq!(cuda.begin(other, RELAXED), 0);
    assert_eq!(cuda.fill(memory, 0, 4, LEGACY), 0);
    assert_eq!(end(&cuda, other), 0);
    assert_eq!(cuda.begin(blocking, RELAXED), 0);
    assert_eq!(cuda.fill(memory, 0, 4, LEGACY), 906);
    assert_eq!(end(&cuda, blocking), 901);
    assert_eq!(cuda.begin(blocking, RELAXED), 0);
    assert_eq!(cuda.is_recording(LEGACY, &mut 0), 906);
    assert_eq!(end(&cuda, blocking), 901);
}

#[test]
fn streams_join_a_recording_and_must_come_back() {
    let (cuda, _) = Cuda::open();
    let memory = cuda.memory(&[0]);
    let [first, second] = [cuda.stream(1), cuda.stream(1)];
    let [fork, join] = [cuda.new_event(), cuda.new_event()];
    let forked = || {
        assert_eq!(cuda.begin(first, THREAD_LOCAL), 0);
        assert_eq!(cuda.mark(fork, first), 0);
        assert_eq!(cuda.hold_back(second, fork, 0), 0);
        assert_eq!(status(&cuda, second), 1);
        assert_eq!(cuda.fill(memory, 7, 4, second), 0);
        assert_eq!(cuda.mark(join, second), 0);
    };
    forked();
    assert_eq!(cuda.hold_back(first, join, 0), 0);
    assert_eq!(end(&cuda, first), 0);
    assert_eq!(status(&cuda, second), 0);
    forked();
    assert_eq!(end(&cuda, first), 904, "the second stream's work is waited for by nothing");
    forked();
    assert_eq!(end(&cuda, second), 903);
    assert_eq!(end(&cuda, first), 901);
}

#[test]
fn a_recording_waits_for_nothing_outside_of_it() {
    let (cuda, _) = Cuda::open();
    let [first, second, third] = [cuda.stream(1), cuda.stream(1), cuda.stream(1)];
    let [never, before, inside] = [cuda.new_event(), cuda.new_event(), cuda.new_event()];
    assert_eq!(cuda.mark(before, second), 0);
    assert_eq!(cuda.begin(first, THREAD_LOCAL), 0);
    assert_eq!(cuda.hold_back(first, never, 0), 0, "there is nothing to wait for");
    assert_eq!(cuda.hold_back(first, before, 0), 905);
    assert_eq!(end(&cuda, first), 901);
    assert_eq!((cuda.begin(first, THREAD_LOCAL), cuda.begin(third, THREAD_LOCAL)), (0, 0));
    assert_eq!(cuda.mark(inside, first), 0);
    assert_eq!(cuda.hold_back(third, inside, 0), 902, "two recordings are two");
    assert_eq!((end(&cuda, first), end(&cuda, third)), (901, 901));
    let mut milliseconds = 0.0;
    assert_eq!(cuda.between(&mut milliseconds, before, inside), 400, "a point of a recording has no time");
}
