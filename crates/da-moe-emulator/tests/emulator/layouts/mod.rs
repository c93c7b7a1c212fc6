//! Where instructions find the elements of a matrix, in registers and in shared memory, against tables that NVIDIA's CuTe
//! was asked for (tests/layouts/README.md). Misreadings planted into the kernels' calls show that the tables tell one layout
//! from another: to the tables, a wrong call of a right instruction and a right call of a wrong one are the same.

mod boxes;
mod fragments;
mod loaded_tiles;
mod operands;
mod tiles;

use std::ffi::c_void;

use da_moe_emulator::{Device, Schedule};

use crate::common::{compile, compiler, mutant};

const FILE: &str = "layouts.cu";
const REGISTERS: &str = include_str!("../../layouts/registers.csv");
const OPERANDS: &str = include_str!("../../layouts/wgmma_operands.csv");
const BOXES: &str = include_str!("../../layouts/tma_boxes.csv");

/// The first thing that the tables say otherwise.
type Check = fn(&Device) -> Result<(), String>;

fn agrees(check: Check) {
    let device = Device::new(compile(&compiler(FILE)), Schedule::from_seed(0));
    check(&device).unwrap_or_else(|disagreement| panic!("{disagreement}"));
}

/// With `from` replaced by `to` in the kernels, the tables disagree.
fn misread(check: Check, from: &str, to: &str) {
    let device = Device::new(mutant(FILE, from, to), Schedule::from_seed(0));
    check(&device).expect_err(&format!("the tables agree with {to}"));
}

/// Runs one of the kernels of the file, with parameters of the types that it takes.
fn launch(device: &Device, kernel: &str, grid: u32, threads: u32, shared: u32, parameters: &[*mut c_void]) {
    // SAFETY: the callers point to live values of the types in the file.
    unsafe { device.launch(kernel, [grid, 1, 1], [threads, 1, 1], shared, parameters) }
        .unwrap_or_else(|error| panic!("{error}"));
}

fn same<T: PartialEq + std::fmt::Debug>(found: T, expected: T, of: impl FnOnce() -> String) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{}: {found:?} instead of {expected:?}", of())) }
}

fn numbers<'a>(fields: impl Iterator<Item = &'a str>) -> Vec<usize> {
    fields.map(|field| field.parse().expect("a number")).collect()
}

/// For each thread, the places of its values.
fn registers(name: &str) -> Vec<Vec<usize>> {
    let line = REGISTERS.lines().find(|line| line.split(',').next() == Some(name)).expect("a table of that name");
    let numbers = numbers(line.split(',').skip(1));
    let [threads, values] = [numbers[0], numbers[1]];
    assert_eq!(numbers.len(), 2 + threads * values, "{name}");
    numbers[2..].chunks(values).map(<[usize]>::to_vec).collect()
}
