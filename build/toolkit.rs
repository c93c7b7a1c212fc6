//! Where the programs of a CUDA toolkit are: the build script looks for `nvcc`, the tests of its output for `cuobjdump`.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// What looking for `nvcc` came to.
pub struct Search {
    /// The compiler, with links resolved.
    pub nvcc: Option<PathBuf>,
    /// The variables that the answer depends on: those behind the place where it was found do not matter.
    pub variables: Vec<&'static str>,
}

/// All the places of [`find_nvcc`], for messages.
pub const PLACES: &str = "NVCC, CUDA_HOME, CUDA_PATH, PATH, VIRTUAL_ENV, target/cuda-toolkit or /usr/local/cuda";

/// Looks for `nvcc` in [`PLACES`], in that order; `variable` reads the environment.
///
/// # Errors
/// When `NVCC` names something that is not a file: a compiler that was asked for by name is not replaced by another.
pub fn find_nvcc(project: &Path, variable: impl Fn(&str) -> Option<OsString>) -> Result<Search, String> {
    let mut variables = vec!["NVCC"];
    let value = |name| variable(name).filter(|value| !value.is_empty());
    if let Some(named) = value("NVCC").map(PathBuf::from) {
        return match named.is_file() {
            true => Ok(Search { nvcc: Some(resolve(named)), variables }),
            false => Err(format!("NVCC names {}, which is not a file", named.display())),
        };
    }
    for (name, folders) in [
        ("CUDA_HOME", bin_below as fn(OsString) -> Vec<PathBuf>),
        ("CUDA_PATH", bin_below),
        ("PATH", |path| env::split_paths(&path).collect()),
        ("VIRTUAL_ENV", |environment| wheels_of(Path::new(&environment))),
    ] {
        variables.push(name);
        let found = value(name).and_then(|value| program("nvcc", folders(value)));
        if found.is_some() {
            return Ok(Search { nvcc: found, variables });
        }
    }
    let nvcc = program("nvcc", [project_tools(project), PathBuf::from("/usr/local/cuda/bin")]);
    Ok(Search { nvcc, variables })
}

/// Where `cargo xtask cuda` puts the programs of a toolkit: always below the project, whatever `CARGO_TARGET_DIR` says,
/// so that one installation serves every build.
pub fn project_tools(project: &Path) -> PathBuf {
    project.join("target/cuda-toolkit/nvidia/cu13/bin")
}

/// A program in the first folder that has it.
pub fn program(name: &str, folders: impl IntoIterator<Item = PathBuf>) -> Option<PathBuf> {
    let name = format!("{name}{}", env::consts::EXE_SUFFIX);
    folders.into_iter().map(|folder| folder.join(&name)).find(|path| path.is_file()).map(resolve)
}

fn bin_below(toolkit: OsString) -> Vec<PathBuf> {
    vec![Path::new(&toolkit).join("bin")]
}

/// The folders of the compiler wheels in a Python environment.
fn wheels_of(environment: &Path) -> Vec<PathBuf> {
    let versions = environment.join("lib").read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
    let is_python = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python"));
    versions.filter(is_python).map(|version| version.join("site-packages/nvidia/cu13/bin")).collect()
}

/// Without links, because nvcc finds the rest of its toolkit beside itself; but a link to a wrapper such as ccache,
/// which goes by the name it is called with, stays.
fn resolve(path: PathBuf) -> PathBuf {
    match path.canonicalize() {
        Ok(target) if target.file_name() == path.file_name() => target,
        _ => path,
    }
}
