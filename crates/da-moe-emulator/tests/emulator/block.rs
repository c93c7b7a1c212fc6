//! Races, barriers and warps inside one block.

use std::sync::{Arc, LazyLock};

use da_moe_emulator::{Device, Error, Kind, Module};

use crate::common::{compile, compiler, download, input, lines_with, mutant, output, parameter, passes, reports};

const FILE: &str = "block.cu";
static MODULE: LazyLock<Arc<Module>> = LazyLock::new(|| compile(&compiler(FILE)));

/// The first `count` outputs of a kernel that takes 0, 1, 2, ...
fn launch(device: &Device, kernel: &str, count: usize) -> Result<Vec<i32>, Error> {
    let values: Vec<i32> = (0..64).collect();
    let (at, out) = (input(device, "in", &values), output::<i32>(device, "out", 64));
    device.read_only(at)?;
    // SAFETY: two addresses, as all kernels of the file take them.
    unsafe { device.launch(kernel, [1, 1, 1], [64, 1, 1], 0, &[parameter(&at), parameter(&out)])? };
    Ok(download(device, out, count))
}

fn computes(kernel: &str, expected: &[i32]) {
    passes(&MODULE, |device| launch(device, kernel, expected.len()).map(|got| assert_eq!(got, expected, "{kernel}")));
}

fn fault(kernel: &str, kinds: &[Kind]) {
    let lines = lines_with(FILE, &format!("// fault: {kernel}"));
    reports(&MODULE, kinds, FILE, &lines, |device| launch(device, kernel, 0).map(drop));
}

fn bug(kernel: &str, kinds: &[Kind], remove: &str, lines: &[&str]) {
    let lines: Vec<_> = lines.iter().flat_map(|line| lines_with(FILE, line)).collect();
    reports(&mutant(FILE, remove, ""), kinds, FILE, &lines, |device| launch(device, kernel, 0).map(drop));
}

#[test]
fn right_kernels_pass() {
    computes("reverse", &(0..64).rev().collect::<Vec<_>>());
    computes("warp_sums", &[(0..32).sum(), (32..64).sum()]);
    computes("bytes", &(0..16).map(|i| 16 * i + 6).collect::<Vec<_>>());
    computes("histogram", &[16; 4]);
    computes("hand_over", &[5]);
}

#[test]
fn a_missing_barrier() {
    let found = [Kind::Race, Kind::Uninitialised];
    bug("reverse", &found, "__syncthreads();  // reverse", &["values[63 - threadIdx.x]", "values[threadIdx.x] ="]);
}

#[test]
fn a_missing_syncwarp() {
    let found = [Kind::Race, Kind::Uninitialised];
    bug(
        "warp_sums",
        &found,
        "__syncwarp();  // before a step",
        &["values[t] += values[t + step]", "values[t] = in[t]"],
    );
}

#[test]
fn atomics_against_plain_accesses() {
    let found = [Kind::Race, Kind::Uninitialised];
    bug("histogram", &found, "__syncthreads();  // bins are zero", &["atomicAdd(&bins", "bins[threadIdx.x] = 0"]);
    bug("histogram", &found, "__syncthreads();  // bins are complete", &["atomicAdd(&bins", "out[threadIdx.x] = bins"]);
}

#[test]
fn a_flag_without_fences() {
    bug("hand_over", &[Kind::Race], "__threadfence_block();  // hand over", &["out[0] = value[0]"]);
    bug("hand_over", &[Kind::Race], "__threadfence_block();  // take over", &["out[0] = value[0]"]);
}

#[test]
fn many_writers_of_one_place() {
    fault("everybody_writes", &[Kind::Race]);
}

#[test]
fn barriers_that_not_all_threads_reach() {
    fault("barrier_in_a_branch", &[Kind::Divergence]);
    fault("barrier_after_exit", &[Kind::Divergence]);
}

#[test]
fn warps_that_diverge() {
    fault("two_collectives", &[Kind::Divergence]);
    fault("wrong_mask", &[Kind::Divergence]);
}

#[test]
fn threads_that_wait_for_nobody() {
    fault("named_barrier_without_partners", &[Kind::Deadlock]);
}

#[test]
fn threads_that_spin_forever() {
    fault("spin_on_a_flag", &[Kind::Livelock]);
    fault("spin_on_an_atomic", &[Kind::Livelock]);
}
