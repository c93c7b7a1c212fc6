//! Kernels of the products launched by themselves on the emulator, on zeros, to count what they do.
#![allow(unsafe_code, reason = "launches take the addresses of their parameters")]

use da_moe::DType;
use da_moe::cuda::launch::experts::{self, Factors, Operands};
use da_moe::cuda::launch::gradient_products;
use da_moe::cuda::{Architecture, Call, Emulated, Launch, Target, abi};
use da_moe_emulator::{Compiler, Device, Grid, Module, Schedule};
use da_moe_harness::product::offsets;
use std::path::Path;
use std::ptr::{without_provenance, without_provenance_mut};
use std::sync::Arc;

pub fn compiler(file: &Path) -> Compiler {
    Compiler::new(concat!(env!("CARGO_TARGET_TMPDIR"), "/kernels")).include(Emulated::sources()).file(file)
}

pub fn compile(compiler: &Compiler) -> Arc<Module> {
    compiler.compile().unwrap_or_else(|error| panic!("{error}"))
}

/// The compiler of one of the kernels' own files.
pub fn kernels(file: &str) -> Compiler {
    compiler(&Emulated::sources().join(file))
}

/// One of these kernels with a text replaced in its file, or in a header of that.
pub fn mutant(compiler: &Compiler, [file, from, to]: [&str; 3], kernel: &str) -> Arc<Module> {
    let mutant = compiler.clone().replace(file, from, to).only(&compile(compiler), [kernel]);
    compile(&mutant.unwrap_or_else(|error| panic!("{error}")))
}

/// Bytes on a device.
pub fn upload(device: &Device, name: &str, bytes: &[u8]) -> u64 {
    let address = device.alloc(name, bytes.len()).unwrap();
    device.upload(address, bytes).unwrap();
    address
}

pub fn zeros(device: &Device, name: &str, bytes: usize) -> u64 {
    upload(device, name, &vec![0; bytes])
}

pub fn integers(device: &Device, name: &str, values: &[i32]) -> u64 {
    upload(device, name, &values.iter().flat_map(|value| value.to_ne_bytes()).collect::<Vec<u8>>())
}

pub fn run<P>(device: &Device, launch: &Launch, mut p: P) {
    let Launch { kernel, grid: blocks, threads, shared, cluster } = *launch;
    // SAFETY: every kernel that is run here takes one such struct; what it points to is checked by the emulator.
    unsafe { device.launch(kernel, Grid { blocks, cluster }, [threads, 1, 1], shared, &[(&raw mut p).cast()]) }
        .unwrap();
}

/// So few multiprocessors that blocks have several tiles each.
const FEW: Target = Target { architecture: Architecture::Portable, multiprocessors: 3 };

/// A device after a launch, and the launch: none where there is nothing to do.
pub struct Done {
    pub device: Device,
    pub call: Option<Call>,
}

/// How a product is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub dtype: DType,
    pub factors: Factors,
    pub activation: i32,
    /// Whether its traffic is counted, which takes long.
    pub counted: bool,
}

impl Asked {
    /// Plainly.
    pub fn of(dtype: DType) -> Self {
        Self { dtype, factors: Factors::F32, activation: abi::ACTIVATION_NONE, counted: false }
    }
}

fn device(module: &Arc<Module>, counted: bool, counts: &[usize]) -> Device {
    let device = Device::new(module.clone(), Schedule::from_seed(counts.len() as u64));
    device.count_traffic(counted);
    device
}

/// What a product of rows of so many experts takes; the rows of its weights are to be said.
fn grouped(
    device: &Device,
    operands: Operands,
    counts: &[usize],
    [depth, columns]: [usize; 2],
    activation: i32,
) -> abi::GroupedGemm {
    let (offsets, sizes) = (offsets(counts), [operands.rows.size(), operands.weights.size()]);
    let rows = offsets[counts.len()];
    let halves = if activation >= abi::ACTIVATION_SWIGLU { 2 } else { 1 };
    abi::GroupedGemm {
        a: without_provenance(zeros(device, "a", rows as usize * depth * sizes[0]) as usize),
        b: without_provenance(zeros(device, "b", counts.len() * halves * columns * depth * sizes[1]) as usize),
        out: without_provenance_mut(zeros(device, "out", rows as usize * columns * sizes[0]) as usize),
        offsets: without_provenance(integers(device, "offsets", &offsets) as usize),
        a_stride: depth as i64,
        b_expert_stride: (halves * columns * depth) as i64,
        out_stride: columns as i64,
        out_f32: i32::from(operands.rows == DType::F32),
        rows,
        a_rows: rows,
        experts: counts.len() as i32,
        depth: depth as i32,
        columns: columns as i32,
        activation,
        ..Default::default()
    }
}

fn run_grouped(device: Device, call: Option<Call>) -> Done {
    if let Some(call) = &call {
        let p = *call.parameters::<abi::GroupedGemm>().expect("its parameter");
        run(&device, &call.launch, p);
    }
    Done { device, call }
}

/// A grouped product of rows of so many experts, `[depth, columns]`.
pub fn product(module: &Arc<Module>, asked: Asked, counts: &[usize], [depth, columns]: [usize; 2]) -> Done {
    let device = device(module, asked.counted, counts);
    let p = grouped(&device, asked.dtype.into(), counts, [depth, columns], asked.activation);
    let p = abi::GroupedGemm { b_stride: depth as i64, ..p };
    let call = experts::calls(FEW, asked.dtype, asked.factors, p).next();
    run_grouped(device, call)
}

/// The same with weights across their rows, of TF32 rows and f16 weights.
pub fn across(module: &Arc<Module>, counted: bool, counts: &[usize], [depth, columns]: [usize; 2]) -> Done {
    let device = device(module, counted, counts);
    let operands = Operands { rows: DType::F32, weights: DType::F16 };
    let p = grouped(&device, operands, counts, [depth, columns], abi::ACTIVATION_NONE);
    let p = abi::GroupedGemm { b_stride: columns as i64, ..p };
    let call = gradient_products::across(FEW, operands, Factors::Tf32, p).next();
    run_grouped(device, call)
}

/// The gradients of weights `[left, right]`, over so many rows an expert, of factors of some types; those of f32 are TF32
/// beside f16.
pub fn gradient(
    module: &Arc<Module>,
    counted: bool,
    types: [DType; 2],
    counts: &[usize],
    [left, right]: [usize; 2],
) -> Done {
    let device = device(module, counted, counts);
    let offsets = offsets(counts);
    let rows = offsets[counts.len()];
    let operand = |name, dtype: DType, columns: usize| abi::RoutedOperand {
        rows: without_provenance(zeros(&device, name, rows as usize * columns * dtype.size()) as usize),
        stride: columns as i64,
        sources: rows,
        columns: columns as i32,
        ..Default::default()
    };
    let p = abi::WeightGradient {
        left: operand("left", types[0], left),
        right: operand("right", types[1], right),
        offsets: without_provenance(integers(&device, "offsets", &offsets) as usize),
        out: without_provenance_mut(zeros(&device, "out", counts.len() * left * right * 2) as usize),
        out_expert_stride: (left * right) as i64,
        out_stride: right as i64,
        rows,
        experts: counts.len() as i32,
        ..Default::default()
    };
    let call = gradient_products::weight_gradient(FEW, types, Factors::Tf32, p).next();
    if let Some(call) = &call {
        let p = *call.parameters::<abi::WeightGradient>().expect("its parameter");
        run(&device, &call.launch, p);
    }
    Done { device, call }
}
