//! Bounds, initialisation, alignment, and memory that is not the kernel's.

use std::sync::{Arc, LazyLock};

use da_moe_emulator::{Device, Error, Kind, Module, Policy, Schedule};

use crate::common::{compile, compiler, download, input, lines_with, output, parameter, passes, reports};

const FILE: &str = "memory_faults.cu";
static MODULE: LazyLock<Arc<Module>> = LazyLock::new(|| compile(&compiler(FILE)));

fn launch(device: &Device, kernel: &str) -> Result<(), Error> {
    let (at, out) = buffers(device)?;
    // SAFETY: two addresses, as all kernels of the file take them.
    unsafe { device.launch(kernel, [1, 1, 1], [64, 1, 1], 64, &[parameter(&at), parameter(&out)]) }
}

fn buffers(device: &Device) -> Result<(u64, u64), Error> {
    let at = input(device, "in", &[0i32; 100]);
    device.read_only(at)?;
    Ok((at, output::<i32>(device, "out", 100)))
}

fn fault(kernel: &str, kind: Kind) {
    let lines = lines_with(FILE, &format!("// fault: {kernel}"));
    reports(&MODULE, &[kind], FILE, &lines, |device| launch(device, kernel));
}

#[test]
fn accesses_outside_allocations() {
    fault("read_past_the_end", Kind::OutOfBounds);
    fault("write_before_the_start", Kind::OutOfBounds);
    fault("null_pointer", Kind::OutOfBounds);
}

#[test]
fn accesses_outside_shared_arrays() {
    fault("shared_past_the_end", Kind::OutOfBounds);
    fault("dynamic_past_the_end", Kind::OutOfBounds);
}

#[test]
fn indices_outside_arrays() {
    fault("index_of_a_local", Kind::OutOfBounds);
    fault("index_through_a_reference", Kind::OutOfBounds);
    fault("index_of_a_shared", Kind::OutOfBounds);
}

/// The limit that the README states: where this begins to fail, it is out of date.
#[test]
fn pointers_past_local_arrays_are_seen_only_outside_the_threads_own_stack() {
    passes(&MODULE, |device| launch(device, "pointer_past_a_local"));
    fault("pointer_far_past_a_local", Kind::Memory);
}

#[test]
fn reads_of_what_nobody_wrote() {
    fault("read_of_unwritten", Kind::Uninitialised);
    fault("atomic_on_unwritten", Kind::Uninitialised);
    fault("uninitialised_shared", Kind::Uninitialised);
    fault("half_of_a_pair", Kind::Uninitialised);
}

#[test]
fn writes_to_what_is_read_only() {
    fault("write_to_read_only", Kind::ReadOnly);
    fault("atomic_on_read_only", Kind::ReadOnly);
}

#[test]
fn vectors_that_are_not_aligned() {
    fault("misaligned_vector", Kind::Misaligned);
    fault("misaligned_shared", Kind::Misaligned);
}

#[test]
fn memory_of_others() {
    fault("locals_of_another", Kind::Memory);
    fault("variable_of_the_module", Kind::Memory);
}

#[test]
fn shared_memory_of_another_block() {
    let lines = lines_with(FILE, "// fault: shared_of_another");
    reports(&MODULE, &[Kind::Memory], FILE, &lines, |device| {
        let mail = input(device, "mail", &[0u64; 2]);
        device.set_schedule(Schedule { seed: 1, policy: Policy::Random, resident: 2 });
        // SAFETY: an address, as the kernel takes it.
        unsafe { device.launch("shared_of_another", [2, 1, 1], [1, 1, 1], 0, &[parameter(&mail)]) }
    });
}

#[test]
fn a_stack_used_up() {
    fault("endless_recursion", Kind::StackOverflow);
}

#[test]
fn a_trap_and_a_failed_assertion() {
    fault("trap", Kind::Launch);
    fault("assertion", Kind::Launch);
}

#[test]
fn a_device_goes_on_after_a_failure() {
    passes(&MODULE, |device| {
        for kernel in ["uninitialised_shared", "locals_of_another", "shared_past_the_end", "endless_recursion"] {
            launch(device, kernel).expect_err("a fault");
        }
        let values: Vec<i32> = (0..100).collect();
        let (at, out) = (input(device, "in", &values), output::<i32>(device, "out", 100));
        // SAFETY: two addresses, as the kernel takes them.
        unsafe { device.launch("no_fault", [1, 1, 1], [64, 1, 1], 0, &[parameter(&at), parameter(&out)])? };
        assert_eq!(download::<i32>(device, out, 64), values[..64].iter().rev().copied().collect::<Vec<_>>());
        assert_eq!(device.unwritten(out)?, 4 * 36);
        Ok(())
    });
}

#[test]
fn the_host_stays_inside_allocations() {
    let device = Device::new(MODULE.clone(), Schedule::from_seed(0));
    let memory = |result: Result<(), Error>| match result {
        Err(Error::Report(report)) => assert_eq!(report.kind, Kind::Memory, "{report}"),
        other => panic!("{other:?}"),
    };
    let address = device.alloc("buffer", 10).unwrap();
    assert_eq!(address % 256, 0);
    assert_ne!(address % 512, 0);
    memory(device.upload(address + 8, &[0; 3]));
    memory(device.download(address - 1, &mut [0; 1]));
    memory(device.free(address + 1));
    device.upload(address + 8, &[1, 2]).unwrap();
    assert_eq!(device.unwritten(address).unwrap(), 8);

    let (empty, other) = (device.alloc("empty", 0).unwrap(), device.alloc("also empty", 0).unwrap());
    assert_ne!(empty, other);
    device.upload(empty, &[]).unwrap();
    device.read_only(empty).unwrap();
    assert_eq!(device.unwritten(empty).unwrap(), 0);
    memory(device.upload(empty, &[0]));

    device.free(address).unwrap();
    memory(device.free(address));
    memory(device.download(address, &mut [0; 1]));
    memory(device.alloc("too much", usize::MAX / 2).map(drop));
}

#[test]
fn poison_varies_with_the_seed() {
    let mut patterns: Vec<_> = (0..12)
        .map(|seed| {
            let device = Device::new(MODULE.clone(), Schedule::from_seed(seed));
            let address = device.alloc("poison", 4).unwrap();
            download::<u32>(&device, address, 1)[0]
        })
        .collect();
    patterns.dedup();
    assert_eq!(patterns, [0xffff_ffff, 0x7f7f_7f7f, 0x4747_4747, 0]);
}
