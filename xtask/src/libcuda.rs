//! A driver for machines without a GPU, in a folder.

use da_moe_emulator::Compiler;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the tests keep compiled kernels too.
const CACHE: &str = "target/tmp/kernels";

/// Compiles every kernel for the emulator, and writes the library that runs them.
pub fn write(folder: &str) -> Result<(), String> {
    let files = fs::read_dir("kernels").map_err(|error| format!("cannot read kernels: {error}"))?;
    let mut kernels: Vec<PathBuf> = files.flatten().map(|file| file.path()).collect();
    kernels.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    kernels.sort();
    let compiler = Compiler::new(CACHE).include(Path::new("kernels"));
    let compiler = kernels.into_iter().fold(compiler, Compiler::file);
    let library = compiler.libcuda().and_then(|library| library.place(folder)).map_err(|error| error.to_string())?;
    println!("{}: a libcuda.so.1; use it with `. {folder}/env.sh`", library.folder().display());
    Ok(())
}
