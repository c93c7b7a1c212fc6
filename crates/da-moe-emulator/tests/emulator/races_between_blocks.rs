//! What orders the blocks of one launch: fences and atomics, in pairs.

use da_moe_emulator::{Device, Error, Kind, Policy, Schedule};

use crate::common::{compile, compiler, download, input, lines_with, mutant, output, parameter, passes, reports};

const FILE: &str = "last_block.cu";
const BLOCKS: u32 = 5;

fn sum(device: &Device) -> Result<(), Error> {
    let values: Vec<f32> = (0..1000).map(|i| (i % 17) as f32).collect();
    let count = values.len() as i32;
    let values_at = input(device, "values", &values);
    device.read_only(values_at)?;
    let partial = output::<f32>(device, "partial", 2 * BLOCKS as usize);
    let ticket = input(device, "ticket", &[0u32]);
    let total = output::<f32>(device, "total", 1);
    let parameters = [&values_at, &partial, &ticket, &total].map(parameter);
    let parameters = [parameters.as_slice(), &[parameter(&count)]].concat();
    for _ in 0..2 {
        // SAFETY: four addresses and an int, as the kernel takes them.
        unsafe { device.launch("sum", [BLOCKS, 1, 1], [64, 1, 1], 0, &parameters)? };
        assert_eq!(download::<f32>(device, total, 1), [values.iter().sum::<f32>()]);
    }
    Ok(())
}

#[test]
fn the_last_block_sees_all_partial_sums() {
    passes(&compile(&compiler(FILE)), sum);
}

#[test]
fn without_the_releasing_fence_it_does_not() {
    let module = mutant(FILE, "__threadfence();  // release", "");
    reports(&module, &[Kind::Race], FILE, &lines_with(FILE, "all += partial[i]"), sum);
}

#[test]
fn without_the_acquiring_fence_it_does_not() {
    let module = mutant(FILE, "__threadfence();  // acquire", "");
    reports(&module, &[Kind::Race], FILE, &lines_with(FILE, "all += partial[i]"), sum);
}

#[test]
fn without_the_barrier_before_the_ticket_it_does_not() {
    let module = mutant(FILE, "__syncthreads();  // before the ticket", "");
    reports(&module, &[Kind::Race], FILE, &lines_with(FILE, "all += partial[i]"), sum);
}

#[test]
fn without_the_barrier_after_the_ticket_it_does_not() {
    let module = mutant(FILE, "__syncthreads();  // after the ticket", "");
    let lines = [lines_with(FILE, "if (last[0]"), lines_with(FILE, "all += partial[i]")].concat();
    reports(&module, &[Kind::Race, Kind::Uninitialised], FILE, &lines, sum);
}

const WRITE_AFTER_READ: &str = "write_after_read.cu";

fn overwrite(device: &Device, roles: &[i32]) -> Result<(), Error> {
    let (value, out) = (input(device, "value", &[3i32]), output::<i32>(device, "out", 1));
    for role in roles {
        // SAFETY: two addresses and an int, as the kernel takes them.
        unsafe {
            let parameters = [parameter(&value), parameter(&out), parameter(role)];
            device.launch("write_after_read", [2, 1, 1], [1, 1, 1], 0, &parameters)?;
        }
    }
    assert_eq!((download::<i32>(device, out, 1), download::<i32>(device, value, 1)), (vec![3], vec![7]));
    Ok(())
}

#[test]
fn a_write_after_another_blocks_read() {
    let module = compile(&compiler(WRITE_AFTER_READ));
    let lines = [lines_with(WRITE_AFTER_READ, "// the read"), lines_with(WRITE_AFTER_READ, "// the write")].concat();
    reports(&module, &[Kind::Race], WRITE_AFTER_READ, &lines, |device| overwrite(device, &[2]));
    // One block after the other: the read has passed, with the right value, when the write is made.
    reports(&module, &[Kind::Race], WRITE_AFTER_READ, &lines_with(WRITE_AFTER_READ, "// the write"), |device| {
        device.set_schedule(Schedule { seed: 1, policy: Policy::RoundRobin, resident: 1 });
        let result = overwrite(device, &[2]);
        let text = "write of `value`+0 is not ordered after the read by another block";
        assert!(result.as_ref().is_err_and(|error| error.to_string().contains(text)), "{result:?}");
        result
    });
}

#[test]
fn launches_are_ordered() {
    passes(&compile(&compiler(WRITE_AFTER_READ)), |device| overwrite(device, &[0, 1]));
}

const LOOK_BACK: &str = "look_back.cu";

fn prefix_sums(device: &Device) -> Result<(), Error> {
    const COUNT: usize = 6 * 64;
    let values: Vec<i32> = (0..COUNT as i32).map(|i| i % 11 - 3).collect();
    let values_at = input(device, "values", &values);
    let (results, sums) = (output::<i32>(device, "results", COUNT), output::<i32>(device, "sums", 6));
    let (ready, next_ticket) = (input(device, "ready", &[0u32; 6]), input(device, "next_ticket", &[0u32]));
    let parameters = [&values_at, &results, &sums, &ready, &next_ticket].map(parameter);
    // SAFETY: five addresses, as the kernel takes them.
    unsafe { device.launch("prefix_sums", [6, 1, 1], [64, 1, 1], 0, &parameters)? };
    let add = |sum: &mut i32, value: &i32| {
        *sum += value;
        Some(*sum)
    };
    assert_eq!(download::<i32>(device, results, COUNT), values.iter().scan(0, add).collect::<Vec<_>>());
    Ok(())
}

#[test]
fn a_block_waits_for_the_one_before_it() {
    passes(&compile(&compiler(LOOK_BACK)), prefix_sums);
}

#[test]
fn without_fences_the_flag_says_nothing() {
    for fence in ["__threadfence();  // acquire", "__threadfence();  // release"] {
        let module = mutant(LOOK_BACK, fence, "");
        reports(&module, &[Kind::Race], LOOK_BACK, &lines_with(LOOK_BACK, "before[0] = sums[block - 1]"), prefix_sums);
    }
}

#[test]
fn a_fence_of_the_block_is_not_enough() {
    let module = mutant(LOOK_BACK, "__threadfence();  // release", "__threadfence_block();");
    reports(&module, &[Kind::Race], LOOK_BACK, &lines_with(LOOK_BACK, "before[0] = sums[block - 1]"), prefix_sums);
}

#[test]
fn a_flag_that_is_read_without_an_atomic() {
    let from = "atomicAdd(&ready[block - 1], 0) == 0";
    let module = mutant(LOOK_BACK, from, "const_cast<volatile unsigned*>(ready)[block - 1] == 0");
    let lines = [lines_with(LOOK_BACK, from), lines_with(LOOK_BACK, "atomicExch(&ready[block]")].concat();
    reports(&module, &[Kind::Race], LOOK_BACK, &lines, prefix_sums);
}
