//! Compiles the `.cu` files below `kernels/` into the library where a CUDA compiler is found; elsewhere the library says why it has none.
//!
//! `DA_MOE_CUDA` decides: unset builds kernels if nvcc is found, `1` fails without it (and on warnings, and without the
//! feature `cuda`), `0` leaves them out. An nvcc that is found and fails always fails the build: a library without kernels
//! is then no answer.

#[path = "build/mode.rs"]
mod mode;
#[path = "build/nvcc.rs"]
mod nvcc;
#[path = "build/toolkit.rs"]
mod toolkit;

use mode::Mode;
use nvcc::{ARCHITECTURES, Compiled, Compiler};
use std::collections::BTreeSet;
use std::env;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::exit;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

fn main() {
    if let Err(problem) = run() {
        eprintln!("{problem}");
        exit(1);
    }
}

fn run() -> Result<(), String> {
    for path in ["build.rs", "build", "kernels"] {
        println!("cargo::rerun-if-changed={path}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set; cargo runs this program")?);
    let project = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?);
    let text = match compiler(&project)? {
        Ok(compiler) => {
            let names = kernels(&project)?;
            compile(&compiler, &names, &out)?;
            built(&names, &compiler)
        }
        Err(reason) => not_built(&reason),
    };
    fs::write(out.join("images.rs"), text).map_err(|error| format!("cannot write to {}: {error}", out.display()))
}

/// The compiler, or why there is to be none.
fn compiler(project: &Path) -> Result<Result<Compiler, String>, String> {
    for name in ["DA_MOE_CUDA", "DOCS_RS"].iter().chain(&nvcc::VARIABLES) {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let is_set = |name| env::var_os(name).is_some();
    // What is not text is not one of the values either.
    let asked = env::var_os("DA_MOE_CUDA").unwrap_or_default();
    let mode = Mode::of(&asked.to_string_lossy(), is_set("CARGO_FEATURE_CUDA"), is_set("DOCS_RS"))?;
    if let Mode::Off(reason) = mode {
        return Ok(Err(reason.into()));
    }
    let search = toolkit::find_nvcc(project, |name| env::var_os(name)).inspect_err(|_| watch(&["NVCC"]))?;
    watch(&search.variables);
    let path = match mode.accept(search.nvcc, toolkit::PLACES)? {
        Ok(path) => path,
        Err(reason) => return Ok(Err(reason)),
    };
    println!("cargo::rerun-if-changed={}", path.display());
    // As cargo does for the library itself: in profiles with debug information.
    let line_info = env::var("DEBUG").is_ok_and(|debug| debug != "false");
    Compiler::new(path, project, mode == Mode::Required, line_info).map(Ok)
}

fn watch(variables: &[&str]) {
    for name in variables {
        println!("cargo::rerun-if-env-changed={name}");
    }
}

/// The `.cu` files below `kernels/`, from there and without the extension.
fn kernels(project: &Path) -> Result<Vec<String>, String> {
    let root = project.join("kernels");
    let (mut names, mut folders) = (Vec::new(), vec![root.clone()]);
    while let Some(folder) = folders.pop() {
        let entries = folder.read_dir().map_err(|error| format!("cannot read {}: {error}", folder.display()))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "cu") {
                let name =
                    path.strip_prefix(&root).ok().and_then(|path| path.with_extension("").to_str().map(String::from));
                names.extend(name.map(|name| name.replace('\\', "/")));
            }
        }
    }
    names.sort();
    if names.is_empty() { Err(format!("{} has no kernels", root.display())) } else { Ok(names) }
}

/// All files, as many at a time as cargo allows.
fn compile(compiler: &Compiler, names: &[String], out: &Path) -> Result<(), String> {
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok());
    let jobs: usize = jobs.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, names.len()) {
            scope.spawn(|| {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = compiler.compile(name, out);
                    results.lock().unwrap_or_else(PoisonError::into_inner).push(result);
                }
            });
        }
    });
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    let (good, bad): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    let problems: Vec<String> = bad.into_iter().filter_map(Result::err).collect();
    if !problems.is_empty() {
        return Err(problems.join("\n"));
    }
    let compiled: Vec<Compiled> = good.into_iter().flatten().collect();
    for file in compiled.iter().flat_map(|compiled| &compiled.read).collect::<BTreeSet<_>>() {
        println!("cargo::rerun-if-changed={}", file.display());
    }
    for warning in compiled.iter().flat_map(|compiled| &compiled.warnings) {
        println!("cargo::warning={warning}");
    }
    Ok(())
}

/// What `src/cuda/device/images.rs` includes.
fn built(names: &[String], compiler: &Compiler) -> String {
    let mut text = String::from("static IMAGES: Option<&[Image]> = Some(&[\n");
    for name in names {
        let architecture = if nvcc::is_for_hopper(name) { "Hopper" } else { "Portable" };
        writeln!(text, "    image!({:?}, {architecture}),", nvcc::stem(name)).expect("a string takes every line");
    }
    let compiler = format!("nvcc {}", compiler.version);
    text + &format!(
        "]);\nstatic REPORT: BuildReport =\n    \
         BuildReport::Built {{ architectures: &{ARCHITECTURES:?}, compiler: {compiler:?} }};\n"
    )
}

fn not_built(reason: &str) -> String {
    format!(
        "static IMAGES: Option<&[Image]> = None;\n\
         static REPORT: BuildReport = BuildReport::NotBuilt {{ reason: {reason:?} }};\n"
    )
}
