//! NVIDIA's driver library for machines without a GPU: its functions and its rules, with kernels run by the emulator.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::cache;

/// What the loader, and so every program, looks for.
pub(crate) const NAME: &str = "libcuda.so.1";

/// The driver, compiled as one file.
pub(crate) const SOURCES: &[(&str, &str)] = &[
    ("cubin.h", include_str!("../libcuda/cubin.h")),
    ("driver.h", include_str!("../libcuda/driver.h")),
    ("emulator.h", include_str!("../libcuda/emulator.h")),
    ("results.h", include_str!("../libcuda/results.h")),
    ("settings.h", include_str!("../libcuda/settings.h")),
    ("cubin.cpp", include_str!("../libcuda/cubin.cpp")),
    ("device.cpp", include_str!("../libcuda/device.cpp")),
    ("driver.cpp", include_str!("../libcuda/driver.cpp")),
    ("graph.cpp", include_str!("../libcuda/graph.cpp")),
    ("launch.cpp", include_str!("../libcuda/launch.cpp")),
    ("memory.cpp", include_str!("../libcuda/memory.cpp")),
    ("module.cpp", include_str!("../libcuda/module.cpp")),
    ("recording.cpp", include_str!("../libcuda/recording.cpp")),
    ("results.cpp", include_str!("../libcuda/results.cpp")),
    ("settings.cpp", include_str!("../libcuda/settings.cpp")),
    ("stream.cpp", include_str!("../libcuda/stream.cpp")),
    ("tensor_map.cpp", include_str!("../libcuda/tensor_map.cpp")),
];

/// A folder with a `libcuda.so.1` whose kernels the emulator runs, made by [`Compiler::libcuda`](crate::Compiler::libcuda).
///
/// A program finds it if it is started with the folder in `LD_LIBRARY_PATH`, which the loader reads once, at the start. What
/// the library plays and what is to go wrong is said by variables that README.md lists.
#[derive(Clone, Debug)]
pub struct Libcuda {
    folder: PathBuf,
}

impl Libcuda {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The folder, for `LD_LIBRARY_PATH`.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Name and value of the variable under which a program finds the library, before any other of that name.
    pub fn environment(&self) -> (&'static str, OsString) {
        const PATH: &str = "LD_LIBRARY_PATH";
        let mut value = self.folder.clone().into_os_string();
        if let Some(others) = std::env::var_os(PATH).filter(|others| !others.is_empty()) {
            value.push(":");
            value.push(others);
        }
        (PATH, value)
    }

    /// Copies the library to another folder, with an `env.sh` for shells, which says where it is.
    pub fn copy_to(&self, folder: impl AsRef<Path>) -> Result<Self, Error> {
        let folder = crate::sources::absolute(folder.as_ref())?;
        cache::create_directory(&folder)?;
        let (from, to) = (self.folder.join(NAME), folder.join(NAME));
        fs::copy(from, &to).map_err(|source| Error::File { path: to, source })?;
        let quoted = folder.display().to_string().replace('\'', "'\\''");
        let line = format!("export LD_LIBRARY_PATH='{quoted}'${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}\n");
        cache::write(&folder.join("env.sh"), &line)?;
        Ok(Self { folder })
    }
}

/// What the program has asked of the library so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counts {
    /// Kernels that ran, those of graphs included.
    pub launches: u64,
    /// Waits for a stream, an event or the context, and copies that wait.
    pub waits: u64,
    /// Those among them that wait for the whole context.
    pub context_waits: u64,
    /// Allocations.
    pub allocations: u64,
    /// Allocations given back.
    pub frees: u64,
    /// Copies started or recorded.
    pub copies: u64,
    /// Fills started or recorded.
    pub fills: u64,
    /// Graphs started.
    pub replays: u64,
}

impl Counts {
    /// What this process has asked; `None` where its `libcuda.so.1` is not the emulator's, or there is none.
    pub fn of_this_process() -> Option<Self> {
        // SAFETY: a driver's library is made to be loaded like this; in general it is loaded already.
        let library = unsafe { libloading::Library::new(NAME) }.ok()?;
        let mut counts = Self::default();
        // SAFETY: driver.cpp defines the function so, and no other library has one of this name; the struct is the same there.
        unsafe {
            let ask: libloading::Symbol<'_, unsafe extern "C" fn(*mut Self)> =
                library.get("emulated_cuda_counts").ok()?;
            ask(&mut counts);
        }
        Some(counts)
    }
}
