//! The structs that kernels take mean the same to Rust and to C++: sizes, offsets and constants.

use da_moe::cuda::abi::{CONSTANTS, LAYOUTS};
use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

/// A C++ file that compiles only where Rust and `kernels/abi.h` agree.
fn assertions() -> String {
    let mut text = String::from("#include \"abi.h\"\n#include <cstddef>\n");
    let mut claim = |expression: String, value: i64| {
        writeln!(text, "static_assert({expression} == {value}, \"Rust says {value}; run `cargo xtask abi`\");")
            .expect("a string takes every line");
    };
    let number = |value: usize| i64::try_from(value).expect("a size");
    for layout in LAYOUTS {
        let name = layout.name;
        claim(format!("sizeof({name})"), number(layout.size));
        claim(format!("alignof({name})"), number(layout.align));
        for field in layout.fields {
            claim(format!("offsetof({name}, {})", field.name), number(field.offset));
            claim(format!("sizeof({name}::{})", field.name), number(field.size));
        }
    }
    for &(name, value) in CONSTANTS {
        claim(name.into(), value.into());
    }
    text
}

#[test]
fn cpp_agrees() {
    let source = Path::new(env!("CARGO_TARGET_TMPDIR")).join("abi.cpp");
    fs::write(&source, assertions()).expect("a written file");
    // What a build script would be told by cargo.
    let target = format!(
        "{}-{}",
        env::consts::ARCH,
        if cfg!(target_os = "macos") { "apple-darwin" } else { "unknown-linux-gnu" }
    );
    let compiler = cc::Build::new().cpp(true).std("c++17").target(&target).host(&target).opt_level(0).get_compiler();
    let mut command = compiler.to_command();
    command.arg("-fsyntax-only").arg("-I").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels")).arg(&source);
    let output = command.output().expect("a C++ compiler");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Bytes between fields would reach the GPU uninitialised.
#[test]
fn structs_have_no_padding() {
    for layout in LAYOUTS {
        assert_eq!(layout.padding(), None, "offset of padding in {}", layout.name);
    }
}

#[test]
fn zeroed_structs_are_the_default() {
    let gate = da_moe::cuda::abi::Gate::default();
    assert!(gate.logits.is_null() && gate.tokens == 0 && gate.thresholds.iter().all(|threshold| *threshold == 0.0));
}
