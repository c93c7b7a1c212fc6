//! `--device cuda` on the emulator's `libcuda.so.1`: the program as it is, from the command line to the kernels.

use crate::common::{Case, assert_refused, config, program, read, tensors};
use assert_cmd::Command;
use da_moe::cuda::{BuildReport, Emulated, build_report};
use da_moe_emulator::Libcuda;
use predicates::prelude::*;
use serde_json::Value;
use std::io::{self, Write};
use std::sync::OnceLock;

/// The library, unless there are no kernels that it could be asked to run; a line on standard error says so then.
fn library() -> Option<&'static Libcuda> {
    static LIBRARY: OnceLock<Option<Libcuda>> = OnceLock::new();
    let make = || match build_report() {
        BuildReport::Built { .. } => {
            let cache = concat!(env!("CARGO_TARGET_TMPDIR"), "/kernels");
            Some(Emulated::compiler(cache).libcuda().unwrap_or_else(|error| panic!("{error}")))
        }
        BuildReport::NotBuilt { reason } => {
            let line = format!("`--device cuda` is not tested: kernels were not built: {reason}");
            writeln!(io::stderr(), "{line}").expect("a line on standard error");
            None
        }
    };
    LIBRARY.get_or_init(make).as_ref()
}

/// The program where it finds the library, which has these settings.
fn on(library: &Libcuda, settings: &[(&str, &str)]) -> Command {
    let mut command = program();
    let (name, value) = library.environment();
    command.env(name, value).envs(settings.iter().copied());
    command
}

#[test]
fn doctor_finds_the_gpu() {
    let Some(library) = library() else { return };
    let output = on(library, &[]).args(["doctor", "--json"]).output().expect("a program that starts");
    let object: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let found = object["gpu"]["libcuda"].as_str().expect("a path");
    assert!(found.starts_with(&*library.folder().to_string_lossy()), "{found}");
    assert!(object["auto"].as_str().is_some_and(|auto| auto.contains("Emulated H100, sm_90")), "{object}");
    let old = on(library, &[("EMULATED_CUDA_DRIVER", "12080")]).arg("doctor").output().expect("a program that starts");
    let old = String::from_utf8_lossy(&old.stdout).into_owned();
    assert!(old.contains("CUDA 12.8"), "{old}");
}

#[test]
fn demo_agrees_with_the_oracle() {
    let Some(library) = library() else { return };
    let mut command = on(library, &[]);
    command.args(["demo", "--device", "cuda", "--text", "-"]).write_stdin("A small text, for a small machine.");
    let agrees = predicate::str::contains("agrees with the f64 oracle");
    command.assert().success().stdout(agrees).stdout(predicate::str::contains("Emulated H100"));
}

#[test]
fn bench_times_forward_and_backward() {
    let Some(library) = library() else { return };
    // The dense product that the rates are compared with is of the size of the GPU.
    let mut command = on(library, &[("EMULATED_CUDA_ARCHITECTURE", "80"), ("EMULATED_CUDA_MULTIPROCESSORS", "1")]);
    command.args(["bench", "--shape", "16,16,8,4", "--repeats", "5", "--backward", "--json", "--device", "cuda"]);
    let output = command.output().expect("a program that starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let object: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert!(object["device"].as_str().is_some_and(|device| device.contains("Emulated A100")), "{object}");
    assert!(object["backward_ms"].as_f64() > Some(0.0), "{object}");
}

#[test]
fn run_gives_what_the_cpu_gives() {
    let Some(library) = library() else { return };
    let case = Case::new(&config(""), &tensors().bytes());
    assert!(case.run(&["--backward", "--device", "cpu"]).status.success());
    let expected = read(&case.output());
    let output = case.run_by(on(library, &[]), &case.output(), &["--backward", "--device", "cuda"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for (name, (dtype, shape, values)) in read(&case.output()) {
        let (expected_dtype, expected_shape, expected) = &expected[&name];
        assert_eq!((&dtype, &shape), (expected_dtype, expected_shape), "{name}");
        let close = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-4 * b.abs().max(1.0) || a.is_nan();
        assert!(values.iter().zip(expected).all(close), "{name}");
    }
}

#[test]
fn what_goes_wrong_is_told_in_one_line() {
    let Some(library) = library() else { return };
    let bench = ["bench", "--shape", "16,16,8,4", "--repeats", "5", "--device", "cuda"];
    for (setting, value, expected) in [
        ("EMULATED_CUDA_DEVICES", "0", "the NVIDIA driver finds none"),
        ("EMULATED_CUDA_ARCHITECTURE", "75", "sm_75"),
        ("EMULATED_CUDA_MEMORY", "100000", "cannot be had from Emulated"),
    ] {
        let output = on(library, &[(setting, value)]).args(bench).output().expect("a program that starts");
        assert_refused(&output, expected);
    }
    let output =
        on(library, &[("EMULATED_CUDA_FAIL_LAUNCH", "7")]).args(bench).output().expect("a program that starts");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("an illegal memory access was encountered"), "{text}");
    assert!(text.contains("launched before"), "the error names what ran: {text}");
}
