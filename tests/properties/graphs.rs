//! Calls that are recorded once and started again: for other inputs and another `R`, with gradients that are added to, and
//! without anything else being asked of the device; and what other threads do meanwhile.

#![allow(unsafe_code, reason = "a recorded graph's tensors are its caller's word")]

use da_moe::cuda::{Counts, Device, Failing, GradientCopies, Kernels, Shim};
use da_moe::{Attention, DType, ForeignMemory, Inputs, TensorMut, TensorRef};
use da_moe_harness::bits::same_memory;
use da_moe_harness::case::Case;
use da_moe_harness::data::{Data, Numbers};
use da_moe_harness::device::{Engine, on_every_device, rich, shimmed, with_engine};
use da_moe_harness::gradients::GradientData;
use da_moe_harness::judge;
use da_moe_reference::check::Outcome;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

on_every_device! {
    a_recorded_forward_and_backward_serve_other_inputs: check_recorded;
    gradients_are_added_to_eagerly_and_in_a_graph: check_accumulation;
    a_recording_that_fails_is_over: check_failed_recording;
    other_threads_allocate_read_and_free_beside_a_recording: check_beside;
    what_waits_for_a_stream_that_records_is_refused: check_waiting;
}

fn check_recorded<D: Device>(device: &Arc<D>) {
    let kernels = shimmed(device, None);
    let counts = || kernels.device().counts();
    let case = rich();
    let fresh = Data::new(&Case { seed: 78, ..case.clone() });
    with_engine(&kernels, &case, |data, engine, inputs, weights| {
        let other = Data { x: fresh.x, q: fresh.q, k: fresh.k, ..data.clone() };
        let [mut x, mut q, mut k] = [&data.x, &data.q, &data.k].map(|buffer| kernels.upload(buffer).unwrap());
        let Some(Attention::QueryKey { q: of_q, k: of_k, .. }) = inputs.attention else { panic!("not from q and k") };
        let rows = [TensorRef::new(&q, of_q.shape()).unwrap(), TensorRef::new(&k, of_k.shape()).unwrap()];
        let inputs = Inputs {
            x: TensorRef::new(&x, inputs.x.shape()).unwrap(),
            attention: Some(Attention::query_key(rows[0], rows[1])),
            ..*inputs
        };
        let dy = kernels.upload(&data.dy).unwrap();
        let dy = TensorRef::new(&dy, inputs.x.shape()).unwrap();
        let mut gradients = GradientCopies::like(&kernels, &data.gradients().view_mut().unwrap()).unwrap();
        let Engine { layer, stream, state, step, y } = &mut *engine;
        let before = counts();
        let graph = stream.capture(|| {
            layer.forward(stream, &inputs, weights, state, step, TensorMut::new(&mut *y, dy.shape())?)?;
            layer.backward(stream, &inputs, weights, dy, step, &mut gradients.view_mut()?)
        });
        let graph = graph.unwrap();
        let recorded = counts();
        let alone = Counts { launches: recorded.launches, fills: recorded.fills, ..before };
        let alone = Counts { captures: before.captures + 1, graphs: before.graphs + 1, ..alone };
        assert_eq!(recorded, alone, "one recording, of launches and fills alone");
        assert!(recorded.launches > before.launches + 20, "forward and backward");

        let (mut outputs, mut rows) = (Vec::new(), Vec::new());
        for data in [data, &other, data] {
            // What an engine does between steps: new activations where the old ones were.
            for (memory, contents) in [(&mut x, &data.x), (&mut q, &data.q), (&mut k, &data.k)] {
                engine.stream.write(memory, contents).unwrap();
                assert!(same_memory(&engine.stream.read(memory).unwrap(), contents));
            }
            let before = counts();
            // SAFETY: all tensors are alive, and nothing else uses them.
            unsafe { graph.launch(&engine.stream) }.unwrap();
            assert_eq!(counts(), Counts { replays: before.replays + 1, ..before }, "one call of the driver");
            let outcome = engine.outcome(data, Some(&gradients.view_mut().unwrap())).unwrap();
            judge(data, &outcome).unwrap();
            rows.push(outcome.offsets.last().copied());
            outputs.push(outcome.y);
        }
        assert!(outputs[0] != outputs[1] && outputs[0] == outputs[2], "only the inputs decide");
        assert_ne!(rows[0], rows[1], "R is not part of the graph");
        drop(graph);
        assert_eq!(counts().graphs, 0, "the graph is given back");
    });
}

/// The gradients of weights, by name.
fn of_weights(outcome: &Outcome) -> Vec<(&'static str, &[f64])> {
    let gradients = outcome.gradients.as_ref().expect("backward");
    let (experts, shared) = (&gradients.experts, gradients.shared.as_ref().expect("a shared expert"));
    let optional = [
        ("router", &gradients.router),
        ("constants", &gradients.constants),
        ("b_in", &experts.b_in),
        ("b_out", &experts.b_out),
    ];
    let mut all: Vec<_> = optional.map(|(name, of)| (name, of.as_deref().expect("a gradient"))).into();
    let matrices = [("w_in", &experts.w_in), ("w_out", &experts.w_out)];
    let of_shared = [("shared.w_in", &shared.w_in), ("shared.w_out", &shared.w_out)];
    all.extend(matrices.into_iter().chain(of_shared).map(|(name, of)| (name, of.as_slice())));
    all
}

/// f32 gradients of weights, with numbers in them that are to be added to.
fn begun(data: &Data) -> GradientData {
    let mut gradients = data.gradients_of(Some(DType::F32));
    let mut numbers = Numbers::new(9);
    gradients.of_weights().into_iter().for_each(|(_, of)| *of = numbers.tensor(DType::F32, of.len(), 1.0));
    gradients.accumulate = true;
    gradients
}

/// Each sum is one f32 addition more, so the bits are known.
fn assert_added(before: &Outcome, sums: &Outcome, after: &Outcome, what: &str) {
    for (((name, before), (_, sums)), (_, after)) in
        of_weights(before).into_iter().zip(of_weights(sums)).zip(of_weights(after))
    {
        assert!(sums.iter().any(|sum| *sum != 0.0), "{what}: {name} has something to add");
        let expected: Vec<f64> = before.iter().zip(sums).map(|(a, b)| f64::from(*a as f32 + *b as f32)).collect();
        assert_eq!(after, expected, "{what}: {name}");
    }
    let of_x = |outcome: &Outcome| outcome.gradients.as_ref().map(|gradients| gradients.x.clone());
    assert_eq!(of_x(after), of_x(sums), "{what}: d.x is written, not added to");
}

fn check_accumulation<D: Device>(device: &Arc<D>) {
    let kernels = shimmed(device, None);
    with_engine(&kernels, &rich(), |data, engine, inputs, weights| {
        let dy = kernels.upload(&data.dy).unwrap();
        let dy = TensorRef::new(&dy, inputs.x.shape()).unwrap();
        let copies = |mut host: GradientData| GradientCopies::like(&kernels, &host.view_mut().unwrap()).unwrap();
        let (mut sums, mut total) = (copies(data.gradients_of(Some(DType::F32))), copies(begun(data)));
        engine.forward(inputs, weights).unwrap();
        let start = engine.outcome(data, Some(&total.view_mut().unwrap())).unwrap();
        engine.backward(inputs, weights, dy, &mut sums.view_mut().unwrap()).unwrap();
        let sums = engine.outcome(data, Some(&sums.view_mut().unwrap())).unwrap();
        engine.backward(inputs, weights, dy, &mut total.view_mut().unwrap()).unwrap();
        let mut last = engine.outcome(data, Some(&total.view_mut().unwrap())).unwrap();
        assert_added(&start, &sums, &last, "eagerly");

        let Engine { layer, stream, state, step, y } = &mut *engine;
        let graph = stream.capture(|| {
            layer.forward(stream, inputs, weights, state, step, TensorMut::new(&mut *y, dy.shape())?)?;
            layer.backward(stream, inputs, weights, dy, step, &mut total.view_mut()?)
        });
        let graph = graph.unwrap();
        let recorded = engine.outcome(data, Some(&total.view_mut().unwrap())).unwrap();
        assert_eq!(of_weights(&recorded), of_weights(&last), "recording adds nothing");
        for micro_batch in 0..3 {
            let before = kernels.device().counts();
            // SAFETY: all tensors are alive, and nothing else uses them.
            unsafe { graph.launch(&engine.stream) }.unwrap();
            assert_eq!(kernels.device().counts(), Counts { replays: before.replays + 1, ..before });
            let next = engine.outcome(data, Some(&total.view_mut().unwrap())).unwrap();
            assert_added(&last, &sums, &next, &format!("replay {micro_batch}"));
            last = next;
        }
    });
}

fn check_failed_recording<D: Device>(device: &Arc<D>) {
    let kernels = shimmed(device, Some(Failing::Launch(4)));
    with_engine(&kernels, &rich(), |data, engine, inputs, weights| {
        let Engine { layer, stream, state, step, y } = &mut *engine;
        let failed = stream.capture(|| {
            layer.forward(stream, inputs, weights, state, step, TensorMut::new(&mut *y, inputs.x.shape())?)
        });
        assert!(failed.is_err());
        assert_eq!(kernels.device().counts().graphs, 0);
        engine.forward(inputs, weights).unwrap();
        judge(data, &engine.outcome(data, None).unwrap()).unwrap();
    });
}

/// Another thread's allocations, copies, calls and waits, while `recording` is open.
fn busy<D: Device>(kernels: &Kernels<Shim<D>>, recording: &AtomicBool) -> usize {
    let mut rounds = 0;
    while recording.load(Ordering::Acquire) {
        let memory = kernels.upload(&vec![rounds as f32; 100]).unwrap();
        let stream = kernels.stream(0).unwrap();
        let zeros = kernels.zeros(DType::F32, 100).unwrap();
        assert_eq!(stream.read(&memory).unwrap().to_f32(), vec![rounds as f32; 100]);
        drop(stream);
        assert_eq!(ForeignMemory::read(&zeros).unwrap().to_f32(), vec![0.0; 100], "waits for all streams");
        kernels.device().synchronize_all().unwrap();
        rounds += 1;
    }
    rounds
}

fn check_beside<D: Device>(device: &Arc<D>) {
    let kernels = shimmed(device, None);
    with_engine(&kernels, &rich(), |data, engine, inputs, weights| {
        let recording = AtomicBool::new(true);
        let graph = thread::scope(|scope| {
            let others = [0, 1].map(|_| scope.spawn(|| busy(&kernels, &recording)));
            let Engine { layer, stream, state, step, y } = &mut *engine;
            let graph = stream.capture(|| {
                let dropped = kernels.zeros(DType::F32, 1000)?;
                layer.forward(stream, inputs, weights, state, step, TensorMut::new(&mut *y, inputs.x.shape())?)?;
                drop(dropped);
                // Long enough for the others to do everything they do.
                thread::sleep(Duration::from_millis(50));
                Ok(())
            });
            recording.store(false, Ordering::Release);
            assert!(others.map(|other| other.join().expect("nothing was refused")) > [0, 0]);
            graph.unwrap()
        });
        // SAFETY: all tensors are alive, and nothing else uses them.
        unsafe { graph.launch(&engine.stream) }.unwrap();
        judge(data, &engine.outcome(data, None).unwrap()).unwrap();
    });
}

fn check_waiting<D: Device>(device: &Arc<D>) {
    let kernels = shimmed(device, None);
    let stream = kernels.stream(0).unwrap();
    let mut memory = kernels.zeros(DType::F32, 4).unwrap();
    let ones = vec![1.0_f32; 4];
    assert!(stream.capture(|| stream.synchronize()).is_err());
    assert!(stream.capture(|| stream.read(&memory).map(drop)).is_err());
    assert!(stream.capture(|| stream.write(&mut memory, &ones)).is_err());
    // What was refused inside breaks the recording off, whether or not its caller looks at it.
    let unnoticed = || {
        let _ = stream.synchronize();
        Ok(())
    };
    assert!(stream.capture(unnoticed).is_err());
    assert_eq!(kernels.device().counts().graphs, 0);
    stream.write(&mut memory, &ones).unwrap();
    assert_eq!(stream.read(&memory).unwrap().to_f32(), ones, "the stream goes on");
}
