//! The kernels as an engine uses them: tensors on the device, streams, workspaces, and what happens when the device fails.

#![allow(unsafe_code, reason = "an engine's own memory and streams are its word")]

use da_moe::cuda::{Counts, Device, Failing, GradientCopies, Kernels, Shim, Staged};
use da_moe::{DType, Error, Inputs, Keep, TensorMut, TensorRef};
use da_moe_harness::bits::assert_same_bits;
use da_moe_harness::case::{Case, case};
use da_moe_harness::data::Data;
use da_moe_harness::device::{Engine, OnDevice, on_every_device, rich, shimmed, with_engine};
use da_moe_harness::{Subject, Through, assert_agrees, judge, kernels};
use da_moe_reference::check::Outcome;
use proptest::prelude::*;
use std::sync::Arc;
use std::thread;

on_every_device! {
    tensors_on_the_device_give_the_bits_of_host_tensors: check_same_as_staged;
    a_call_neither_allocates_nor_waits: check_quiet;
    streams_of_several_threads_give_the_same_bits: check_threads;
    an_engines_own_memory_is_used_and_not_given_back: check_borrowed;
    launches_that_are_listed_are_those_of_the_call: check_listed;
    a_device_that_fails_leaves_nothing_behind: check_failures;
    after_a_launch_that_failed_the_same_engine_goes_on: check_going_on;
}

proptest! {
    #![proptest_config(da_moe_harness::cases(120))]

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
        let returned = Counts { lent: before.lent - 1, ..before };
        assert_eq!(
            kernels.device().counts(),
            returned,
            "memory that was borrowed is not given back, the stream is let go"
        );
    });
}

fn check_listed<D: Device>(device: &Arc<D>) {
    let kernels = shimmed(device, None);
    with_engine(&kernels, &rich(), |data, engine, inputs, weights| {
        let launches = || kernels.device().counts().launches;
        engine.forward(inputs, weights).unwrap();
        let (expected, made) = (engine.outcome(data, None).unwrap(), launches());
        let Engine { layer, stream, state, step, y } = &mut *engine;
        let listed = stream
            .list(|| layer.forward(stream, inputs, weights, state, step, TensorMut::new(&mut *y, inputs.x.shape())?));
        let listed = listed.unwrap();
        assert_eq!((listed.len(), launches()), (made, made), "as many, and none was started");
        assert!(listed.iter().any(|of| of.stage == "gate" && of.call.launch.kernel.starts_with("budget_")));
        stream.write(y, &data.x).unwrap();
        // SAFETY: what the call reads and writes is alive, and nothing else uses it.
        listed.iter().for_each(|of| unsafe { of.call.run(&**kernels.device(), stream.handle()) }.unwrap());
        assert_same_bits("listed", &expected, &engine.outcome(data, None).unwrap());
        let failed = engine.stream.list(|| Err(Error::Memory { bytes: 1 }));
        assert!(failed.is_err());
        engine.forward(inputs, weights).unwrap();
        assert_eq!(launches(), 3 * made, "listing is over");
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
    assert_eq!((counts.streams, counts.lent, counts.graphs), (0, 0, 0), "{failing:?}: streams and graphs");
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
