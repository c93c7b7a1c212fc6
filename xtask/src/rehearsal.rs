//! The bundle's two calls on a machine without a GPU: its `run.sh` as it is, with the tests' own programs on the driver of the
//! emulator. Then with faults: a kernel that fails, and one that never ends.

use crate::{gpu_bundle, libcuda};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

const FOLDER: &str = "target/rehearsal";

/// What comes back from a machine that is lent.
const FILES: usize = 6;
const CHARACTERS: usize = 12_000;

pub fn run() -> Result<(), String> {
    let folder = env::current_dir().map_err(|error| error.to_string())?.join(FOLDER);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).map_err(|error| format!("cannot make {FOLDER}: {error}"))?;
    for (from, to) in gpu_bundle::FILES {
        fs::copy(from, folder.join(to)).map_err(|error| format!("cannot copy {from}: {error}"))?;
    }
    // As the tests are built, so that most of it is.
    for (built, (_, name)) in gpu_bundle::build("dev", &[])?.iter().zip(gpu_bundle::PROGRAMS) {
        std::os::unix::fs::symlink(built, folder.join(name)).map_err(|error| format!("cannot link {name}: {error}"))?;
    }
    let driver = folder.join("driver");
    libcuda::write(&driver.display().to_string())?;
    let stage = Stage { folder, driver };

    let first = stage.call(&["first", "REST=properties::accumulation refusals::device"], 200, &[])?;
    let groups = ["properties::accumulation", "refusals::device"];
    for part in ["probe", "conformance", "smoke", "demo", "graphs", "bench-tiny", "bench"].iter().chain(&groups) {
        first.expect(part, "passed")?;
    }
    first.expect_code(0)?;

    // Whoever starts this kernel fails; every launch is waited for there, so that it is told by name.
    let fault = [("EMULATED_CUDA_FAIL_KERNEL", "permute_scatter"), ("EMULATED_CUDA_FAULT", "700")];
    let again = stage.call(&["again", "F=properties::engine::tensors_on smoke::order", "REST="], 45, &fault)?;
    again.expect("alone properties::engine::tensors_on", "FAILED with 101")?;
    again.expect_text("illegal memory access")?;
    again.expect_text("`permute_scatter` with grid")?;
    again.expect("alone smoke::order", "passed")?;
    again.expect("memcheck smoke::order", "skipped, compute-sanitizer is not installed")?;
    again.expect_code(1)?;

    // Nothing that waits after this launch returns: the part is ended, and so is the next.
    let hang = [("EMULATED_CUDA_HANG_LAUNCH", "20")];
    let again = stage.call(&["again", "F=properties::engine::tensors_on", "REST="], 20, &hang)?;
    again.expect("alone properties::engine::tensors_on", "FAILED, out of time after ")?;
    again.expect("bench-tiny", "FAILED, out of time")?;
    again.expect_code(1)
}

struct Stage {
    folder: PathBuf,
    driver: PathBuf,
}

/// What a call printed, and how it ended.
struct Ended {
    what: String,
    text: String,
    code: Option<i32>,
}

impl Stage {
    /// `run.sh` with so many seconds; fails when it takes longer, or leaves or says too much.
    fn call(&self, arguments: &[&str], seconds: u64, variables: &[(&str, &str)]) -> Result<Ended, String> {
        let what = format!("run.sh {} with {variables:?}", arguments.join(" "));
        let (out, start) = (self.folder.join("out"), std::time::Instant::now());
        let _ = fs::remove_dir_all(&out);
        let output = Command::new("sh")
            .arg(self.folder.join("run.sh"))
            .args(arguments)
            .envs(variables.iter().copied())
            .envs([("DA_MOE_BENCH", "tiny"), ("DA_MOE_CASES", "3"), ("DA_MOE_SECONDS", &seconds.to_string())])
            .env("LD_LIBRARY_PATH", &self.driver)
            .env("OUT", &out)
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| format!("cannot run sh: {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        println!("{what}: {:.0} s\n{text}", start.elapsed().as_secs_f64());
        let files = files(&out).len();
        // Five seconds until what does not end is ended, and some for the script itself.
        let took_too_long = start.elapsed().as_secs() > seconds + 10;
        if took_too_long || files > FILES || text.len() > CHARACTERS {
            let took = start.elapsed().as_secs();
            return Err(format!("{what}: {took} s of {seconds}, {files} files, {} characters", text.len()));
        }
        Ok(Ended { what, text, code: output.status.code() })
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|file| file.path()).collect()
}

impl Ended {
    fn expect(&self, part: &str, outcome: &str) -> Result<(), String> {
        let mut rows =
            self.text.lines().filter_map(|line| line.split_once("s] ")?.1.strip_prefix(part)?.strip_prefix(' '));
        match rows.any(|row| row.contains(outcome)) {
            true => Ok(()),
            false => Err(format!("{}: `{part}` is not `{outcome}`", self.what)),
        }
    }

    fn expect_text(&self, text: &str) -> Result<(), String> {
        if self.text.contains(text) { Ok(()) } else { Err(format!("{}: says nothing of {text}", self.what)) }
    }

    fn expect_code(&self, code: i32) -> Result<(), String> {
        if self.code == Some(code) {
            return Ok(());
        }
        Err(format!("{}: ended with {:?}, not {code}", self.what, self.code))
    }
}
