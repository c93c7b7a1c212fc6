//! Tools that Rust's own do not bring, from Python wheels of exact versions: installed below `target/`, never elsewhere.

use crate::run;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// nvcc with everything it calls. Versions belong together: a later nvvm writes PTX that this ptxas refuses. The two
/// programs that read machine code exist as wheels only from 13.2 on, and read older code.
const COMPILER: [&str; 7] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
    "nvidia-cuda-cuobjdump==13.2.51",
    "nvidia-cuda-nvdisasm==13.2.51",
];

const LIBCLANG: [&str; 1] = ["libclang==18.1.1"];

/// The compiler for `kernels/`, where the build script looks for it.
pub(crate) fn install_compiler() -> Result<(), String> {
    let (folder, new) = install("cuda-toolkit", &COMPILER)?;
    let nvcc = folder.join("nvidia/cu13/bin/nvcc");
    if new {
        // A build without kernels is up to date for cargo, which cannot watch a file that is not there.
        let script = project().join("build.rs");
        let touched = fs::File::options().append(true).open(&script);
        touched.and_then(|file| file.set_modified(SystemTime::now())).map_err(|error| problem(&script, &error))?;
        run(&nvcc.to_string_lossy(), &["--version"], &[])?;
    }
    println!("{}", nvcc.display());
    Ok(())
}

/// The folder of libclang's shared library.
pub(crate) fn install_libclang() -> Result<PathBuf, String> {
    Ok(install("libclang", &LIBCLANG)?.0.join("clang/native"))
}

/// The workspace's folder; cargo says where this package is.
pub(crate) fn project() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(PathBuf::new, |package| PathBuf::from(package).join(".."))
}

/// Packages in a folder below `target/`, and whether they had to be installed. Put together in another folder first, so
/// that an interrupted installation is not taken for a finished one.
fn install(name: &str, packages: &[&str]) -> Result<(PathBuf, bool), String> {
    let target = project().join("target");
    fs::create_dir_all(&target).map_err(|error| problem(&target, &error))?;
    let target = target.canonicalize().map_err(|error| problem(&target, &error))?;
    let (folder, partial) = (target.join(name), target.join(format!("{name}.partial")));
    let pins = packages.join("\n") + "\n";
    if fs::read_to_string(folder.join("pins.txt")).is_ok_and(|installed| installed == pins) {
        return Ok((folder, false));
    }
    for old in [&partial, &folder] {
        if old.exists() {
            fs::remove_dir_all(old).map_err(|error| problem(old, &error))?;
        }
    }
    let quiet = ["--quiet", "--disable-pip-version-check", "--root-user-action", "ignore"];
    let exactly = ["--no-deps", "--no-compile", "--only-binary", ":all:", "--target"];
    let into = partial.to_string_lossy();
    let arguments = [&["-m", "pip", "install"], &quiet[..], &exactly, &[&into], packages].concat();
    run("python3", &arguments, &[])?;
    fs::write(partial.join("pins.txt"), pins).map_err(|error| problem(&partial, &error))?;
    fs::rename(&partial, &folder).map_err(|error| problem(&folder, &error))?;
    Ok((folder, true))
}

fn problem(path: &Path, error: &std::io::Error) -> String {
    format!("{}: {error}", path.display())
}
