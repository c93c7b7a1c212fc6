//! Writes `src/cuda/abi.rs` from `kernels/abi.h` and the headers of the stages that it includes, or with `--check` fails when it is not what would be written.
//! `cargo xtask abi` runs this with libclang where bindgen finds it.

mod edit;

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::{env, fs};

const HEADER: &str = "kernels/abi.h";
const BINDINGS: &str = "src/cuda/abi.rs";

/// The first lines of the bindings.
const PREAMBLE: &str = "\
//! Parameters of every kernel, as the kernels read them.
//!
//! Generated from `kernels/abi.h` and `kernels/abi/` by `cargo xtask abi`; changes are made there.

use super::layout::{Field, Layout};
use core::mem::offset_of;
";

fn main() -> ExitCode {
    let check = env::args().nth(1).is_some_and(|argument| argument == "--check");
    match run(check) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

fn run(check: bool) -> Result<(), Box<dyn Error>> {
    let package = env::var_os("CARGO_MANIFEST_DIR").ok_or("cargo runs this program")?;
    env::set_current_dir(Path::new(&package).join("../.."))?;
    let text = formatted(&format!("{PREAMBLE}\n{}", edit::edited(&bindings()?)?))?;
    let present = fs::read_to_string(BINDINGS).unwrap_or_default();
    if present == text {
        println!("{BINDINGS} is what {HEADER} says");
    } else if check {
        return Err(format!("{BINDINGS} is not what {HEADER} says; run `cargo xtask abi`").into());
    } else {
        fs::write(BINDINGS, text)?;
        println!("{BINDINGS} is written");
    }
    Ok(())
}

/// What bindgen makes of the header, parsed as C.
fn bindings() -> Result<String, Box<dyn Error>> {
    let bindings = bindgen::Builder::default()
        // Included, because `#pragma once` is worth a warning in a main file.
        .header_contents("main.h", &format!("#include \"{HEADER}\"\n"))
        .clang_args(["-x", "c", "-std=c11", "-I."])
        // libclang comes without the compiler's own headers, such as <stddef.h>.
        .clang_arg(format!("-I{}", compiler_headers()?))
        .allowlist_file(r"(.*/)?kernels/abi(/[a-z]+)?\.h")
        .use_core()
        .prepend_enum_name(false)
        .layout_tests(false)
        .disable_header_comment()
        .formatter(bindgen::Formatter::None)
        .generate()?;
    Ok(bindings.to_string())
}

fn compiler_headers() -> Result<String, Box<dyn Error>> {
    let output = Command::new("gcc").arg("-print-file-name=include").output();
    let output = output.map_err(|error| format!("gcc is needed for its headers, and does not run: {error}"))?;
    Ok(String::from_utf8(output.stdout)?.trim().to_string())
}

/// As `cargo fmt` leaves it.
fn formatted(text: &str) -> Result<String, Box<dyn Error>> {
    let mut rustfmt = Command::new("rustfmt")
        .args(["--edition", "2024", "--emit", "stdout", "--quiet"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    // rustfmt reads everything before it writes, so this cannot block; dropping the pipe ends its input.
    rustfmt.stdin.take().ok_or("rustfmt takes no input")?.write_all(text.as_bytes())?;
    let output = rustfmt.wait_with_output()?;
    if !output.status.success() {
        return Err(format!("rustfmt failed on the bindings:\n{text}").into());
    }
    Ok(String::from_utf8(output.stdout)?)
}
