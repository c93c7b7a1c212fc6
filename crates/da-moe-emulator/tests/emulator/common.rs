//! Compiling test kernels, launching them under many schedules, and looking at reports.

use std::ffi::c_void;
use std::path::PathBuf;
use std::sync::Arc;

use da_moe_emulator::{Compiler, Device, Error, Kind, Module, Schedule};

pub const SCHEDULES: u64 = 12;

pub fn compiler(file: &str) -> Compiler {
    let kernels = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/kernels");
    Compiler::new(concat!(env!("CARGO_TARGET_TMPDIR"), "/kernels")).file(kernels.join(file))
}

pub fn compile(compiler: &Compiler) -> Arc<Module> {
    compiler.compile().unwrap_or_else(|error| panic!("{error}"))
}

/// The file with one text replaced.
pub fn mutant(file: &str, from: &str, to: &str) -> Arc<Module> {
    compile(&compiler(file).replace(file, from, to))
}

/// The numbers of the lines of a test kernel that contain `text`.
pub fn lines_with(file: &str, text: &str) -> Vec<usize> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/kernels").join(file);
    let source = std::fs::read_to_string(path).expect("a test kernel");
    let lines: Vec<_> =
        source.lines().enumerate().filter(|(_, line)| line.contains(text)).map(|(i, _)| i + 1).collect();
    assert!(!lines.is_empty(), "{file} has no line with {text:?}");
    lines
}

/// Runs `launch` under many schedules: all must pass.
pub fn passes(module: &Arc<Module>, launch: impl Fn(&Device) -> Result<(), Error>) {
    for seed in 0..SCHEDULES {
        let device = Device::new(module.clone(), Schedule::from_seed(seed));
        launch(&device).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

/// Runs `launch` under many schedules: all must report a fault of one of these kinds, at one of the file's lines.
pub fn reports(
    module: &Arc<Module>,
    kinds: &[Kind],
    file: &str,
    lines: &[usize],
    launch: impl Fn(&Device) -> Result<(), Error>,
) {
    for seed in 0..SCHEDULES {
        let device = Device::new(module.clone(), Schedule::from_seed(seed));
        let error = launch(&device).expect_err(&format!("seed {seed}: nothing was reported"));
        let report = error.report().unwrap_or_else(|| panic!("seed {seed}: {error}"));
        assert!(kinds.contains(&report.kind), "seed {seed}: not {kinds:?}: {report}");
        if seed == 1 {
            // For a person who wants to read one of each: `cargo test -- --nocapture`.
            println!("{report}");
        }
        let at_line = lines.iter().any(|line| {
            let place = format!("tests/kernels/{file}:{line}");
            report
                .message
                .match_indices(&place)
                .any(|(at, _)| !report.message[at + place.len()..].starts_with(|next: char| next.is_ascii_digit()))
        });
        assert!(at_line, "seed {seed}: not at {file}:{lines:?}: {report}");
    }
}

/// A pointer for `Device::launch`.
pub fn parameter<T>(value: &T) -> *mut c_void {
    std::ptr::from_ref(value).cast_mut().cast()
}

pub fn bytes_of<T: Copy>(values: &[T]) -> &[u8] {
    // SAFETY: the tests use plain numbers, all of whose bytes are initialised.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), std::mem::size_of_val(values)) }
}

/// Allocates and uploads.
pub fn input<T: Copy>(device: &Device, name: &str, values: &[T]) -> u64 {
    let address = device.alloc(name, std::mem::size_of_val(values)).expect("an allocation");
    device.upload(address, bytes_of(values)).expect("an upload");
    address
}

/// Allocates room for `count` values that nobody has written.
pub fn output<T>(device: &Device, name: &str, count: usize) -> u64 {
    device.alloc(name, count * size_of::<T>()).expect("an allocation")
}

pub fn download<T: Copy + Default>(device: &Device, address: u64, count: usize) -> Vec<T> {
    let mut values = vec![T::default(); count];
    // SAFETY: as in `bytes_of`; any bytes are a number.
    let bytes = unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), count * size_of::<T>()) };
    device.download(address, bytes).expect("a download");
    values
}
