//! The kernels as an engine uses them: tensors on the device, streams, workspaces, graphs, and what happens when the device
//! fails.

#![allow(unsafe_code, reason = "an engine's own memory, streams and graphs are its word")]

mod harness;

use da_moe::cuda::{Copies, Counts, Device, Failing, GradientCopies, Kernels, Shim, Staged};
use da_moe::{
    Attention, AttentionSource, Cpu, DType, Error, ExpertsPerToken, Inputs, Keep, Layer, LayerConfig, Normalize,
    NullExpert, Policy, TensorMut, TensorRef, Weights,
};
use da_moe_reference::check::Outcome;
use harness::bits::{assert_same_bits, same_memory};
use harness::case::{Case, attention_source, case, small_config};
use harness::data::{Data, poison};
use harness::device::{Engine, OnDevice};
use harness::{Subject, Through, assert_agrees, judge, kernels};
use proptest::prelude::*;
use std::sync::Arc;
use std::thread;

/// A device that counts, and may fail.
fn shimmed<D: Device>(device: &Arc<D>, failing: Option<Failing>) -> Kernels<Shim<D>> {
    Kernels::new(Arc::new(Shim::new(device.clone(), failing)))
}

/// Each check runs on the emulator, and on the GPU where there is one.
macro_rules! on_every_device {
    ($($name:ident: $check:ident;)*) => {
        $(
            #[test]
            fn $name() {
                kernels::on_each(
                    |staged| $check(staged.kernels().device()),
                    |staged| $check(staged.kernels().device()),
                );
            }
        )*
    };
}

on_every_device! {
    tensors_on_the_device_give_the_bits_of_host_tensors: check_same_as_staged;
    a_call_neither_allocates_nor_waits: check_quiet;
    a_recorded_forward_serves_other_inputs: check_recorded;
    streams_of_several_threads_give_the_same_bits: check_threads;
    what_is_elsewhere_or_too_small_is_refused_before_anything_is_started: check_refusals;
    addresses_that_no_element_can_have_are_refused: check_addresses;
    an_engines_own_memory_is_used_and_not_given_back: check_borrowed;
    a_device_that_fails_leaves_nothing_behind: check_failures;
    after_a_launch_that_failed_the_same_engine_goes_on: check_going_on;
    a_recording_that_fails_is_over: check_failed_recording;
}

/// A layer with something in every stage: attention, a rule over sequences, a price, capacity, null and shared experts.
fn rich() -> Case {
    let mut config = LayerConfig {
        num_null_experts: 2,
        null_expert: NullExpert::Constant,
        shared_intermediate_size: 5,
        ..small_config()
    };
    config.importance.source = attention_source(AttentionSource::ReceivedMax);
    config.importance.normalize = Normalize::MinMax;
    config.experts_per_token = ExpertsPerToken::between(Policy::Budget { mean_k: 2.0 }, 0, 4);
    config.router.capacity_factor = Some(1.0);
    Case { dtype: DType::Bf16, masked_every: 5, biases: true, router_bias: true, ..Case::plain(config) }
}

proptest! {
    #![proptest_config(harness::cases(120))]

    #[test]
    fn any_call_agrees_with_the_oracle(case in case()) {
        if kernels::is_emulator_wanted() {
            assert_agrees(&OnDevice(kernels::emulated(case.seed).kernels().clone()), &case);
        }
        if let Some(gpu) = kernels::on_gpu() {
            assert_agrees(&OnDevice(gpu.kernels().clone()), &case);
        }
    }
}

fn check_same_as_staged<D: Device>(device: &Arc<D>) {
    let case = rich();
    let data = Data::new(&case);
    let staged = Through(Staged::new(Kernels::new(device.clone()))).run(&data, &case).unwrap();
    let on_device = OnDevice(Kernels::new(device.clone())).run(&data, &case).unwrap();
    assert_same_bits("on the device", &trimmed(staged), &trimmed(on_device));
}

/// Without what is past R rows, which means nothing.
fn trimmed(mut outcome: Outcome) -> Outcome {
    let rows = *outcome.offsets.last().unwrap() as usize;
    outcome.row_token.truncate(rows);
    outcome.row_weight.truncate(rows);
    outcome
}

/// A call's tensors on the device, with an engine for it.
fn with_engine<D: Device>(
    kernels: &Kernels<D>,
    case: &Case,
    run: impl FnOnce(&Data, &mut Engine<D>, &Inputs<'_>, &Weights<'_>),
) {
    let data = Data::new(case);
    let copies = Copies::new(kernels);
    let inputs = copies.inputs(&data.inputs().unwrap()).unwrap();
    let weights = copies.weights(&data.weights().unwrap()).unwrap();
    run(&data, &mut Engine::new(kernels, &data, case, 0).unwrap(), &inputs, &weights);
}

fn check_quiet<D: Device>(device: &Arc<D>) {
    for (routing, keep) in [(0, Keep::Hidden), (0, Keep::Recompute), (1, Keep::Hidden), (2, Keep::Hidden)] {
        let kernels = shimmed(device, None);
        with_engine(&kernels, &Case { routing, keep, ..rich() }, |data, engine, inputs, weights| {
            let dy = kernels.upload(&data.dy).unwrap();
            let dy = TensorRef::new(&dy, inputs.x.shape()).unwrap();
            let mut gradients = GradientCopies::like(&kernels, &data.gradients().view_mut().unwrap()).unwrap();
            let before = kernels.device().counts();
            engine.forward(inputs, weights).unwrap();
            engine.backward(inputs, weights, dy, &mut gradients.view_mut().unwrap()).unwrap();
            let after = kernels.device().counts();
            assert!(after.launches > before.launches);
            let alone = Counts { launches: after.launches, fills: after.fills, ..before };
            assert_eq!(after, alone, "launches and fills, and nothing else");
        });
    }
}

fn check_recorded<D: Device>(device: &Arc<D>) {
    let kernels = Kernels::new(device.clone());
    let case = rich();
    let fresh = Data::new(&Case { seed: 77, ..case.clone() });
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
        let graph = stream.capture(|| {
            layer.forward(stream, &inputs, weights, state, step, TensorMut::new(&mut *y, dy.shape())?)?;
            layer.backward(stream, &inputs, weights, dy, step, &mut gradients.view_mut()?)
        });
        let graph = graph.unwrap();
        let (mut outputs, mut rows) = (Vec::new(), Vec::new());
        for data in [data, &other, data] {
            // What an engine does between steps: new activations where the old ones were.
            for (memory, contents) in [(&mut x, &data.x), (&mut q, &data.q), (&mut k, &data.k)] {
                engine.stream.write(memory, contents).unwrap();
                assert!(same_memory(&engine.stream.read(memory).unwrap(), contents));
            }
            // SAFETY: all tensors are alive, and nothing else uses them.
            unsafe { graph.launch(&engine.stream) }.unwrap();
            let outcome = engine.outcome(data, Some(&gradients.view_mut().unwrap())).unwrap();
            judge(data, &outcome).unwrap();
            rows.push(outcome.offsets.last().copied());
            outputs.push(outcome.y);
        }
        assert!(outputs[0] != outputs[1] && outputs[0] == outputs[2], "only the inputs decide");
        assert_ne!(rows[0], rows[1], "R is not part of the graph");
    });
}

fn check_threads<D: Device>(device: &Arc<D>) {
    let case = Case { lengths: vec![40, 7], ..rich() };
    let data = Data::new(&case);
    let kernels = Kernels::new(device.clone());
    let run = || trimmed(OnDevice(kernels.clone()).run(&data, &case).unwrap());
    let expected = run();
    thread::scope(|scope| {
        let threads = [0, 1, 2].map(|_| scope.spawn(run));
        threads.into_iter().for_each(|thread| assert_same_bits("threads", &expected, &thread.join().unwrap()));
    });
}

/// Refuses a call with this error, and starts nothing.
fn refuses<D: Device>(engine: &mut Engine<Shim<D>>, inputs: &Inputs<'_>, weights: &Weights<'_>, expected: &str) {
    let device = engine.layer.backend().device().clone();
    let before = device.counts();
    let error = engine.forward(inputs, weights).expect_err(expected);
    assert!(error.to_string().contains(expected), "{error}");
    assert_eq!(device.counts(), before, "{expected}: nothing is started");
}

fn check_refusals<D: Device>(device: &Arc<D>) {
    let (kernels, other) = (shimmed(device, None), Kernels::new(Arc::new(Shim::new(device.clone(), None).elsewhere())));
    let (copies, elsewhere) = (Copies::new(&kernels), Copies::new(&other));
    let case = rich();
    let data = Data::new(&case);
    let (host_inputs, host_weights) = (data.inputs().unwrap(), data.weights().unwrap());
    let (inputs, weights) = (copies.inputs(&host_inputs).unwrap(), copies.weights(&host_weights).unwrap());
    let (far_inputs, far_weights) =
        (elsewhere.inputs(&host_inputs).unwrap(), elsewhere.weights(&host_weights).unwrap());
    let mut engine = Engine::new(&kernels, &data, &case, 0).unwrap();

    refuses(&mut engine, &Inputs { x: host_inputs.x, ..inputs }, &weights, "`x` is in host memory");
    refuses(&mut engine, &Inputs { mask: far_inputs.mask, ..inputs }, &weights, "`mask` is in memory of");
    refuses(&mut engine, &Inputs { attention: far_inputs.attention, ..inputs }, &weights, "`q` is in memory of");
    refuses(&mut engine, &inputs, &Weights { shared: far_weights.shared, ..weights }, "`shared.w_in` is in memory of");
    let wide = kernels.upload(&data.x.to_f32()).unwrap();
    let wide = TensorRef::new(&wide, inputs.x.shape()).unwrap();
    refuses(&mut engine, &Inputs { x: wide, ..inputs }, &weights, "`router.weight` is bf16, expected f32");

    let stream = std::mem::replace(&mut engine.stream, other.stream(1 << 20).unwrap());
    refuses(&mut engine, &inputs, &weights, "`stream` is in");
    engine.stream = kernels.stream(0).unwrap();
    refuses(&mut engine, &inputs, &weights, "bytes of workspace are needed");
    engine.stream = stream;
    let far = Engine::new(&other, &data, &case, 0).unwrap();
    let state = std::mem::replace(&mut engine.state, far.state);
    refuses(&mut engine, &inputs, &weights, "`state` is in memory of");
    engine.state = state;
    let step = std::mem::replace(&mut engine.step, far.step);
    refuses(&mut engine, &inputs, &weights, "`step` is in memory of");
    engine.step = step;

    // The CPU backend cannot reach a device's memory either.
    let layer = Layer::new(Cpu::new(), data.config.clone()).unwrap();
    let (mut state, mut step) = (layer.state().unwrap(), layer.step(data.tokens, data.dtype, case.keep).unwrap());
    let mut y = poison(data.dtype, data.tokens * data.config.hidden_size);
    let y = TensorMut::new(&mut y, inputs.x.shape()).unwrap();
    let error = layer.forward(&(), &inputs, &host_weights, &mut state, &mut step, y).unwrap_err();
    assert!(matches!(error, Error::Place { argument: "x", .. }), "{error}");

    // Whatever was refused, the engine goes on.
    engine.forward(&inputs, &weights).unwrap();
    judge(&data, &engine.outcome(&data, None).unwrap()).unwrap();
}

fn check_addresses<D: Device>(device: &Arc<D>) {
    let kernels = Kernels::new(device.clone());
    let memory = kernels.zeros(DType::F32, 4).unwrap();
    // SAFETY: what is not refused is memory that is there, and nothing uses it.
    let borrow = |address, count| unsafe { kernels.borrow(DType::F32, address, count) };
    assert!(matches!(borrow(0, 1), Err(Error::Value { .. })));
    assert!(matches!(borrow(memory.address() + 2, 1), Err(Error::Value { .. })));
    assert_eq!(borrow(memory.address() + 4, 3).unwrap().len(), 3);
    assert!(matches!(kernels.zeros(DType::F32, usize::MAX), Err(Error::Overflow { .. })));
}

fn check_borrowed<D: Device>(device: &Arc<D>) {
    let kernels = shimmed(device, None);
    with_engine(&kernels, &rich(), |data, engine, inputs, weights| {
        engine.forward(inputs, weights).unwrap();
        let expected = engine.outcome(data, None).unwrap();
        let x = kernels.upload(&data.x).unwrap();
        let room = kernels.zeros(DType::U8, engine.stream.workspace_bytes()).unwrap();
        // SAFETY: both allocations outlive what borrows them, and are used through that alone; so does the stream.
        let (borrowed, stream) = unsafe {
            let workspace = kernels.borrow(DType::U8, room.address(), room.len()).unwrap();
            (
                kernels.borrow(data.dtype, x.address(), x.len()).unwrap(),
                kernels.borrow_stream(engine.stream.handle(), workspace).unwrap(),
            )
        };
        let own = std::mem::replace(&mut engine.stream, stream);
        let x = TensorRef::new(&borrowed, inputs.x.shape()).unwrap();
        engine.forward(&Inputs { x, ..*inputs }, weights).unwrap();
        assert_same_bits("borrowed", &expected, &engine.outcome(data, None).unwrap());
        let before = kernels.device().counts();
        drop((borrowed, std::mem::replace(&mut engine.stream, own)));
        assert_eq!(kernels.device().counts(), before, "what was borrowed is not given back");
    });
}

/// Forward and backward from nothing, on a device that may fail.
fn attempt<D: Device>(kernels: &Kernels<Shim<D>>) -> Result<(), Error> {
    let case = rich();
    OnDevice(kernels.clone()).run(&Data::new(&case), &case).map(drop)
}

/// What fails is told; nothing is left behind, and the next device works.
fn survives<D: Device>(device: &Arc<D>, failing: Failing) -> bool {
    let kernels = shimmed(device, Some(failing));
    let failed = attempt(&kernels).is_err();
    let counts = kernels.device().counts();
    assert_eq!(counts.allocations, counts.frees, "{failing:?}: memory");
    assert_eq!((counts.streams, counts.graphs), (0, 0), "{failing:?}: streams and graphs");
    failed
}

fn check_failures<D: Device>(device: &Arc<D>) {
    let kernels = shimmed(device, None);
    attempt(&kernels).unwrap();
    let Counts { allocations, launches, .. } = kernels.device().counts();
    assert!(allocations > 30 && launches > 10);
    for number in (0..allocations).step_by(3) {
        assert!(survives(device, Failing::Allocation(number)), "allocation {number}");
    }
    for number in 0..launches {
        assert!(survives(device, Failing::Launch(number)), "launch {number}");
        assert!(survives(device, Failing::LostAt(number)), "lost at launch {number}");
    }
    assert!(!survives(device, Failing::Launch(launches)));
}

fn check_going_on<D: Device>(device: &Arc<D>) {
    let mut launches = 0;
    let unfailing = shimmed(device, None);
    with_engine(&unfailing, &rich(), |_, engine, inputs, weights| {
        engine.forward(inputs, weights).unwrap();
        launches = unfailing.device().counts().launches;
    });
    for number in 0..launches {
        let kernels = shimmed(device, Some(Failing::Launch(number)));
        with_engine(&kernels, &rich(), |data, engine, inputs, weights| {
            let error = engine.forward(inputs, weights).unwrap_err();
            assert!(matches!(error, Error::Cuda { .. }), "{error}");
            assert!(engine.outcome(data, None).is_err(), "there is no last forward");
            engine.forward(inputs, weights).unwrap();
            judge(data, &engine.outcome(data, None).unwrap()).unwrap();
        });
    }
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
