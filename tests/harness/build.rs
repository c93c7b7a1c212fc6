//! Tells the harness where test programs may write, as cargo tells test programs themselves.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // target/PROFILE/build/PACKAGE/out
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo says where"));
    let target = out.ancestors().nth(4).expect("a folder of builds");
    println!("cargo::rustc-env=DA_MOE_TARGET={}", target.display());
}
