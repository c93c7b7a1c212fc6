//! Other GPUs, other drivers, and what goes wrong: each in a process of its own, because a driver that has failed is of no
//! use to anybody else in the process.

use std::env;
use std::process::Command;
use std::time::{Duration, Instant};

/// Longer than anything here takes on a busy machine, and short enough that a test that hangs is noticed.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs tests of this program whose names contain one of `filters`, under these settings of the library. What they print, if
/// all pass.
fn run(filters: &[&str], settings: &[(&str, &str)]) -> Result<String, String> {
    let program = env::current_exe().expect("this program has a path");
    let mut command = Command::new("timeout");
    command.arg("--kill-after=5").arg(PATIENCE.as_secs().to_string()).arg(program);
    command.args(filters).args(["--include-ignored", "--nocapture"]).envs(settings.iter().copied());
    let started = Instant::now();
    let output = command.output().expect("a process");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    match output.status.success() && !text.contains("running 0 tests") {
        true => Ok(text),
        false => Err(format!("{settings:?}: {} after {:.0?}\n{text}", output.status, started.elapsed())),
    }
}

/// As [`run`], for tests that must pass.
fn passes(filter: &str, settings: &[(&str, &str)]) -> String {
    run(&[filter], settings).unwrap_or_else(|problem| panic!("{problem}"))
}

/// Each call that is recorded takes so long that the other tests do all they do in between.
#[test]
fn nothing_breaks_a_recording_or_is_broken_by_one() {
    let all = ["graphs::", "refusals::", "engine::tensors", "engine::streams", "borrowing::", "streams::"];
    run(&all, &[("EMULATED_CUDA_SLOW_RECORDING", "500")]).unwrap_or_else(|problem| panic!("{problem}"));
}

#[test]
fn an_ampere_runs_its_own_machine_code() {
    let text = passes("graphs::", &[("EMULATED_CUDA_ARCHITECTURE", "80")]);
    assert!(text.contains("Driver(Emulated A100, sm_80"), "{text}");
    let text = passes("engine::tensors", &[("EMULATED_CUDA_ARCHITECTURE", "80")]);
    assert!(text.contains("Driver(Emulated A100, sm_80"), "{text}");
}

#[test]
fn what_is_newer_than_the_machine_code_runs_the_portable_code() {
    let text = passes("engine::tensors", &[("EMULATED_CUDA_ARCHITECTURE", "100")]);
    assert!(text.contains("a driver would translate PTX for compute_80"), "{text}");
}

#[test]
fn hopper_is_what_hopper_is_told_by() {
    for (architecture, is_hopper) in [("80", false), ("90", true), ("100", false)] {
        let text = passes("kernels_for_hopper", &[("EMULATED_CUDA_ARCHITECTURE", architecture)]);
        assert_ne!(text.contains("does not run kernels for Hopper (sm_90a)"), is_hopper, "sm_{architecture}: {text}");
    }
}

#[test]
fn other_gpus_are_asked_for_nothing_of_hoppers() {
    for architecture in ["80", "100"] {
        let text = passes("hopper::", &[("EMULATED_CUDA_ARCHITECTURE", architecture)]);
        assert!(!text.contains("it has no code for"), "an image for another GPU was loaded: {text}");
        assert!(!text.contains("_hopper\""), "a kernel for another GPU was launched: {text}");
    }
}

#[test]
fn what_cannot_be_opened_is_told_why() {
    for (setting, value, problem) in [
        ("EMULATED_CUDA_DEVICES", "0", "NoDevice"),
        ("EMULATED_CUDA_DRIVER", "12080", "DriverTooOld"),
        ("EMULATED_CUDA_ARCHITECTURE", "75", "Architecture"),
        ("EMULATED_CUDA_REFUSE", "cuDevicePrimaryCtxRetain", "Cuda"),
        ("EMULATED_CUDA_REFUSE", "cuFuncLoad", "Cuda"),
    ] {
        let text = passes("trouble::nothing_opens", &[(setting, value)]);
        assert!(text.contains(problem), "{setting}={value}: {text}");
    }
}

#[test]
fn a_kernel_that_fails_is_an_error_and_the_end_of_the_device() {
    for (fault, words) in [
        ("700", "an illegal memory access was encountered"),
        ("716", "misaligned address"),
        ("719", "unspecified launch failure"),
    ] {
        let settings = [("EMULATED_CUDA_FAIL_LAUNCH", "9"), ("EMULATED_CUDA_FAULT", fault)];
        let text = passes("trouble::the_device_is_lost", &settings);
        assert!(text.contains(words) && text.contains("launched before, the last first"), "{text}");
    }
}

#[test]
fn a_kernel_that_is_waited_for_is_named() {
    const NAME: &str = "row_weight_gradient_bf16";
    for one_by_one in ["DA_MOE_SYNC", "CUDA_LAUNCH_BLOCKING"] {
        let text = passes("trouble::the_device_is_lost", &[("EMULATED_CUDA_FAIL_KERNEL", NAME), (one_by_one, "1")]);
        let told = text.lines().find(|line| line.starts_with("told: ")).expect("an error");
        assert!(told.contains(&format!(": `{NAME}` with grid")), "{one_by_one}: {told}");
    }
}

#[test]
fn memory_that_is_not_there_is_an_error_and_nothing_else() {
    passes("trouble::memory_runs_out", &[("EMULATED_CUDA_MEMORY", "3000000")]);
}

#[test]
fn every_refusal_of_the_driver_is_told() {
    for call in [
        "cuCtxSetCurrent",
        "cuStreamCreate",
        "cuStreamSynchronize",
        "cuMemAlloc",
        "cuMemcpyHtoDAsync",
        "cuMemcpyDtoHAsync",
        "cuMemsetD8Async",
        "cuTensorMapEncodeTiled",
        "cuLaunchKernel",
        "cuStreamBeginCapture",
        "cuStreamEndCapture",
        "cuGraphInstantiate",
        "cuGraphLaunch",
    ] {
        passes("trouble::a_call_is_refused", &[("EMULATED_CUDA_REFUSE", call)]);
    }
}

#[test]
fn what_cannot_be_given_back_changes_nothing() {
    for call in ["cuMemFree", "cuStreamDestroy", "cuGraphDestroy", "cuGraphExecDestroy", "cuModuleUnload"] {
        passes("trouble::all_is_well", &[("EMULATED_CUDA_REFUSE", call)]);
    }
}

#[test]
fn a_layer_call_waits_for_nothing() {
    passes("trouble::launches_alone", &[]);
}
