//! The machine code of the kernels in this program, and the program that reads it.
//!
//! Without compiled kernels, or without `cuobjdump` to read them, one line on standard error says that nothing was
//! checked; with `DA_MOE_CUDA=1` that is a failure.

// The tests look for `cuobjdump` where the build script looks for nvcc.
#[allow(dead_code, reason = "the build script uses the rest")]
#[path = "../../build/toolkit.rs"]
mod toolkit;

use da_moe::cuda::{BuildReport, Image, build_report, kernels};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::{env, fs};

fn is_required() -> bool {
    env::var("DA_MOE_CUDA").is_ok_and(|mode| mode == "1")
}

/// Says that nothing was checked, past the test runner, which keeps what passing tests print to itself.
fn skip(why: &str) {
    assert!(!is_required(), "DA_MOE_CUDA=1, but {why}");
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        writeln!(io::stderr(), "compiled kernels are not checked: {why}").expect("a line on standard error");
    });
}

/// What nvcc made of the kernels, if it was there.
pub fn images() -> Option<&'static [Image]> {
    if let BuildReport::NotBuilt { reason } = build_report() {
        skip(&format!("there are none: {reason}"));
    }
    kernels()
}

/// Images with the program that reads them.
pub fn readable_images() -> Option<(&'static [Image], PathBuf)> {
    let images = images()?;
    let project = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let nvcc = toolkit::find_nvcc(project, |name| env::var_os(name)).ok().and_then(|search| search.nvcc);
    let beside = nvcc.as_deref().and_then(Path::parent).map(PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = beside.into_iter().chain([toolkit::project_tools(project)]).chain(env::split_paths(&path));
    let found = toolkit::program("cuobjdump", folders);
    if found.is_none() {
        skip("there is no cuobjdump beside nvcc, in target/cuda-toolkit or on PATH");
    }
    Some((images, found?))
}

/// What cuobjdump prints about an image.
pub fn cuobjdump(program: &Path, option: &str, image: &Image) -> String {
    let file = Path::new(concat!(env!("DA_MOE_TARGET"), "/tmp")).join(format!("{}{option}.fatbin", image.name));
    fs::write(&file, image.fatbin).expect("a written file");
    let folder = program.parent().expect("a folder with programs").to_path_buf();
    // It runs nvdisasm, which is installed beside it.
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths([folder].into_iter().chain(env::split_paths(&path))).expect("a search path");
    let output = Command::new(program).arg(option).arg(&file).env("PATH", path).output().expect("cuobjdump");
    assert!(output.status.success(), "{}: {}", image.name, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}
