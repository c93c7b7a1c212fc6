//! The host's side: compiling, replacing, launching what does not fit.

use std::path::PathBuf;
use std::sync::Arc;

use da_moe_emulator::{Compiler, Device, Error, Kind, Policy, Schedule};

use crate::common::{compile, compiler, input, output, parameter};

fn cache() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("kernels")
}

/// A file of its own for this process, so that tests may run side by side.
fn source(name: &str, text: &str) -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("sources");
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

const KERNEL: &str =
    "#include <emulator/cuda.h>\nextern \"C\" __global__ void set(int* out) { *out = VALUE; }\nGPU_KERNEL(set)\n";

fn value_of(compiler: &Compiler) -> i32 {
    let device = Device::new(compile(compiler), Schedule::from_seed(0));
    let out = output::<i32>(&device, "out", 1);
    // SAFETY: an address, as the kernel takes it.
    unsafe { device.launch("set", [1, 1, 1], [1, 1, 1], 0, &[parameter(&out)]) }.unwrap();
    crate::common::download(&device, out, 1)[0]
}

#[test]
fn modules_list_their_kernels() {
    let module = compile(&compiler("block.cu").file("tests/kernels/gemm_sm80.cu"));
    let kernels = module.kernels();
    assert!(kernels.contains(&"reverse".into()) && kernels.contains(&"gemm_sm80".into()), "{kernels:?}");
    assert!(module.has("histogram") && !module.has("histogra"));
}

/// The README's example is compiled where it stands and run here, in the cache of all tests.
#[test]
fn the_readme_tells_what_happens() {
    let readme = include_str!("../../README.md");
    let (_, rest) = readme.split_once("r#\"").expect("a kernel");
    let (kernel, _) = rest.split_once("\"#").expect("its end");
    let right = Compiler::new(cache()).file(source("reverse.cu", kernel));
    let wrong = right.clone().replace("reverse.cu", "__syncthreads();", "");
    for (compiler, is_right) in [(right, true), (wrong, false)] {
        let module = compile(&compiler);
        for seed in 0..20 {
            let device = Device::new(module.clone(), Schedule::from_seed(seed));
            let values = input(&device, "values", &[7i32; 64]);
            // SAFETY: an address, as the kernel takes it.
            let result = unsafe { device.launch("reverse", [1, 1, 1], [64, 1, 1], 0, &[parameter(&values)]) };
            let told = result.map_err(|error| {
                let report = error.report().expect("the checker's word");
                assert_eq!(report.kind, Kind::Race, "{report}");
                assert!(report.message.contains("reverse.cu:6"), "{report}");
            });
            assert_eq!(told.is_ok(), is_right, "schedule {seed}");
        }
    }
}

#[test]
fn defines_and_changed_headers_are_seen() {
    let file = source("changing.cu", &KERNEL.replace("*out", "*out = 0; *out").replace("VALUE", "VALUE + EXTRA"));
    let with_header = source("with_header.cu", &format!("#include \"extra.h\"\n{}", KERNEL.replace("VALUE", "EXTRA")));
    let compiler = Compiler::new(cache()).file(file).define("EXTRA", "100");
    assert_eq!(value_of(&compiler.clone().define("VALUE", "1")), 101);
    assert_eq!(value_of(&compiler.define("VALUE", "2")), 102);

    let compiler = Compiler::new(cache()).file(with_header);
    for value in [5, 6] {
        source("extra.h", &format!("#define EXTRA {value}\n"));
        assert_eq!(value_of(&compiler), value);
        let replaced = compiler.clone().replace("extra.h", &value.to_string(), "77");
        assert_eq!(value_of(&replaced), 77);
    }
}

#[test]
fn compiler_errors_are_quoted() {
    let file = source("broken.cu", &KERNEL.replace("VALUE", "undeclared"));
    let error = Compiler::new(cache()).file(file).compile().unwrap_err().to_string();
    assert!(error.contains("broken.cu:2") && error.contains("undeclared"), "{error}");

    let file = source("shared.cu", "#include <emulator/cuda.h>\n__device__ void f() { __shared__ int x; }\n");
    let error = Compiler::new(cache()).file(file).compile().unwrap_err().to_string();
    assert!(error.contains("Write_SHARED_ARRAY_or_DYN_SMEM"), "{error}");

    let huge = "extern \"C\" __global__ void huge(int* out) { volatile int a[20000]; a[out[0]] = 1; }";
    let file = source("huge.cu", &format!("#include <emulator/cuda.h>\n{huge}\nGPU_KERNEL(huge)\n"));
    let error = Compiler::new(cache()).file(file).compile().unwrap_err().to_string();
    assert!(error.contains("frame size"), "{error}");

    let error = Compiler::new(cache()).file("no/such.cu").compile().unwrap_err().to_string();
    assert!(error.contains("no/such.cu"), "{error}");
}

#[test]
fn replacements_must_fit_exactly_once() {
    let why = |compiler: Compiler| match compiler.compile() {
        Err(error @ Error::Replace { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    assert!(why(compiler("block.cu").replace("block.cu", "no such text", "")).contains("does not contain"));
    assert!(why(compiler("block.cu").replace("block.cu", "__syncthreads();", "")).contains("times, not once"));
    assert!(why(compiler("block.cu").replace("lock.cu", "__syncthreads();  // reverse", "")).contains("has this name"));
}

#[test]
fn a_bug_is_planted_in_the_kernels_that_are_asked_for_alone() {
    let files = compiler("block.cu").file("tests/kernels/gemm_sm80.cu");
    let whole = compile(&files);
    assert!(whole.file("reverse").unwrap().ends_with("tests/kernels/block.cu"));

    let bug = files.clone().replace("block.cu", "__syncthreads();  // reverse", "");
    let bug = compile(&bug.only(&whole, ["reverse", "warp_sums"]).unwrap());
    assert!(bug.has("reverse") && bug.has("warp_sums") && bug.kernels().len() == 2, "{bug:?}");
    let device = Device::new(bug, Schedule::from_seed(1));
    let (at, out) = (input(&device, "in", &[0i32; 64]), output::<i32>(&device, "out", 64));
    // SAFETY: two addresses, as the kernels take them.
    let launch =
        |kernel| unsafe { device.launch(kernel, [1, 1, 1], [64, 1, 1], 0, &[parameter(&at), parameter(&out)]) };
    let kind = launch("reverse").unwrap_err().report().map(|report| report.kind);
    assert!(matches!(kind, Some(Kind::Race | Kind::Uninitialised)), "{kind:?}");
    launch("warp_sums").unwrap();
    assert!(matches!(launch("histogram"), Err(Error::NoKernel { .. })));

    // Where nothing is replaced, files are as they were, and those that nobody asked for are not there.
    let same = compile(&files.clone().only(&whole, ["gemm_sm80"]).unwrap());
    assert_eq!(same.kernels(), ["gemm_sm80"]);
    assert!(matches!(files.only(&whole, ["nobody"]), Err(Error::NoKernel { .. })));
}

#[test]
fn launches_that_do_not_fit_are_refused() {
    let device = Device::new(compile(&compiler("block.cu")), Schedule::from_seed(1));
    let (at, out) = (input(&device, "in", &[0i32; 64]), output::<i32>(&device, "out", 64));
    let parameters = [parameter(&at), parameter(&out)];
    let launch = |kernel: &str, grid, block, shared, parameters: &[_]| {
        // SAFETY: two addresses, as the kernels take them, or another number, which is refused.
        unsafe { device.launch(kernel, grid, block, shared, parameters) }
    };
    let one = [1, 1, 1];
    assert!(matches!(launch("nobody", one, one, 0, &parameters), Err(Error::NoKernel { .. })));
    assert!(matches!(launch("reverse", one, one, 0, &parameters[..1]), Err(Error::Parameters { .. })));
    for (grid, block, shared) in [
        ([0, 1, 1], one, 0),
        ([1, 65536, 1], one, 0),
        (one, [0, 1, 1], 0),
        (one, [1025, 1, 1], 0),
        (one, [1, 1, 65], 0),
        (one, [u32::MAX, u32::MAX, 2], 0),
        (one, one, 228 * 1024),
    ] {
        let error = launch("reverse", grid, block, shared, &parameters).unwrap_err();
        assert_eq!(error.report().map(|report| report.kind), Some(Kind::Launch), "{error}");
    }
    launch("reverse", one, [64, 1, 1], 0, &parameters).unwrap();
    let (at, out) = (at.to_ne_bytes(), out.to_ne_bytes());
    device.launch_bytes("reverse", one, [64, 1, 1], 0, &[&at, &out]).unwrap();
    let error = device.launch_bytes("reverse", one, [64, 1, 1], 0, &[&at, &out[..4]]).unwrap_err();
    assert_eq!(error.to_string(), "parameter 1 of kernel `reverse` has 8 bytes and was given 4");
    assert!(matches!(device.launch_bytes("reverse", one, one, 0, &[&at]), Err(Error::Parameters { .. })));
}

#[test]
fn a_schedule_is_repeated_exactly() {
    let module = compile(&compiler("block.cu").replace("block.cu", "__syncthreads();  // reverse", ""));
    let report = |schedule| {
        let device = Device::new(Arc::clone(&module), schedule);
        let (at, out) = (input(&device, "in", &[0i32; 64]), output::<i32>(&device, "out", 64));
        // SAFETY: two addresses, as the kernel takes them.
        let result = unsafe { device.launch("reverse", [3, 1, 1], [64, 1, 1], 0, &[parameter(&at), parameter(&out)]) };
        result.unwrap_err().to_string()
    };
    for policy in [Policy::RoundRobin, Policy::Random, Policy::Priorities] {
        let schedule = Schedule { seed: 5, policy, resident: 2 };
        assert_eq!(report(schedule), report(schedule));
    }
}

#[test]
fn devices_run_side_by_side() {
    let module = compile(&compiler("block.cu"));
    std::thread::scope(|scope| {
        for seed in 0..8 {
            let module = &module;
            scope.spawn(move || {
                let device = Device::new(module.clone(), Schedule::from_seed(seed));
                let values: Vec<i32> = (0..64).collect();
                let (at, out) = (input(&device, "in", &values), output::<i32>(&device, "out", 64));
                for _ in 0..50 {
                    // SAFETY: two addresses, as the kernel takes them.
                    unsafe { device.launch("warp_sums", [1, 1, 1], [64, 1, 1], 0, &[parameter(&at), parameter(&out)]) }
                        .unwrap();
                }
            });
        }
    });
}
