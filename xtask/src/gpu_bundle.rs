//! One folder for a machine that has a GPU, a driver and nothing else: the properties, the benchmarks, and the peers.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

/// Where it goes.
const FOLDER: &str = "target/gpu-bundle";

/// Files that go along as they are.
const FILES: [(&str, &str); 2] = [("benches/peers/gpu_moe.py", "gpu_moe.py"), ("xtask/gpu-bundle/run.sh", "run.sh")];

/// Bytes that the folder may have.
const LIMIT: u64 = 40 << 20;

/// The newest symbols of the C library that the target is sure to have.
const GLIBC: (u32, u32) = (2, 36);

/// Builds the program with kernels inside, and puts everything into [`FOLDER`].
pub fn gather() -> Result<(), String> {
    let folder = env::current_dir().map_err(|error| error.to_string())?.join(FOLDER);
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(|error| format!("cannot empty {FOLDER}: {error}"))?;
    }
    fs::create_dir_all(&folder).map_err(|error| format!("cannot make {FOLDER}: {error}"))?;
    let program = folder.join("da-moe-gpu");
    copy(&build()?, &program)?;
    strip(&program)?;
    let newest = newest_glibc(&fs::read(&program).map_err(|error| format!("cannot read the program: {error}"))?);
    if newest > GLIBC {
        return Err(format!("the program needs glibc {}.{}, newer than {}.{}", newest.0, newest.1, GLIBC.0, GLIBC.1));
    }
    for (from, to) in FILES {
        copy(Path::new(from), &folder.join(to))?;
    }
    let files = fs::read_dir(&folder).map_err(|error| error.to_string())?.flatten();
    let bytes: u64 = files.filter_map(|file| Some(file.metadata().ok()?.len())).sum();
    if bytes > LIMIT {
        return Err(format!("{FOLDER} has {} MiB, more than {}", bytes >> 20, LIMIT >> 20));
    }
    println!("{FOLDER}: {} MiB, glibc {}.{}; ./run.sh there does everything", bytes >> 20, newest.0, newest.1);
    Ok(())
}

/// The test program of all properties and benchmarks.
fn build() -> Result<PathBuf, String> {
    let output = Command::new("cargo")
        .args(["test", "--no-run", "--release", "--package", "da-moe", "--features", "gpu-bundle", "--test", "gpu"])
        .arg("--message-format=json-render-diagnostics")
        .env("DA_MOE_CUDA", "1")
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    if !output.status.success() {
        return Err(format!("the program does not build: {}", output.status));
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let mut programs = messages.lines().filter_map(|message| {
        let message: serde_json::Value = serde_json::from_str(message).ok()?;
        Some(PathBuf::from(message.get("executable")?.as_str()?))
    });
    programs.next_back().ok_or_else(|| "cargo named no program".into())
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    fs::copy(from, to).map(drop).map_err(|error| format!("cannot copy {}: {error}", from.display()))
}

/// Without symbols it is a third smaller. Where there is no `strip`, it stays as it is.
fn strip(program: &Path) -> Result<(), String> {
    match Command::new("strip").arg(program).status() {
        Ok(status) if !status.success() => Err(format!("strip failed with {status}")),
        _ => Ok(()),
    }
}

/// The newest version among the names `GLIBC_2.…` of a program.
fn newest_glibc(program: &[u8]) -> (u32, u32) {
    let name = b"GLIBC_";
    let versions =
        program.windows(name.len()).enumerate().filter(|(_, window)| window == name).filter_map(|(at, _)| {
            let rest = &program[at + name.len()..];
            let text: String =
                rest.iter().map(|&b| char::from(b)).take_while(|c| c.is_ascii_digit() || *c == '.').collect();
            let mut numbers = text.split('.').map_while(|number| number.parse().ok());
            Some((numbers.next()?, numbers.next()?))
        });
    versions.max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = include_str!("../gpu-bundle/run.sh");

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(newest_glibc(b"..GLIBC_2.9\0GLIBC_2.34\0GLIBC_PRIVATE\0GLIBC_2.4"), (2, 34));
        assert_eq!(newest_glibc(b"static"), (0, 0));
    }

    /// The seconds that a word is followed by: `timeout 30 ...`, or `part NAME 45 ...` in as many rounds as there are.
    fn limits(script: &str) -> u64 {
        let mut rounds = 1;
        let mut total = 0;
        for line in script.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            if let Some(tools) = line.strip_prefix("for tool in ").and_then(|rest| rest.split_once(';')) {
                rounds = tools.0.split_whitespace().count() as u64;
            } else if line == "done" {
                rounds = 1;
            } else if let Some(rest) = line.strip_prefix("timeout ").or(line.strip_prefix("part ")) {
                let seconds = rest.split_whitespace().take(2).find_map(|word| word.parse::<u64>().ok());
                total += rounds * seconds.unwrap_or_default();
            }
        }
        total
    }

    #[test]
    fn everything_together_ends_within_ten_minutes() {
        let seconds = limits(SCRIPT);
        assert!((500..=600).contains(&seconds), "{seconds} s");
    }

    /// A bundle with a program that answers `probe` as told and fails where its name is `failing`; what `run.sh` says then,
    /// and its exit code.
    fn run(folder: &str, probe: &str, failing: &str, arguments: &[&str]) -> (String, Option<i32>) {
        let folder = env::temp_dir().join(format!("da-moe-bundle-{}-{folder}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("run.sh"), SCRIPT).unwrap();
        let program = format!(
            "#!/bin/sh\ncase \"$*\" in *probe*) echo 'test probe ... {probe}' ;; *{failing}*) echo 'marin FAILED: it does not' ; \
             exit 101 ;; *bench*) echo 'marin 1 TFLOP/s' ;; esac\n"
        );
        fs::write(folder.join("da-moe-gpu"), program).unwrap();
        fs::write(folder.join("gpu_moe.py"), "print('peers: skipped, PyTorch is not installed')").unwrap();
        let executable = Command::new("chmod").arg("+x").arg(folder.join("da-moe-gpu")).status().unwrap();
        assert!(executable.success());
        let output = Command::new("sh").arg(folder.join("run.sh")).args(arguments).env_remove("OUT").output().unwrap();
        fs::remove_dir_all(&folder).unwrap();
        let text = [output.stdout, output.stderr].concat();
        (String::from_utf8_lossy(&text).into_owned(), output.status.code())
    }

    #[test]
    fn without_a_gpu_it_says_so_and_ends() {
        let (text, code) = run("none", "probe: none no GPU: there is no driver", "nothing", &[]);
        assert_eq!((text.as_str(), code), ("no GPU: there is no driver\nnothing was run\n", Some(0)));
        let (text, code) = run("broken", "probe: broken cuInit: unknown error", "nothing", &[]);
        assert_eq!(text, "the GPU cannot be used: cuInit: unknown error\nnothing was run\n");
        assert_eq!(code, Some(1));
        let (text, code) = run("absent", "GLIBC_9.9 not found", "nothing", &[]);
        assert!(text.contains("GLIBC_9.9 not found") && code == Some(1), "{text}");
    }

    #[test]
    fn only_what_there_is_can_be_asked_for() {
        for arguments in [&["--only", "test"][..], &["--only"], &["bench"]] {
            let (text, code) = run("usage", "probe: found a GPU", "nothing", arguments);
            assert!(text.contains("--only tests|conformance|sanitizer|bench|peers") && code == Some(2), "{text}");
        }
        let (text, code) = run("only", "probe: found a GPU", "nothing", &["--only", "bench"]);
        assert!(text.contains("a GPU") && text.contains("bench") && text.contains("1 TFLOP/s"), "{text}");
        assert!(!text.contains("tests") && !text.contains("peers") && code == Some(0), "{text}");
    }

    #[test]
    fn what_fails_is_in_the_table_and_in_the_exit_code() {
        for failing in ["quiet", "conformance", "bench"] {
            let (text, code) = run(failing, "probe: found a GPU", failing, &[]);
            assert!(text.contains("FAILED in") && code == Some(1), "{failing}: {text}");
            assert_eq!(text.contains("marin FAILED: it does not"), failing == "bench", "{text}");
        }
        let (text, code) = run("passing", "probe: found a GPU", "nothing", &[]);
        assert!(!text.contains("FAILED") && text.contains("skipped") && code == Some(0), "{text}");
    }
}
