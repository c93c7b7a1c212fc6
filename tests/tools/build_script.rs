//! The parts of the build script that decide something: whether kernels are wanted, where nvcc is looked for, when it runs,
//! what counts as a failure. A shell script takes nvcc's place.
#![cfg(unix)]

#[path = "../../build/mode.rs"]
mod mode;
#[allow(dead_code, reason = "the build script uses the rest")]
#[path = "../../build/nvcc.rs"]
mod nvcc;
#[allow(dead_code, reason = "the build script uses the rest")]
#[path = "../../build/toolkit.rs"]
mod toolkit;

use mode::Mode;
use nvcc::{Compiler, dependencies, is_advisory, is_for_hopper};
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use toolkit::find_nvcc;

/// An empty folder for one test, with links resolved.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("build_script").join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a new folder");
    folder.canonicalize().expect("a folder")
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("a new folder");
    fs::write(path, text).expect("a written file");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("an executable file");
}

#[test]
fn kernels_are_built_as_the_variable_and_the_feature_say() {
    const OFF: &str = "switched off by DA_MOE_CUDA=0";
    const DOCUMENTATION: &str = "a build for documentation has none";
    const NO_FEATURE: &str = "the feature `cuda` is off";
    // DA_MOE_CUDA, then with the feature, without it, and for documentation with and without it.
    let table = [
        (
            "",
            [
                Ok(Mode::Automatic),
                Ok(Mode::Off(NO_FEATURE)),
                Ok(Mode::Off(DOCUMENTATION)),
                Ok(Mode::Off(DOCUMENTATION)),
            ],
        ),
        ("0", [Ok(Mode::Off(OFF)); 4]),
        (
            "1",
            [
                Ok(Mode::Required),
                Err("DA_MOE_CUDA=1, but the feature `cuda` is off"),
                Ok(Mode::Off(DOCUMENTATION)),
                Ok(Mode::Off(DOCUMENTATION)),
            ],
        ),
        ("yes", [Err("DA_MOE_CUDA is `yes`; choose 1 (required), 0 (off), or leave it unset (automatic)"); 4]),
    ];
    for (asked, expected) in table {
        let found = [(true, false), (false, false), (true, true), (false, true)]
            .map(|(feature, documentation)| Mode::of(asked, feature, documentation));
        assert_eq!(found.each_ref().map(|found| found.as_ref().copied().map_err(String::as_str)), expected, "{asked}");
    }
}

#[test]
fn only_who_requires_kernels_is_refused_for_want_of_a_compiler() {
    for mode in [Mode::Automatic, Mode::Required] {
        assert_eq!(mode.accept(Some("nvcc"), "PATH"), Ok(Ok("nvcc")));
    }
    assert_eq!(Mode::Automatic.accept(None::<()>, "PATH"), Ok(Err("nvcc was not found in PATH".into())));
    assert_eq!(Mode::Required.accept(None::<()>, "PATH"), Err("DA_MOE_CUDA=1, but nvcc was not found in PATH".into()));
}

#[test]
fn the_first_place_with_nvcc_wins() {
    let root = folder("places");
    let places = [
        ("NVCC", "named/nvcc", "named/nvcc"),
        ("CUDA_HOME", "home", "home/bin/nvcc"),
        ("CUDA_PATH", "path", "path/bin/nvcc"),
        ("PATH", "programs", "programs/nvcc"),
        ("VIRTUAL_ENV", "venv", "venv/lib/python3.11/site-packages/nvidia/cu13/bin/nvcc"),
        ("", "", "target/cuda-toolkit/nvidia/cu13/bin/nvcc"),
    ];
    let values: HashMap<&str, OsString> =
        places.iter().map(|(name, value, _)| (*name, root.join(value).into_os_string())).collect();
    for (_, _, file) in &places {
        write(&root.join(file), "");
    }
    for (index, (name, _, file)) in places.iter().enumerate() {
        let later: Vec<&str> = places[index..].iter().map(|place| place.0).collect();
        let search = find_nvcc(&root, |name| values.get(name).filter(|_| later.contains(&name)).cloned());
        let search = search.expect("a search without contradictions");
        assert_eq!(search.nvcc, Some(root.join(file)));
        // Nothing behind the place where it was found is watched.
        assert!(name.is_empty() || search.variables.last() == Some(name), "{:?}", search.variables);
    }
}

#[test]
fn a_compiler_that_was_named_is_not_replaced() {
    let problem = find_nvcc(&folder("named"), |name| (name == "NVCC").then(|| "/nowhere/nvcc".into())).err();
    assert_eq!(problem.as_deref(), Some("NVCC names /nowhere/nvcc, which is not a file"));
}

/// A project with one kernel and a compiler that does `body` with `$out` and `$dep`, and counts how often it ran.
fn project(name: &str, body: &str) -> (PathBuf, Compiler) {
    let root = folder(name);
    write(&root.join("kernels/gate.cu"), "kernel");
    write(&root.join("kernels/device/warp.cuh"), "header");
    fs::create_dir(root.join("out")).expect("a new folder");
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = --version ]; then echo 'release 13.0, V13.0.88'; exit; fi\n\
         echo \"$@\" > arguments\n\
         while [ $# -gt 0 ]; do case $1 in -o) out=$2;; -MF) dep=$2;; esac; shift; done\n\
         echo run >> runs\necho 'gate.fatbin : kernels/gate.cu' > \"$dep\"\necho fatbin > \"$out\"\n{body}\n"
    );
    write(&root.join("nvcc"), &script);
    let compiler = Compiler::new(root.join("nvcc"), &root, true, false).expect("a compiler");
    assert_eq!(compiler.version, "13.0.88");
    (root, compiler)
}

#[test]
fn a_file_is_compiled_again_only_when_something_changed() {
    let (root, compiler) = project("stamps", "echo 'ptxas info : Compile time = 3 ms' >&2; echo 'ptxas info : 9' >&2");
    let out = root.join("out");
    let runs = || {
        compiler.compile("gate", &out).expect("success");
        fs::read_to_string(root.join("runs")).expect("a count").lines().count()
    };
    assert_eq!([runs(), runs()], [1, 1]);
    write(&root.join("kernels/device/warp.cuh"), "another header");
    assert_eq!([runs(), runs()], [2, 2]);
    write(&root.join("kernels/gate.cu"), "another kernel");
    assert_eq!([runs(), runs()], [3, 3]);
    fs::remove_file(out.join("gate.fatbin")).expect("a file");
    assert_eq!([runs(), runs()], [4, 4]);
    // What differs from run to run does not get into the library.
    assert_eq!(fs::read_to_string(out.join("gate.ptxas.txt")).expect("a report"), "ptxas info : 9\n");
}

#[test]
fn files_for_hopper_are_compiled_for_nothing_else() {
    let (root, compiler) = project("targets", "");
    let out = root.join("out");
    let targets = |name| {
        compiler.compile(name, &out).expect("success");
        let arguments = fs::read_to_string(root.join("arguments")).expect("what nvcc was given");
        let words: Vec<&str> = arguments.split_whitespace().collect();
        assert_eq!(words.last(), Some(&&*format!("kernels/{name}.cu")));
        let after = |pair: &[&str]| (pair[0] == "-gencode").then(|| pair[1].to_string());
        words.windows(2).filter_map(after).collect::<Vec<_>>()
    };
    let both = ["arch=compute_80,code=[sm_80,compute_80]", "arch=compute_90a,code=sm_90a"];
    for (name, expected) in
        [("gate", &both[..]), ("experts/hopper/product", &both[1..]), ("hopper/gate", &both[1..]), ("a/hoppers", &both)]
    {
        assert_eq!(targets(name), expected, "{name}");
        assert_eq!(is_for_hopper(name), expected.len() == 1, "{name}");
    }
}

#[test]
fn failures_are_told_in_the_compilers_words() {
    let (root, compiler) = project("failure", "echo 'gate.cu(3): error: no such thing' >&2; exit 2");
    let problem = compiler.compile("gate", &root.join("out")).expect_err("a failure");
    assert!(problem.contains("kernels/gate.cu") && problem.contains("error: no such thing"), "{problem}");
}

#[test]
fn advice_of_ptxas_is_a_failure() {
    let advice = "ptxas info : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized";
    let (root, compiler) = project("advice", &format!("echo '{advice}' >&2"));
    for _ in 0..2 {
        let problem = compiler.compile("gate", &root.join("out")).expect_err("a failure");
        assert_eq!(problem, format!("ptxas gives advice on kernels/gate.cu:\n{advice}"));
    }
    assert!(is_advisory(advice) && !is_advisory("ptxas info : (C7410) no") && !is_advisory("(C75"));
}

#[test]
fn warnings_are_kept() {
    let (root, compiler) = project("warnings", "echo 'gate.cu(1): warning #177-D: never used' >&2");
    for _ in 0..2 {
        let compiled = compiler.compile("gate", &root.join("out")).expect("success");
        assert_eq!(compiled.warnings, ["gate.cu(1): warning #177-D: never used"]);
    }
}

#[test]
fn depfiles_are_understood() {
    let rule = "/out dir/gate.fatbin : kernels/gate.cu \\\n    /usr/include/a\\ b.h \\\n    kernels/abi.h\n";
    assert_eq!(dependencies(rule), ["kernels/gate.cu", "/usr/include/a b.h", "kernels/abi.h"]);
}
