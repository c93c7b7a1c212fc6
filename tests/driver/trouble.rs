//! What the processes of `scenarios` run: a layer on a driver that was told to fail.

use super::hopper::aligned;
use da_moe::cuda::{Device, Driver, GradientCopies, Kernels};
use da_moe::{DType, Error, Keep, TensorMut, TensorRef};
use da_moe_emulator::Counts;
use da_moe_harness::case::Case;
use da_moe_harness::data::Data;
use da_moe_harness::device::{Engine, OnDevice, rich, with_engine};
use da_moe_harness::{Subject, judge};
use std::env;
use std::sync::Arc;

fn kernels() -> Result<Kernels<Driver>, Error> {
    Driver::open(0).map(|driver| Kernels::new(Arc::new(driver)))
}

/// Opens the GPU, calls a layer forward and backward, records a call and starts what was recorded.
fn everything() -> Result<(), Error> {
    let kernels = kernels()?;
    let case = aligned();
    let data = Data::new(&case);
    let outcome = OnDevice(kernels.clone()).run(&data, &case)?;
    judge(&data, &outcome).expect("the oracle's numbers");
    let copies = da_moe::cuda::Copies::new(&kernels);
    let (inputs, weights) = (copies.inputs(&data.inputs()?)?, copies.weights(&data.weights()?)?);
    let mut engine = Engine::new(&kernels, &data, &Case { keep: Keep::Nothing, ..case }, 0)?;
    let Engine { layer, stream, state, step, y } = &mut engine;
    let graph = stream.capture(|| {
        layer.forward(stream, &inputs, &weights, state, step, TensorMut::new(&mut *y, inputs.x.shape())?)
    })?;
    // SAFETY: all tensors are alive, and nothing else uses them.
    unsafe { graph.launch(stream) }?;
    judge(&data, &engine.outcome(&data, None)?).expect("the oracle's numbers");
    Ok(())
}

#[test]
#[ignore = "a scenario's"]
fn nothing_opens() {
    println!("{:?}", kernels().map(drop).expect_err("a driver that cannot be opened"));
}

#[test]
#[ignore = "a scenario's"]
fn the_device_is_lost() {
    let kernels = kernels().expect("the driver opens");
    let case = rich();
    let run = || OnDevice(kernels.clone()).run(&Data::new(&case), &case).map(drop).expect_err("a kernel has failed");
    for error in [run(), run()] {
        assert!(matches!(error, Error::Cuda { .. }), "{error:?}");
        println!("told: {error}");
    }
    assert!(kernels.zeros(DType::F32, 4).is_err(), "a lost device gives no memory");
    assert!(kernels.stream(0).is_err(), "nor streams");
    drop(kernels);
    assert!(Driver::open(0).is_err(), "nor can it be opened again in this process");
}

#[test]
#[ignore = "a scenario's"]
fn memory_runs_out() {
    let kernels = kernels().expect("the driver opens");
    let error = kernels.zeros(DType::F32, 1 << 20).map(drop).expect_err("4 MiB are more than there is");
    let error = error.to_string();
    assert!(error.contains("cuMemAlloc") && error.contains("cannot be had from Emulated"), "{error}");
    // What is kept for later makes room for what is needed.
    for floats in [400_000, 500_000, 600_000] {
        kernels.zeros(DType::F32, floats).expect("memory");
    }
}

#[test]
#[ignore = "a scenario's"]
fn a_call_is_refused() {
    let call = env::var("EMULATED_CUDA_REFUSE").expect("a scenario names it");
    let error = everything().expect_err("a call was refused");
    assert!(matches!(error, Error::Cuda { .. }), "{error:?}");
    let error = error.to_string();
    assert!(error.contains(&call) && error.contains("invalid argument"), "{call}: {error}");
}

#[test]
#[ignore = "a scenario's"]
fn all_is_well() {
    everything().expect("nothing that matters was refused");
}

#[test]
#[ignore = "a scenario's"]
fn launches_alone() {
    let kernels = kernels().expect("the driver opens");
    let counts = || Counts::of_this_process().expect("the emulator's driver");
    with_engine(&kernels, &rich(), |data, engine, inputs, weights| {
        let dy = kernels.upload(&data.dy).unwrap();
        let dy = TensorRef::new(&dy, inputs.x.shape()).unwrap();
        let mut gradients = GradientCopies::like(&kernels, &data.gradients().view_mut().unwrap()).unwrap();
        let before = counts();
        engine.forward(inputs, weights).unwrap();
        engine.backward(inputs, weights, dy, &mut gradients.view_mut().unwrap()).unwrap();
        let after = counts();
        assert!(after.launches > before.launches + 20, "forward and backward");
        let alone = Counts { launches: after.launches, fills: after.fills, ..before };
        assert_eq!(after, alone, "launches and fills, and nothing else");
        kernels.device().synchronize_all().expect("no kernel failed");
    });
}
