//! Which kernels a layer gets from the driver: products of Hopper's own on Hopper and nowhere else, in clusters, with the tensor
//! maps that the driver encodes. `scenarios` runs these on other GPUs too.

use da_moe::cuda::{Architecture, Device, Driver, Kernels, Launch, StandIn, kernels as images};
use da_moe::{Attention, Inputs, Keep, LayerConfig, TensorMut, TensorRef};
use da_moe_harness::bits::assert_same_bits;
use da_moe_harness::case::Case;
use da_moe_harness::data::Data;
use da_moe_harness::device::{Engine, OnDevice, counted, rich, with_engine};
use da_moe_harness::{Subject, judge, kernels};
use std::collections::BTreeSet;
use std::ffi::c_void;
use std::sync::Arc;

/// [`rich`] with all rows at multiples of 16 bytes, as Hopper's products want them.
pub fn aligned() -> Case {
    let case = rich();
    let config = LayerConfig { hidden_size: 16, moe_intermediate_size: 24, shared_intermediate_size: 8, ..case.config };
    Case { config, ..case }
}

fn driver() -> Arc<Driver> {
    kernels::on_gpu().expect("the driver opens").kernels().device().clone()
}

fn is_hopper(device: &impl Device) -> bool {
    device.target().architecture == Architecture::Hopper
}

/// Those of Hopper among the kernels that were launched.
fn own(device: &StandIn<Driver>) -> BTreeSet<&'static str> {
    device.kernels().into_iter().filter(|kernel| kernel.ends_with("_hopper")).collect()
}

#[test]
fn products_are_hoppers_own_on_hopper_alone() {
    let driver = driver();
    let case = aligned();
    // Rows as wide as the product that gives f32 is Hopper's own for.
    let config = LayerConfig { hidden_size: 128, ..case.config.clone() };
    for keep in [Keep::Nothing, Keep::Hidden, Keep::Recompute] {
        let (kernels, case) = (counted(&driver, None), Case { keep, config: config.clone(), ..case.clone() });
        let data = Data::new(&case);
        judge(&data, &OnDevice(kernels.clone()).run(&data, &case).unwrap()).unwrap();
        let (own, maps) = (own(kernels.device()), kernels.device().counts().maps);
        println!("{own:?} with {maps} maps on {driver:?}");
        let expected = ["grouped_gemm_bf16_gated_gathered_hopper", "grouped_gemm_bf16_plain_packed_hopper"];
        let reached = own.iter().filter(|kernel| expected.contains(*kernel)).count();
        let wanted = if is_hopper(&*driver) { expected.len() } else { 0 };
        assert_eq!((reached, own.is_empty(), maps > 0), (wanted, wanted == 0, wanted > 0), "{keep:?}: {own:?}");
    }
}

/// The same GPU without what only Hopper has.
#[test]
fn the_portable_kernels_are_there_too() {
    let kernels = counted(&driver(), None).architecture(Architecture::Portable).unwrap();
    let (case, device) = (aligned(), kernels.device().clone());
    let data = Data::new(&case);
    judge(&data, &OnDevice(kernels).run(&data, &case).unwrap()).unwrap();
    assert_eq!((own(&device), device.counts().maps), (BTreeSet::new(), 0));
}

#[test]
fn the_kernels_of_the_architecture_are_loaded() {
    let driver = driver();
    let (architecture, loaded) = (driver.target().architecture, driver.loaded());
    let compiled = |architecture, machine: &str| {
        let images = images().expect("compiled kernels").iter().filter(|image| image.architecture == architecture);
        let machine = format!("' for '{machine}'");
        let entry = |line: &&str| line.contains("Compiling entry function '") && line.ends_with(&machine);
        images.map(|image| image.ptxas.lines().filter(entry).count()).sum::<usize>()
    };
    let [portable, hopper] = [Architecture::Portable, Architecture::Hopper].map(|of| compiled(of, "sm_90a"));
    assert_eq!(compiled(Architecture::Portable, "sm_80"), portable);
    assert!(hopper > 0);
    println!("{loaded}");
    assert_eq!(loaded.kernels, if is_hopper(&*driver) { portable + hopper } else { portable }, "{architecture:?}");
}

#[test]
fn a_recorded_call_serves_other_inputs() {
    let driver = driver();
    let kernels = counted(&driver, None);
    let case = aligned();
    let fresh = Data::new(&Case { seed: 78, ..case.clone() });
    with_engine(&kernels, &case, |data, engine, inputs, weights| {
        let other = Data { x: fresh.x, q: fresh.q, k: fresh.k, ..data.clone() };
        let [mut x, mut q, mut k] = [&data.x, &data.q, &data.k].map(|buffer| kernels.upload(buffer).unwrap());
        let Some(Attention::QueryKey { q: of_q, k: of_k, .. }) = inputs.attention else { panic!("not from q and k") };
        let rows = [TensorRef::new(&q, of_q.shape()).unwrap(), TensorRef::new(&k, of_k.shape()).unwrap()];
        let shape = inputs.x.shape();
        let inputs = Inputs {
            x: TensorRef::new(&x, shape).unwrap(),
            attention: Some(Attention::query_key(rows[0], rows[1])),
            ..*inputs
        };
        let Engine { layer, stream, state, step, y } = &mut *engine;
        let graph =
            stream.capture(|| layer.forward(stream, &inputs, weights, state, step, TensorMut::new(&mut *y, shape)?));
        let graph = graph.unwrap();
        assert_eq!(own(kernels.device()).is_empty(), !is_hopper(&*driver));
        let maps = kernels.device().counts().maps;
        let mut rows = BTreeSet::new();
        for data in [data, &other] {
            for (memory, contents) in [(&mut x, &data.x), (&mut q, &data.q), (&mut k, &data.k)] {
                engine.stream.write(memory, contents).unwrap();
            }
            // SAFETY: all tensors are alive, and nothing else uses them.
            unsafe { graph.launch(&engine.stream) }.unwrap();
            let outcome = engine.outcome(data, None).unwrap();
            judge(data, &outcome).unwrap();
            rows.insert(outcome.offsets.last().copied());
            // What starts it once more.
            let again = OnDevice(Kernels::new(driver.clone())).run(data, &Case { keep: Keep::Nothing, ..case.clone() });
            assert_same_bits("recorded", &again.unwrap(), &outcome);
        }
        assert_eq!(rows.len(), 2, "R is not part of the graph");
        assert_eq!(kernels.device().counts().maps, maps, "nor are maps made again");
    });
}

/// What the driver refuses harms nothing that comes later.
#[test]
fn a_launch_in_other_clusters_is_refused() {
    const PRODUCT: &str = "grouped_gemm_bf16_plain_packed_hopper";
    let driver = driver();
    let start = |launch| {
        let mut parameter = da_moe::cuda::abi::HopperGemm::default();
        let address: *mut c_void = (&raw mut parameter).cast();
        // SAFETY: the parameter is of the kernel's type; nothing runs.
        unsafe { driver.launch(driver.own_stream(), &launch, &[address]) }.unwrap_err().to_string()
    };
    let product = |blocks, cluster| Launch { cluster, ..Launch { threads: 384, ..one(PRODUCT, blocks) } };
    let cases = [
        (product(2, 1), "is compiled for clusters of 2 blocks, not of 1"),
        (product(4, 4), "is compiled for clusters of 2 blocks, not of 4"),
        (product(3, 2), "cluster misconfiguration"),
    ];
    for (launch, words) in cases {
        let error = start(launch);
        let words =
            if is_hopper(&*driver) { words } else { "there is no kernel `grouped_gemm_bf16_plain_packed_hopper`" };
        assert!(error.contains("cuLaunchKernel") && error.contains(words), "{error}");
    }
    let error = start(Launch { cluster: 2, ..one("permute_count", 2) });
    assert!(error.contains("`permute_count` is compiled for clusters of 1 blocks, not of 2"), "{error}");
    driver.synchronize_all().expect("nothing failed");
}

fn one(kernel: &'static str, blocks: u32) -> Launch {
    Launch { kernel, grid: [blocks, 1, 1], threads: 32, shared: 0, cluster: 1 }
}
