//! `src/cuda/abi.rs`: the kernels' parameter structs in Rust. bindgen lives in a package of its own, so that no other
//! chore has to compile it.

use crate::{run, wheels};

pub(crate) fn write() -> Result<(), String> {
    generate(&[])
}

pub(crate) fn check() -> Result<(), String> {
    generate(&["--check"])
}

fn generate(arguments: &[&str]) -> Result<(), String> {
    let libclang = wheels::install_libclang()?;
    let environment = [("LIBCLANG_PATH", &*libclang.to_string_lossy())];
    run("cargo", &[&["run", "--quiet", "--package", "xtask-abi", "--"], arguments].concat(), &environment)
}
