//! Chores of the workspace; `cargo xtask` lists them.

#![forbid(unsafe_code)]

mod abi;
mod data;
mod gpu_bundle;
mod libcuda;
mod rehearsal;
mod slowest;
mod wheels;

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

const HELP: &str = "\
cargo xtask check             formatting, lints and documentation; what must be clean besides the tests
cargo xtask cuda              install the CUDA compiler below target/, where the build looks for it
cargo xtask abi [--check]     write src/cuda/abi.rs from kernels/abi.h, or fail if it is not what would be written
cargo xtask data              text for the evaluation in target/data, from packages (--allow-missing: from those that can be had)
cargo xtask gpu-bundle        tests, benchmarks and peers in target/gpu-bundle, for a machine that has a GPU and no Rust
cargo xtask rehearse          the bundle's calls on a driver whose kernels the emulator runs, with faults; no GPU
cargo xtask libcuda [FOLDER]  the driver's library with kernels run by the emulator (default target/libcuda); `. FOLDER/env.sh` uses it
cargo xtask fuzz [SECONDS]    random bytes as configurations and tensor files, random calls against the oracle (default 120)
cargo xtask slowest LOG       the slowest tests of what `cargo test` said, and the seconds of each program (.ci/timed has tests say theirs)
cargo xtask peers [ARGUMENTS] this library beside PyTorch on this machine (installs PyTorch below target/ when asked to)";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments.as_slice() {
        ["check"] => check(),
        ["cuda"] => wheels::install_compiler(),
        ["abi"] => abi::write(),
        ["abi", "--check"] => abi::check(),
        ["data"] => data::write(false),
        ["data", "--allow-missing"] => data::write(true),
        ["gpu-bundle"] => gpu_bundle::gather(),
        ["rehearse"] => rehearsal::run(),
        ["libcuda"] => libcuda::write("target/libcuda"),
        ["libcuda", folder] => libcuda::write(folder),
        ["fuzz"] => fuzz(120),
        ["fuzz", seconds] => match seconds.parse() {
            Ok(seconds) => fuzz(seconds),
            Err(_) => Err(format!("`{seconds}` is not a number of seconds")),
        },
        ["slowest", log] => slowest::print(log),
        ["peers", rest @ ..] => peers(rest),
        _ => Err(HELP.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a program and fails with its command line.
fn run(program: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Result<(), String> {
    let line = format!("{program} {}", arguments.join(" "));
    eprintln!("$ {line}");
    let status = Command::new(program).args(arguments).envs(environment.iter().copied()).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("failed with {status}: {line}")),
        Err(error) => Err(format!("cannot run {line}: {error}")),
    }
}

fn check() -> Result<(), String> {
    run("cargo", &["fmt", "--all", "--check"], &[])?;
    // Two programs are tests only when they are asked for, and then nothing else is.
    for targets in [&["--workspace", "--all-targets"][..], &["--test", "gpu", "--test", "planted_bugs"]] {
        run("cargo", &[&["clippy"], targets, &["--", "--deny", "warnings"]].concat(), &[])?;
    }
    run("cargo", &["doc", "--workspace", "--no-deps"], &[("RUSTDOCFLAGS", "--deny warnings")])
}

/// New random cases until the time is over; a failure is printed with its seed and stops.
fn fuzz(seconds: u64) -> Result<(), String> {
    let (end, cases) = (Instant::now() + Duration::from_secs(seconds), 20_000);
    let mut rounds = 0;
    while Instant::now() < end {
        let environment = [("PROPTEST_CASES", cases.to_string())];
        let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
        run(
            "cargo",
            &["test", "--quiet", "--release", "--package", "da-moe-cli", "--test", "cli", "fuzz"],
            &environment,
        )?;
        run(
            "cargo",
            &["test", "--quiet", "--release", "--package", "da-moe", "--test", "properties", "agreement::any"],
            &environment,
        )?;
        rounds += 1;
    }
    println!("{rounds} rounds of {cases} cases for each property");
    Ok(())
}

fn peers(arguments: &[&str]) -> Result<(), String> {
    run("cargo", &["build", "--release", "--package", "da-moe-cli"], &[])?;
    run("cargo", &["build", "--release", "--package", "da-moe-candle", "--example", "speed"], &[])?;
    run("python3", &[&["benches/peers/torch_moe.py"], arguments].concat(), &[])
}
