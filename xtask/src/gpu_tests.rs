//! Test programs with the kernels inside, to be carried to a machine that has a GPU, a driver and nothing else.

use std::path::Path;
use std::process::{Command, Stdio};
use std::{env, fs};

/// Where they go.
const FOLDER: &str = "target/gpu-tests";

/// Test programs whose properties hold of every backend. The others are about the CPU, the emulator or refusals.
const PROGRAMS: [&str; 9] =
    ["agreement", "backward_kernels", "conformance", "edges", "kernels", "nonfinite", "plan", "determinism", "state"];

/// Runs every program beside it; the last line says whether all passed.
const SCRIPT: &str = r#"#!/bin/sh
# The property tests on this machine's GPU. The emulator is left out: it needs a C++ compiler and the kernels' sources.
cd "$(dirname "$0")" || exit 1
export DA_MOE_EMULATOR=0
failed=""
for program in PROGRAMS; do
    ./"$program" --quiet || failed="$failed $program"
done
if [ -n "$failed" ]; then
    echo "failed:$failed"
    exit 1
fi
echo "all passed"
"#;

/// Builds the programs with kernels and copies them to [`FOLDER`] with a script that runs them.
pub fn gather() -> Result<(), String> {
    let names = PROGRAMS.iter().flat_map(|name| ["--test", name]);
    let output = Command::new("cargo")
        .args(["test", "--no-run", "--release", "--package", "da-moe", "--message-format=json-render-diagnostics"])
        .args(names)
        .env("DA_MOE_CUDA", "1")
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    if !output.status.success() {
        return Err(format!("the tests do not build: {}", output.status));
    }
    let folder = env::current_dir().map_err(|error| error.to_string())?.join(FOLDER);
    fs::create_dir_all(&folder).map_err(|error| format!("cannot make {FOLDER}: {error}"))?;
    let messages = String::from_utf8_lossy(&output.stdout);
    for (name, program) in messages.lines().filter_map(program) {
        let target = folder.join(&name);
        fs::copy(&program, &target).map_err(|error| format!("cannot copy {program}: {error}"))?;
    }
    write_script(&folder)?;
    println!("{FOLDER}/run.sh runs {} programs", PROGRAMS.len());
    Ok(())
}

/// Name and path of a test program in one of cargo's messages.
fn program(message: &str) -> Option<(String, String)> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    let path = message.get("executable")?.as_str()?;
    Some((message.get("target")?.get("name")?.as_str()?.into(), path.into()))
}

fn write_script(folder: &Path) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt;
    let script = folder.join("run.sh");
    let written = fs::write(&script, SCRIPT.replace("PROGRAMS", &PROGRAMS.join(" ")))
        .and_then(|()| fs::set_permissions(&script, fs::Permissions::from_mode(0o755)));
    written.map_err(|error| format!("cannot write {}: {error}", script.display()))
}
