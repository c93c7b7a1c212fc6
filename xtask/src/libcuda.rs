//! A driver for machines without a GPU, in a folder.

use da_moe_emulator::Compiler;

/// Where the tests keep compiled kernels too.
const CACHE: &str = "target/tmp/kernels";

/// Compiles every kernel for the emulator, and writes the library that runs them.
pub fn write(folder: &str) -> Result<(), String> {
    let compiler = Compiler::new(CACHE).include("kernels").folder("kernels");
    let library = compiler.libcuda().and_then(|library| library.copy_to(folder)).map_err(|error| error.to_string())?;
    println!("{}: a libcuda.so.1; use it with `. {folder}/env.sh`", library.folder().display());
    Ok(())
}
