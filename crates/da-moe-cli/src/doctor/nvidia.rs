//! NVIDIA driver, GPUs and compiler. Nothing is loaded or executed: a broken driver must not break the doctor.

use serde::Serialize;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// Where loaders look for libraries besides `LD_LIBRARY_PATH`.
const LIBRARY_FOLDERS: [&str; 9] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
    "/usr/local/nvidia/lib64",
    "/usr/local/cuda/compat",
    "/usr/lib/wsl/lib",
];

#[derive(Serialize)]
pub(super) struct Gpu {
    /// The driver's library, if a program can find it.
    libcuda: Option<PathBuf>,
    /// The kernel module's version.
    driver: Option<String>,
    /// Model names.
    pub(super) devices: Vec<String>,
}

impl Gpu {
    pub(super) fn probe() -> Self {
        let search = folders("LD_LIBRARY_PATH").into_iter().chain(LIBRARY_FOLDERS.map(PathBuf::from));
        Self { libcuda: first_file(search, "libcuda.so.1"), driver: driver_version(), devices: devices() }
    }

    pub(super) fn driver_line(&self) -> String {
        match (&self.driver, &self.libcuda) {
            (Some(version), Some(path)) => format!("NVIDIA {version}, {}", path.display()),
            (Some(version), None) => format!("NVIDIA {version}, but libcuda.so.1 is not found"),
            (None, Some(path)) => format!("{}, but the kernel has no NVIDIA module", path.display()),
            (None, None) => "none (libcuda.so.1 is not found)".into(),
        }
    }
}

/// From a line such as `NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb …`.
fn driver_version() -> Option<String> {
    let text = fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let is_version = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    text.lines().next()?.split_whitespace().find(is_version).map(String::from)
}

/// The driver's list of models, or one nameless entry for each device node.
fn devices() -> Vec<String> {
    let cards = fs::read_dir("/proc/driver/nvidia/gpus").into_iter().flatten().flatten();
    let mut names: Vec<String> = cards
        .filter_map(|card| fs::read_to_string(card.path().join("information")).ok())
        .filter_map(|text| Some(text.lines().find_map(|line| line.strip_prefix("Model:"))?.trim().to_string()))
        .collect();
    names.sort();
    if names.is_empty() {
        let nodes = (0..64).map(|index| format!("/dev/nvidia{index}"));
        names = nodes.take_while(|node| Path::new(node).exists()).collect();
    }
    names
}

#[derive(Serialize)]
pub(super) struct Compiler {
    /// nvcc, if it is there: looked for as the library's build does, but for the project's own folder, which a program
    /// does not know.
    nvcc: Option<PathBuf>,
    /// Why there is none.
    reason: Option<String>,
}

impl Compiler {
    pub(super) fn probe() -> Self {
        if let Some(named) = env::var_os("NVCC").filter(|value| !value.is_empty()).map(PathBuf::from) {
            let reason = (!named.is_file()).then(|| format!("NVCC names {}, which is not a file", named.display()));
            return Self { nvcc: reason.is_none().then_some(named), reason };
        }
        let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().flat_map(folders).map(|folder| folder.join("bin"));
        let wheels = folders("VIRTUAL_ENV").into_iter().flat_map(|environment| wheels_of(&environment));
        let usual = [PathBuf::from("/usr/local/cuda/bin")];
        let all = toolkits.chain(folders("PATH")).chain(wheels).chain(usual);
        let found = first_file(all, &format!("nvcc{}", env::consts::EXE_SUFFIX));
        let reason = "nvcc is not in NVCC, CUDA_HOME, CUDA_PATH, PATH, VIRTUAL_ENV or /usr/local/cuda";
        Self { reason: found.is_none().then(|| reason.into()), nvcc: found }
    }

    pub(super) fn line(&self) -> String {
        match (&self.nvcc, &self.reason) {
            (Some(path), _) => path.display().to_string(),
            (None, Some(reason)) => format!("none ({reason})"),
            (None, None) => "none".into(),
        }
    }
}

/// Where the compiler wheels of a Python environment put it.
fn wheels_of(environment: &Path) -> Vec<PathBuf> {
    let versions = fs::read_dir(environment.join("lib")).into_iter().flatten().flatten();
    versions.map(|version| version.path().join("site-packages/nvidia/cu13/bin")).collect()
}

/// The folders of a search-path variable.
fn folders(variable: &str) -> Vec<PathBuf> {
    let value = env::var_os(variable).unwrap_or_default();
    env::split_paths(&value).filter(|folder| !folder.as_os_str().is_empty()).collect()
}

fn first_file(folders: impl IntoIterator<Item = PathBuf>, name: &str) -> Option<PathBuf> {
    folders.into_iter().map(|folder| folder.join(name)).find(|path| path.is_file())
}
