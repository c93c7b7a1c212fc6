//! How products use shared memory and L2, counted by the emulator: no bank conflict, no more wavefronts than leave the
//! tensor cores their rate, and as many as the cost model says.

use super::alone::{Asked, Done, across, compile, gradient, kernels, mutant, product};
use da_moe::DType;
use da_moe::cuda::abi;
use da_moe::cuda::cost::Contents;
use da_moe::cuda::launch::experts::Factors;
use da_moe_emulator::{Module, Traffic};
use std::sync::Arc;

/// Rows and columns of a tile on tensor cores, and of one in f32.
const TILE: [usize; 2] = [abi::GEMM_TILE_ROWS as usize, abi::GEMM_TILE_COLUMNS as usize];
const F32_TILE: [usize; 2] = [abi::GEMM_F32_TILE as usize; 2];

/// Multiply-adds that a multiprocessor's tensor cores do in a clock, and the part of them that `mma.sync` reaches.
const TENSOR: f64 = 2048.0;
const MMA_SYNC: f64 = 0.62;
/// Those in TF32, of 16-bit types' in the same time.
const TF32: f64 = 0.5;
/// Those of its ordinary units in f32.
const SCALAR: f64 = 128.0;

fn forward() -> Arc<Module> {
    compile(&kernels("experts/portable/grouped_gemm.cu"))
}

fn back() -> Arc<Module> {
    compile(&kernels("experts/portable/grouped_gemm_back.cu"))
}

fn asked(dtype: DType) -> Asked {
    Asked { counted: true, ..Asked::of(dtype) }
}

/// What a step of the depth adds to one tile, from two depths.
fn step(run: impl Fn(usize) -> Done, elements: usize) -> Traffic {
    const STEPS: u64 = 4;
    let [shallow, deep] = [8, 12].map(|steps| run(steps * elements).device.traffic());
    let of = |field: fn(&Traffic) -> u64| (field(&deep) - field(&shallow)) / STEPS;
    Traffic {
        wavefronts: of(|traffic| traffic.wavefronts),
        ideal_wavefronts: of(|traffic| traffic.ideal_wavefronts),
        background_bytes: of(|traffic| traffic.background_bytes),
        ..Traffic::default()
    }
}

#[test]
fn shared_memory_leaves_tensor_cores_their_rate() {
    let (forward, gradients) = (forward(), compile(&kernels("experts/portable/weight_gradient.cu")));
    let along = step(|depth| product(&forward, asked(DType::Bf16), &[TILE[0]], [depth, TILE[1]]), 32);
    let across = step(|rows| gradient(&gradients, true, [DType::Bf16; 2], &[rows], TILE), 32);
    let clocks = (TILE[0] * TILE[1] * 32) as f64 / (TENSOR * MMA_SYNC);
    for step in [along, across] {
        assert_eq!(step.wavefronts, step.ideal_wavefronts, "bank conflicts");
        assert_eq!((step.wavefronts, step.background_bytes), (704, (128 + 256) * 64));
        assert!(step.wavefronts as f64 <= clocks, "{} wavefronts in {clocks} clocks", step.wavefronts);
    }
}

#[test]
fn shared_memory_leaves_f32_its_rate() {
    let module = forward();
    let step = step(|depth| product(&module, asked(DType::F32), &[F32_TILE[0]], [depth, F32_TILE[1]]), 16);
    let clocks = (F32_TILE[0] * F32_TILE[1] * 16) as f64 / SCALAR;
    assert_eq!(step.wavefronts, step.ideal_wavefronts, "bank conflicts");
    // Reads of factors are counted for each quarter of a warp, though several want the same words.
    assert!(step.wavefronts as f64 <= 1.1 * clocks, "{} wavefronts in {clocks} clocks", step.wavefronts);
}

/// Products of TF32 beside f16, which have half the rate and steps of half the depth.
#[test]
fn shared_memory_leaves_tf32_its_rate() {
    let (back, gradients) = (back(), compile(&kernels("experts/portable/weight_gradient.cu")));
    let tn = |types| step(|rows| gradient(&gradients, true, types, &[rows], TILE), 16);
    let clocks = (TILE[0] * TILE[1] * 16) as f64 / (TENSOR * TF32 * MMA_SYNC);
    for (step, wavefronts, copied) in [
        (step(|depth| across(&back, true, &[TILE[0]], [depth, TILE[1]]), 16), 512, 128 * 64 + 256 * 32),
        (tn([DType::F32, DType::F16]), 512, 128 * 64 + 256 * 32),
        (tn([DType::F16, DType::F32]), 544, 128 * 32 + 256 * 64),
    ] {
        assert_eq!(step.wavefronts, step.ideal_wavefronts, "bank conflicts");
        assert_eq!((step.wavefronts, step.background_bytes), (wavefronts, copied));
        assert!(step.wavefronts as f64 <= clocks, "{} wavefronts in {clocks} clocks", step.wavefronts);
    }
}

/// Of a whole launch, with what leaves: the model is exact where tiles are whole.
#[test]
fn the_model_counts_what_the_emulator_counts() {
    let (module, back, gradients) = (forward(), back(), compile(&kernels("experts/portable/weight_gradient.cu")));
    let tn = |types| gradient(&gradients, true, types, &[96], TILE);
    let tf32 = Asked { factors: Factors::Tf32, ..asked(DType::F32) };
    let gated = Asked { activation: abi::ACTIVATION_SWIGLU, ..asked(DType::F16) };
    let done = [
        (product(&module, asked(DType::Bf16), &[2 * TILE[0]; 2], [96, 2 * TILE[1]]), 4 * TILE[0]),
        (product(&module, gated, &[TILE[0]], [96, TILE[1]]), TILE[0]),
        (product(&module, tf32, &[TILE[0]], [96, TILE[1]]), TILE[0]),
        (product(&module, asked(DType::F32), &[F32_TILE[0]], [96, F32_TILE[1]]), F32_TILE[0]),
        (across(&back, true, &[TILE[0]], [96, TILE[1]]), TILE[0]),
        (tn([DType::Bf16; 2]), 96),
        (tn([DType::F32, DType::F16]), 96),
        (tn([DType::F16, DType::F32]), 96),
    ];
    for (Done { device, call }, rows) in done {
        let call = call.expect("a launch");
        let (found, expected) = (device.traffic(), call.work(&Contents { rows, pairs: 0.0 }));
        let kernel = call.launch.kernel;
        assert_eq!(found.wavefronts as f64, expected.wavefronts, "{kernel}: {:?}", device.shared_place(0));
        assert_eq!(found.wavefronts, found.ideal_wavefronts, "{kernel}: {:?}", device.shared_place(0));
    }
}

/// A layout without its turn meets conflicts, and the count shows them.
#[test]
fn conflicts_are_found() {
    for (file, from, to) in [
        ("mma_operands.cuh", "(chunk ^ (row / 2 % CHUNKS)) * 16", "chunk * 16"),
        ("product_tile.cuh", "chunk ^ (chunk / 8 % 2) ^ (row % 4) ^ (4 * h)", "chunk"),
    ] {
        let products = kernels("experts/portable/grouped_gemm.cu");
        let module = mutant(&products, [file, from, to], "grouped_gemm_bf16_plain");
        let traffic = product(&module, asked(DType::Bf16), &[TILE[0]], [64, TILE[1]]).device.traffic();
        assert!(traffic.wavefronts > traffic.ideal_wavefronts, "{to} for {from}");
    }
    let gradients = kernels("experts/portable/weight_gradient.cu");
    let straight = ["mma_operands.cuh", "SIZE == 2 ? row % 8 : row % 4 * 2", "SIZE == 2 ? row % 8 : row % 4"];
    let module = mutant(&gradients, straight, "grouped_gemm_tf32_tn_f16_rows");
    let traffic = gradient(&module, true, [DType::F32, DType::F16], &[64], TILE).device.traffic();
    assert!(traffic.wavefronts > traffic.ideal_wavefronts, "{straight:?}");
}
