//! SPEC §7 on a device: what is elsewhere, of the wrong type, badly aligned or too small is a typed error, and nothing is
//! started.

#![allow(unsafe_code, reason = "an engine's own memory and streams are its word")]

use da_moe::cuda::{Architecture, Copies, Counts, Device, Emulated, GradientCopies, Kernels, StandIn, Stream};
use da_moe::{Cpu, DType, Error, ExpertGradients, Gradients, Inputs, Layer, Result, TensorMut, TensorRef, Weights};
use da_moe_emulator::Schedule;
use da_moe_harness::data::{Data, poison};
use da_moe_harness::device::{Engine, counted, on_every_device, rich, with_engine};
use da_moe_harness::{judge, kernels};
use std::sync::Arc;

on_every_device! {
    a_forward_with_anything_elsewhere_or_too_small_starts_nothing: check_forward;
    a_backward_with_anything_elsewhere_or_too_small_starts_nothing: check_backward;
    a_workspace_of_the_wrong_type_place_or_size_is_refused: check_workspaces;
    addresses_that_no_element_can_have_are_refused: check_addresses;
    kernels_for_hopper_are_for_hopper_alone: check_architecture;
}

/// The same device, as far as memory goes, which says that it is another.
fn another<D: Device>(device: &Arc<D>) -> Kernels<StandIn<D>> {
    Kernels::new(Arc::new(StandIn::new(device.clone(), None).elsewhere()))
}

/// Refuses a call with this error, and starts nothing.
fn refuses<D: Device>(kernels: &Kernels<StandIn<D>>, expected: &str, call: impl FnOnce() -> Result<()>) {
    let before = kernels.device().counts();
    let error = call().expect_err(expected);
    assert!(error.to_string().contains(expected), "{error}");
    let is_typed = matches!(
        error,
        Error::Location { .. }
            | Error::DType { .. }
            | Error::Workspace { .. }
            | Error::Shape { .. }
            | Error::Stride { .. }
    );
    assert!(is_typed, "{error:?}");
    assert_eq!(kernels.device().counts(), before, "{expected}: nothing is started");
}

fn check_forward<D: Device>(device: &Arc<D>) {
    let (kernels, other) = (counted(device, None), another(device));
    let (copies, elsewhere) = (Copies::new(&kernels), Copies::new(&other));
    let case = rich();
    let data = Data::new(&case);
    let (host_inputs, host_weights) = (data.inputs().unwrap(), data.weights().unwrap());
    let (inputs, weights) = (copies.inputs(&host_inputs).unwrap(), copies.weights(&host_weights).unwrap());
    let (far_inputs, far_weights) =
        (elsewhere.inputs(&host_inputs).unwrap(), elsewhere.weights(&host_weights).unwrap());
    let mut engine = Engine::new(&kernels, &data, &case, 0).unwrap();
    let refused = |engine: &mut Engine<_>, inputs: &Inputs<'_>, weights: &Weights<'_>, expected: &str| {
        refuses(&kernels, expected, || engine.forward(inputs, weights));
    };

    refused(&mut engine, &Inputs { x: host_inputs.x, ..inputs }, &weights, "`x` is in host memory");
    refused(&mut engine, &Inputs { mask: far_inputs.mask, ..inputs }, &weights, "`mask` is in memory of");
    refused(&mut engine, &Inputs { attention: far_inputs.attention, ..inputs }, &weights, "`q` is in memory of");
    refused(&mut engine, &inputs, &Weights { shared: far_weights.shared, ..weights }, "`shared.w_in` is in memory of");
    let wide = kernels.upload(&data.x.to_f32()).unwrap();
    let wide = TensorRef::new(&wide, inputs.x.shape()).unwrap();
    refused(&mut engine, &Inputs { x: wide, ..inputs }, &weights, "`router.weight` is bf16, expected f32");

    let stream = std::mem::replace(&mut engine.stream, other.stream(1 << 20).unwrap());
    refused(&mut engine, &inputs, &weights, "`stream` is in");
    engine.stream = kernels.stream(0).unwrap();
    refused(&mut engine, &inputs, &weights, "bytes of workspace are needed");
    engine.stream = stream;
    let far = Engine::new(&other, &data, &case, 0).unwrap();
    let state = std::mem::replace(&mut engine.state, far.state);
    refused(&mut engine, &inputs, &weights, "`state` is in memory of");
    engine.state = state;
    let step = std::mem::replace(&mut engine.step, far.step);
    refused(&mut engine, &inputs, &weights, "`step` is in memory of");
    engine.step = step;
    let y = std::mem::replace(&mut engine.y, far.y);
    refused(&mut engine, &inputs, &weights, "`y` is in memory of");
    engine.y = y;

    // The CPU backend cannot reach a device's memory either.
    let layer = Layer::new(Cpu::new(), data.config.clone()).unwrap();
    let (mut state, mut step) = (layer.state().unwrap(), layer.step(data.tokens, data.dtype, case.keep).unwrap());
    let mut y = poison(data.dtype, data.tokens * data.config.hidden_size);
    let y = TensorMut::new(&mut y, inputs.x.shape()).unwrap();
    let error = layer.forward(&(), &inputs, &host_weights, &mut state, &mut step, y).unwrap_err();
    assert!(matches!(error, Error::Location { argument: "x", .. }), "{error}");

    // Whatever was refused, the engine goes on.
    engine.forward(&inputs, &weights).unwrap();
    judge(&data, &engine.outcome(&data, None).unwrap()).unwrap();
}

/// Moves one gradient elsewhere.
type Misplaced = (&'static str, for<'a> fn(&mut Gradients<'a>, Gradients<'a>));

const MISPLACED: [Misplaced; 9] = [
    ("d.x", |own, far| own.x = far.x),
    ("d.router.weight", |own, far| own.router = far.router),
    ("d.experts.w_in", |own, far| own.experts.w_in = far.experts.w_in),
    ("d.experts.w_out", |own, far| own.experts.w_out = far.experts.w_out),
    ("d.experts.b_in", |own, far| own.experts.b_in = far.experts.b_in),
    ("d.experts.b_out", |own, far| own.experts.b_out = far.experts.b_out),
    ("d.null.constants", |own, far| own.constants = far.constants),
    ("d.shared.w_in", |own, far| shared(own).w_in = shared_of(far).w_in),
    ("d.shared.w_out", |own, far| shared(own).w_out = shared_of(far).w_out),
];

fn shared<'g, 'a>(gradients: &'g mut Gradients<'a>) -> &'g mut ExpertGradients<'a> {
    gradients.shared.as_mut().expect("a shared expert")
}

fn shared_of(gradients: Gradients<'_>) -> ExpertGradients<'_> {
    gradients.shared.expect("a shared expert")
}

fn check_backward<D: Device>(device: &Arc<D>) {
    let (kernels, other) = (counted(device, None), another(device));
    with_engine(&kernels, &rich(), |data, engine, inputs, weights| {
        engine.forward(inputs, weights).unwrap();
        let (copies, elsewhere) = (Copies::new(&kernels), Copies::new(&other));
        let (host_dy, mut host) = (data.dy().unwrap(), data.gradients());
        let (dy, far_dy) = (copies.tensor(&host_dy).unwrap(), elsewhere.tensor(&host_dy).unwrap());
        let mut own = GradientCopies::like(&kernels, &host.view_mut().unwrap()).unwrap();

        for (dy, expected) in [(host_dy, "`dy` is in host memory"), (far_dy, "`dy` is in memory of")] {
            refuses(&kernels, expected, || engine.backward(inputs, weights, dy, &mut own.view_mut()?));
        }
        let wide = kernels.upload(&data.dy.to_f32()).unwrap();
        let wide = TensorRef::new(&wide, dy.shape()).unwrap();
        refuses(&kernels, "`dy` is f32", || engine.backward(inputs, weights, wide, &mut own.view_mut()?));
        for (name, misplace) in MISPLACED {
            let mut far = GradientCopies::like(&other, &host.view_mut().unwrap()).unwrap();
            let mut mixed = own.view_mut().unwrap();
            misplace(&mut mixed, far.view_mut().unwrap());
            let expected = format!("`{name}` is in memory of");
            refuses(&kernels, &expected, || engine.backward(inputs, weights, dy, &mut mixed));
            let mut mixed = own.view_mut().unwrap();
            misplace(&mut mixed, host.view_mut().unwrap());
            refuses(&kernels, &format!("`{name}` is in host memory"), || {
                engine.backward(inputs, weights, dy, &mut mixed)
            });
        }
        for (stream, expected) in [
            (other.stream(1 << 20).unwrap(), "`stream` is in"),
            (kernels.stream(0).unwrap(), "bytes of workspace are needed"),
        ] {
            let stream = std::mem::replace(&mut engine.stream, stream);
            refuses(&kernels, expected, || engine.backward(inputs, weights, dy, &mut own.view_mut()?));
            engine.stream = stream;
        }

        // Whatever was refused, the forward is still there to go back from.
        engine.backward(inputs, weights, dy, &mut own.view_mut().unwrap()).unwrap();
        judge(data, &engine.outcome(data, Some(&own.view_mut().unwrap())).unwrap()).unwrap();
    });
}

/// A stream that an engine lends, with a part of its memory to work in.
fn lend<D: Device>(kernels: &Kernels<D>, dtype: DType, address: u64, count: usize) -> Result<Stream<D>> {
    // SAFETY: the memory outlives what borrows it here, stream 0 is always there, and nothing is called on it.
    unsafe { kernels.borrow_stream(0, kernels.borrow(dtype, address, count)?) }
}

fn check_workspaces<D: Device>(device: &Arc<D>) {
    let (kernels, other) = (counted(device, None), another(device));
    let bytes = 1 << 16;
    let room = kernels.zeros(DType::U8, bytes).unwrap();
    let before = kernels.device().counts();
    let refused = |result: Result<Stream<StandIn<D>>>, expected: &str| {
        let error = result.map(drop).expect_err(expected);
        assert!(error.to_string().contains(expected), "{error}");
        error
    };
    let error = refused(lend(&kernels, DType::U8, room.address() + 128, 1 << 15), "not at a multiple of 256");
    assert!(matches!(error, Error::Workspace { op: "stream", .. }), "{error:?}");
    let error = refused(lend(&kernels, DType::U8, room.address(), 256), "bytes of workspace are needed");
    assert!(matches!(error, Error::Workspace { op: "stream", .. }), "{error:?}");
    let error = refused(lend(&kernels, DType::F32, room.address(), bytes / 4), "`workspace` is f32, expected u8");
    assert!(matches!(error, Error::DType { op: "stream", .. }), "{error:?}");
    // SAFETY: as in `lend`.
    let far = unsafe { kernels.borrow_stream(0, other.borrow(DType::U8, room.address(), bytes).unwrap()) };
    let error = refused(far, "`workspace` is in memory of");
    assert!(matches!(error, Error::Location { op: "stream", .. }), "{error:?}");
    assert_eq!(kernels.device().counts(), before, "nothing is started");
    lend(&kernels, DType::U8, room.address(), bytes).unwrap();
    assert_eq!(kernels.device().counts(), Counts { fills: before.fills + 1, ..before }, "the header is set");
}

fn check_addresses<D: Device>(device: &Arc<D>) {
    let kernels = Kernels::new(device.clone());
    let memory = kernels.zeros(DType::F32, 4).unwrap();
    // SAFETY: what is not refused is memory that is there, and nothing uses it.
    let borrow = |address, count| unsafe { kernels.borrow(DType::F32, address, count) };
    assert!(matches!(borrow(0, 1), Err(Error::Value { .. })));
    assert!(matches!(borrow(memory.address() + 2, 1), Err(Error::Value { .. })));
    assert_eq!(borrow(memory.address() + 4, 3).unwrap().len(), 3);
    assert!(borrow(0, 0).unwrap().is_empty());
    assert!(matches!(borrow(memory.address(), usize::MAX), Err(Error::Overflow { .. })));
    assert!(matches!(kernels.zeros(DType::F32, usize::MAX), Err(Error::Overflow { .. })));
}

/// What belongs to another device is told by asking the device, not by what the caller says. On a GPU, the driver is asked.
#[test]
fn streams_and_memory_of_another_device_are_refused() {
    if !kernels::is_emulator_wanted() {
        return;
    }
    let [own, other] = [1, 2].map(|seed| kernels::emulated(seed).kernels().clone());
    let stream = other.stream(1 << 15).unwrap();
    let [room, far] = [&own, &other].map(|kernels| kernels.zeros(DType::U8, 1 << 15).unwrap());
    // SAFETY: stream and memory outlive what borrows them, and nothing is called on them.
    let lend = |handle| unsafe { own.borrow_stream(handle, own.borrow(DType::U8, room.address(), room.len())?) };
    let error = lend(stream.handle()).map(drop).unwrap_err();
    assert!(matches!(error, Error::Location { op: "stream", argument: "handle", .. }), "{error:?}");
    assert!(error.to_string().contains("`handle` is in another device, expected a stream of emulated"), "{error}");
    let alive = own.stream(0).unwrap();
    lend(alive.handle()).unwrap();
    lend(0).unwrap();

    // SAFETY: as above.
    let borrow = |address, count| unsafe { own.borrow(DType::U8, address, count) };
    for (address, count) in [(far.address(), 8), (room.address(), room.len() + 1)] {
        let error = borrow(address, count).unwrap_err();
        assert!(matches!(error, Error::Location { op: "borrow", argument: "address", .. }), "{error:?}");
    }
    borrow(room.address() + 1, room.len() - 1).unwrap();
}

fn check_architecture<D: Device>(device: &Arc<D>) {
    let kernels = Kernels::new(device.clone());
    let own = kernels.target();
    let chosen = kernels.clone().architecture(Architecture::Portable).unwrap();
    assert_eq!((chosen.target().architecture, own), (Architecture::Portable, device.target()));
    match (own.architecture, chosen.architecture(Architecture::Hopper)) {
        (Architecture::Hopper, asked) => assert_eq!(asked.unwrap().target(), own),
        (Architecture::Portable, asked) => {
            let error = asked.unwrap_err();
            assert!(matches!(&error, Error::NotForDevice { .. }), "{error:?}");
            println!("{error}");
        }
    }
}

/// What every emulated device has, taken away.
#[test]
fn an_emulated_device_may_be_portable() {
    let device =
        Arc::new(Emulated::new(kernels::module(), Schedule::from_seed(1)).of_architecture(Architecture::Portable));
    check_architecture(&device);
    let error = Kernels::new(device).architecture(Architecture::Hopper).unwrap_err().to_string();
    assert!(error.ends_with("does not run kernels for Hopper (sm_90a)"), "{error}");
}
