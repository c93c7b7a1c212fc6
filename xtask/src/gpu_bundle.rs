//! One folder for a machine that has a GPU, a driver and nothing else: the properties, the benchmarks, the peers, and `da-moe`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

/// Where it goes.
const FOLDER: &str = "target/gpu-bundle";

/// Files that go along as they are.
const FILES: [(&str, &str); 3] = [
    ("benches/peers/gpu_moe.py", "gpu_moe.py"),
    ("benches/peers/gpu_peers.py", "gpu_peers.py"),
    ("xtask/gpu-bundle/run.sh", "run.sh"),
];

/// Bytes that the folder may have.
const LIMIT: u64 = 24 << 20;

/// Programs, as cargo names what it builds them from, and as they are called there.
const PROGRAMS: [(&str, &str); 2] = [("gpu", "da-moe-gpu"), ("da-moe", "da-moe")];

/// What nvcc is asked for besides: faults are told by their source's lines, which would make the programs twice as large.
const KERNELS: &str = "-lineinfo --compress-mode=size";

/// The newest symbols of the C library that the target is sure to have.
const GLIBC: (u32, u32) = (2, 36);

/// Builds the programs with kernels inside, and puts everything into [`FOLDER`].
pub fn gather() -> Result<(), String> {
    let folder = env::current_dir().map_err(|error| error.to_string())?.join(FOLDER);
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(|error| format!("cannot empty {FOLDER}: {error}"))?;
    }
    fs::create_dir_all(&folder).map_err(|error| format!("cannot make {FOLDER}: {error}"))?;
    let mut newest = (0, 0);
    for (program, name) in build()?.iter().zip(PROGRAMS.map(|(_, name)| name)) {
        let bytes = fs::read(program).map_err(|error| format!("cannot read {}: {error}", program.display()))?;
        newest = newest.max(newest_glibc(&bytes));
        copy(program, &folder.join(name))?;
        crate::run("gzip", &["-9", &format!("{FOLDER}/{name}")], &[])?;
    }
    if newest > GLIBC {
        return Err(format!("the programs need glibc {}.{}, newer than {}.{}", newest.0, newest.1, GLIBC.0, GLIBC.1));
    }
    for (from, to) in FILES {
        copy(Path::new(from), &folder.join(to))?;
    }
    let files = fs::read_dir(&folder).map_err(|error| error.to_string())?.flatten();
    let bytes: u64 = files.filter_map(|file| Some(file.metadata().ok()?.len())).sum();
    if bytes > LIMIT {
        return Err(format!("{FOLDER} has {} MiB, more than {}", bytes >> 20, LIMIT >> 20));
    }
    println!(
        "{FOLDER}: {} MiB, glibc {}.{}; there `./run.sh first`, then `./run.sh again`",
        bytes >> 20,
        newest.0,
        newest.1
    );
    Ok(())
}

/// [`PROGRAMS`], in their order: in one build, so that the kernels are compiled once.
fn build() -> Result<[PathBuf; 2], String> {
    let [test, program] = PROGRAMS.map(|(target, _)| target);
    let flags = [env::var("NVCC_APPEND_FLAGS").unwrap_or_default().as_str(), KERNELS].join(" ");
    let output = Command::new("cargo")
        .args(["build", "--profile", "bundle", "--test", test, "--bin", program])
        .arg("--message-format=json-render-diagnostics")
        .env("DA_MOE_CUDA", "1")
        .env("NVCC_APPEND_FLAGS", flags)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    if !output.status.success() {
        return Err(format!("the programs do not build: {}", output.status));
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let built: Vec<serde_json::Value> = messages.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let named = |name: &str| {
        let of_target = built.iter().filter(|message| message["target"]["name"] == name);
        of_target.filter_map(|message| Some(PathBuf::from(message["executable"].as_str()?))).next_back()
    };
    let found = |name| named(name).ok_or_else(|| format!("cargo named no program `{name}`"));
    Ok([found(test)?, found(program)?])
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    fs::copy(from, to).map(drop).map_err(|error| format!("cannot copy {}: {error}", from.display()))
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

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(newest_glibc(b"..GLIBC_2.9\0GLIBC_2.34\0GLIBC_PRIVATE\0GLIBC_2.4"), (2, 34));
        assert_eq!(newest_glibc(b"static"), (0, 0));
    }
}
