//! Which streams the driver's memory is waited for on, and what happens where that cannot be. For a GPU alone: the emulator
//! has done everything when a call returns.

#![allow(unsafe_code, reason = "an engine's own memory and streams are its word")]

use da_moe::cuda::{Device, DeviceMemory, Driver, Kernels, Stream, Workspace};
use da_moe::{DType, ForeignMemory};
use std::sync::Arc;
use std::thread;

/// `CU_STREAM_PER_THREAD`.
const OWN_OF_EACH_THREAD: u64 = 2;

/// Another one for the same GPU than the other tests have, whose streams nobody else waits for.
fn driver() -> Option<Kernels<Driver>> {
    da_moe_harness::kernels::on_gpu()?;
    Some(Kernels::new(Arc::new(Driver::open_lazily(0).expect("there is a GPU"))))
}

/// A stream of somebody else's, with `room` to work in.
fn lend(kernels: &Kernels<Driver>, handle: u64, room: &DeviceMemory<Driver>) -> Stream<Driver> {
    // SAFETY: every caller keeps stream and memory for longer than the result.
    unsafe {
        let workspace = kernels.borrow(DType::U8, room.address(), room.len()).expect("its own memory");
        kernels.borrow_stream(handle, workspace).expect("a stream of the same context")
    }
}

#[test]
fn what_an_owner_records_on_its_stream_is_not_waited_for() {
    let (Some(kernels), Some(owner)) = (driver(), driver()) else { return };
    let ones = vec![1.0_f32; 4000];
    let handle = owner.device().open_stream().unwrap();
    let room = kernels.zeros(DType::U8, Workspace::HEADER).unwrap();
    let (lent, own) = (lend(&kernels, handle, &room), kernels.stream(0).unwrap());
    let (memory, other) = (kernels.upload(&ones).unwrap(), kernels.upload(&ones).unwrap());
    // SAFETY: the stream is there until the end.
    unsafe { owner.device().begin_capture(handle) }.unwrap();
    let error = memory.read().unwrap_err().to_string();
    assert!(error.contains("is being recorded by its owner"), "{error}");
    assert_eq!(own.read(&memory).unwrap().to_f32(), ones, "in a stream's own order");
    let address = memory.address();
    drop(memory);
    let new = kernels.upload(&ones).unwrap();
    assert_ne!(new.address(), address, "what is queued on the lent stream may still use it");
    // SAFETY: as above; the graph is given back once.
    unsafe {
        let graph = owner.device().end_capture(handle).expect("the recording was left alone");
        owner.device().forget_graph(graph);
    }
    assert_eq!(other.read().unwrap().to_f32(), ones);
    drop((new, kernels.upload(&ones).unwrap()));
    drop(lent);
    // SAFETY: opened above, and nobody has it any more.
    unsafe { owner.device().close_stream(handle) };
}

/// One handle, and a stream for each thread: a thread that waits behind it does not wait for the others.
#[test]
fn what_other_threads_started_on_their_own_streams_is_waited_for() {
    let Some(kernels) = driver() else { return };
    let room = kernels.zeros(DType::U8, Workspace::HEADER).unwrap();
    let stream = lend(&kernels, OWN_OF_EACH_THREAD, &room);
    let memory = kernels.zeros(DType::U8, 32 << 20).unwrap();
    let (device, handle) = (kernels.device(), stream.handle());
    for value in 1..=3 {
        // SAFETY: memory of this GPU; the handle is of whatever thread uses it.
        let fill = || unsafe { device.fill(handle, memory.address(), value, memory.len()) }.unwrap();
        thread::scope(|scope| scope.spawn(fill).join().expect("a fill"));
        let found = memory.read().unwrap();
        assert!(found.as_slice::<u8>().unwrap().iter().all(|byte| *byte == value));
    }
}
