//! Kernels for tensor cores, right and with planted bugs: cp.async and mma.sync, TMA and wgmma.

use da_moe_emulator::{Compiler, Device, Error, Kind, TensorMapShape, Work};
use half::bf16;

use crate::common::{
    SCHEDULES, compile, compiler, download, input, lines_with, mutant, output, parameter, passes, reports,
};

/// C = A B^T, of numbers small enough that f32 is exact in any order.
struct Product {
    m: usize,
    n: usize,
    k: usize,
}

impl Product {
    fn a(&self) -> Vec<bf16> {
        (0..self.m * self.k).map(|i| bf16::from_f32((i * 31 % 17) as f32 - 8.0)).collect()
    }

    fn b(&self) -> Vec<bf16> {
        (0..self.n * self.k).map(|i| bf16::from_f32((i * 29 % 13) as f32 - 6.0)).collect()
    }

    fn expected(&self) -> Vec<f32> {
        let a: Vec<f32> = self.a().iter().map(|x| x.to_f32()).collect();
        let b: Vec<f32> = self.b().iter().map(|x| x.to_f32()).collect();
        let dot = |i: usize, j: usize| (0..self.k).map(|x| a[i * self.k + x] * b[j * self.k + x]).sum();
        (0..self.m * self.n).map(|at| dot(at / self.n, at % self.n)).collect()
    }

    /// Whether the kernel's result is right, if nothing was reported.
    fn run(&self, device: &Device, kernel: &str) -> Result<bool, Error> {
        let (a, b) = (input(device, "A", &self.a()), input(device, "B", &self.b()));
        device.read_only(a)?;
        device.read_only(b)?;
        let c = output::<f32>(device, "C", self.m * self.n);
        let grid = [self.n.div_ceil(64) as u32, self.m.div_ceil(64) as u32, 1];
        let sizes = [self.m as i32, self.n as i32, self.k as i32];
        let sizes = sizes.each_ref().map(parameter);
        match kernel {
            "gemm_sm80" => {
                let parameters = [&[parameter(&a), parameter(&b), parameter(&c)], &sizes[..]].concat();
                // SAFETY: three addresses and three ints, as the kernel takes them.
                unsafe { device.launch(kernel, grid, [128, 1, 1], 2 * 128 * 40 * 2, &parameters)? };
            }
            "gemm_sm90" => {
                let map = |address, rows: usize| {
                    let (inner, outer) = (self.k as u64, rows as u64);
                    device.tensor_map(address, &TensorMapShape::matrix(2, 128, inner, outer, 2 * inner, [64, 64]))
                };
                let (a_map, b_map) = (map(a, self.m)?, map(b, self.n)?);
                let parameters = [&[parameter(&a_map), parameter(&b_map), parameter(&c)], &sizes[..]].concat();
                // SAFETY: two tensor maps, an address and three ints, as the kernel takes them.
                unsafe { device.launch(kernel, grid, [256, 1, 1], 3 * 16384 + 48, &parameters)? };
            }
            _ => {
                let parameters = [parameter(&a), parameter(&b), parameter(&c)];
                // SAFETY: three addresses, as the kernel takes them.
                unsafe { device.launch(kernel, grid, [128, 1, 1], 2 * 8192, &parameters)? };
            }
        }
        Ok(device.unwritten(c)? == 0 && download::<f32>(device, c, self.m * self.n) == self.expected())
    }
}

/// Every bug is found: by a report, or by a wrong result.
fn bug(kernel: &str, shape: &Product, kinds: &[Kind], from: &str, to: &str, line: &str) {
    let file = format!("{kernel}.cu");
    reports(&mutant(&file, from, to), kinds, &file, &lines_with(&file, line), |device| {
        shape.run(device, kernel).map(drop)
    });
}

fn miscomputes(kernel: &str, shape: &Product, file: &str, from: &str, to: &str) {
    let module = compile(&compiler(&format!("{kernel}.cu")).include("tests/kernels").replace(file, from, to));
    let seed = std::cell::Cell::new(0);
    passes(&module, |device| {
        seed.set(seed.get() + 1);
        let result = shape.run(device, kernel);
        assert!(!matches!(result, Ok(true)), "schedule {} of {SCHEDULES}: the result is right", seed.get());
        Ok(())
    });
}

fn right(kernel: &str, shapes: &[Product]) {
    let module = compile(&compiler(&format!("{kernel}.cu")));
    for shape in shapes {
        passes(&module, |device| shape.run(device, kernel).map(|right| assert!(right, "a wrong result")));
    }
}

const SM80: &str = "gemm_sm80";
const SM90: &str = "gemm_sm90";
const GENERIC: &str = "wgmma_generic";
const EVEN: Product = Product { m: 64, n: 64, k: 128 };
const RAGGED: Product = Product { m: 100, n: 70, k: 72 };
const DEEP: Product = Product { m: 64, n: 64, k: 320 };
const TILE: Product = Product { m: 64, n: 64, k: 64 };

#[test]
fn products_are_right() {
    right(SM80, &[EVEN, RAGGED]);
    right(SM90, &[DEEP, RAGGED]);
    right(GENERIC, &[TILE]);
}

#[test]
fn products_of_zeros_are_not_always_zero() {
    // Mostly zeros, and infinities and a NaN that meet them.
    let mut a = vec![bf16::ZERO; 64 * 64];
    let mut b = vec![bf16::ZERO; 64 * 64];
    (a[5 * 64 + 20], a[9 * 64 + 3], a[33 * 64 + 40]) = (bf16::INFINITY, bf16::NAN, bf16::from_f32(2.0));
    (b[7 * 64 + 40], b[11 * 64 + 60], b[12 * 64 + 40]) = (bf16::NEG_INFINITY, bf16::INFINITY, bf16::from_f32(-3.0));
    let value = |i: usize, j: usize, k: usize| a[i * 64 + k].to_f32() * b[j * 64 + k].to_f32();
    let expected: Vec<f32> = (0..4096).map(|at| (0..64).map(|k| value(at / 64, at % 64, k)).sum()).collect();
    passes(&compile(&compiler("wgmma_generic.cu")), |device| {
        let (a, b, c) = (input(device, "A", &a), input(device, "B", &b), output::<f32>(device, "C", 4096));
        let parameters = [parameter(&a), parameter(&b), parameter(&c)];
        // SAFETY: three addresses, as the kernel takes them.
        unsafe { device.launch(GENERIC, [1, 1, 1], [128, 1, 1], 2 * 8192, &parameters)? };
        for (at, (found, expected)) in download::<f32>(device, c, 4096).iter().zip(&expected).enumerate() {
            let same = found == expected || (found.is_nan() && expected.is_nan());
            assert!(same, "row {}, column {}: {found} instead of {expected}", at / 64, at % 64);
        }
        Ok(())
    });
}

#[test]
fn work_is_counted() {
    // Operands of both kernels go to shared memory once. The older one reads 16 bytes a lane and matrix: two of A and two of
    // B for each 16 of the depth in each of four warps.
    let counted = |kernel: &str, shape: &Product| {
        let multiply_adds = (shape.m * shape.n * shape.k) as u64;
        let copied_bytes = ((shape.m + shape.n) * shape.k * 2) as u64;
        let shared_read_bytes = if kernel == SM80 { (shape.k / 16 * 4 * 4 * 32 * 16) as u64 } else { 0 };
        Work { multiply_adds, copied_bytes, shared_read_bytes }
    };
    for (kernel, shape) in [(SM80, &EVEN), (SM90, &DEEP)] {
        passes(&compile(&compiler(&format!("{kernel}.cu"))), |device| {
            assert_eq!(device.work(), Work::default());
            shape.run(device, kernel)?;
            assert_eq!(device.work(), counted(kernel, shape));
            Ok(())
        });
    }
}

#[test]
fn a_stage_read_before_all_threads_have_filled_it() {
    let found = [Kind::Race, Kind::Async, Kind::Uninitialised];
    bug(SM80, &EVEN, &found, "__syncthreads();  // the stage is complete", "", "gpu::ldmatrix_x4(");
}

#[test]
fn a_stage_overwritten_while_others_read_it() {
    let lines =
        [lines_with("gemm_sm80.cu", "gpu::ldmatrix_x4("), lines_with("gemm_sm80.cu", "gpu::cp_async16(")].concat();
    let module = mutant("gemm_sm80.cu", "__syncthreads();  // the stage may be overwritten", "");
    reports(&module, &[Kind::Race, Kind::Async], "gemm_sm80.cu", &lines, |device| EVEN.run(device, SM80).map(drop));
}

#[test]
fn a_copy_that_is_not_waited_for() {
    bug(SM80, &EVEN, &[Kind::Async], "gpu::cp_async_wait<1>()", "gpu::cp_async_wait<2>()", "gpu::ldmatrix_x4(");
}

#[test]
fn a_tail_that_is_loaded() {
    bug(SM80, &RAGGED, &[Kind::OutOfBounds], "k < K && row < (is_a ? M : N)", "k < K", "gpu::cp_async16(");
}

#[test]
fn a_tail_that_is_stored() {
    // Columns past the row's end belong to the next row, rows past the last to nobody.
    let found = [Kind::Race, Kind::OutOfBounds];
    bug(SM80, &RAGGED, &found, "if (m < M && n < N) {", "{", "C[(size_t)m * N + n]");
}

#[test]
fn a_wrong_swizzle() {
    miscomputes(SM90, &DEEP, "gpu.cuh", "swizzle_128 = 1", "swizzle_128 = 2");
}

#[test]
fn a_wrong_stride() {
    miscomputes(SM90, &DEEP, "gpu.cuh", "stride = 1024 >> 4", "stride = 512 >> 4");
}

#[test]
fn an_accumulator_that_is_not_zeroed() {
    miscomputes(SM90, &DEEP, "gemm_sm90.cu", "(k | j) != 0", "true");
}

#[test]
fn a_missing_arrival() {
    let (from, to) = ("if (lane == 0) {", "if (lane == 0 && !(k == 1 && t == 160)) {");
    bug(SM90, &DEEP, &[Kind::Deadlock], from, to, "gpu::mbar_wait(empty");
}

#[test]
fn too_few_expected_bytes() {
    let found = [Kind::Race, Kind::Uninitialised, Kind::Async, Kind::Deadlock];
    let lines = [
        lines_with("gemm_sm90.cu", "gpu::wgmma_m64n64k16("),
        lines_with("gemm_sm90.cu", "tma_load_2d("),
        lines_with("gemm_sm90.cu", "mbar_wait("),
    ];
    let module = mutant("gemm_sm90.cu", "full + 8 * s, STAGE_BYTES)", "full + 8 * s, A_BYTES)");
    reports(&module, &found, "gemm_sm90.cu", &lines.concat(), |device| DEEP.run(device, SM90).map(drop));
}

#[test]
fn a_wrong_parity() {
    let found = [Kind::Race, Kind::Uninitialised, Kind::Deadlock];
    let lines = [
        lines_with("gemm_sm90.cu", "gpu::wgmma_m64n64k16("),
        lines_with("gemm_sm90.cu", "tma_load_2d("),
        lines_with("gemm_sm90.cu", "mbar_wait("),
    ];
    let module =
        mutant("gemm_sm90.cu", "gpu::mbar_wait(full + 8 * s, phase)", "gpu::mbar_wait(full + 8 * s, phase ^ 1)");
    reports(&module, &found, "gemm_sm90.cu", &lines.concat(), |device| DEEP.run(device, SM90).map(drop));
}

#[test]
fn a_stage_released_before_it_was_read() {
    let from =
        "emu::wgmma_wait(0);\n        if (lane == 0) {\n            emu::mbarrier_arrive(empty + 8 * s);\n        }";
    let to = "if (lane == 0) emu::mbarrier_arrive(empty + 8 * s);\n        emu::wgmma_wait(0);";
    let lines = [lines_with("gemm_sm90.cu", "gpu::wgmma_m64n64k16("), lines_with("gemm_sm90.cu", "tma_load_2d(")];
    let module = mutant("gemm_sm90.cu", from, to);
    reports(&module, &[Kind::Race], "gemm_sm90.cu", &lines.concat(), |device| DEEP.run(device, SM90).map(drop));
}

#[test]
fn mbarriers_used_before_they_are_initialised() {
    let found = [Kind::Race, Kind::Uninitialised, Kind::Async];
    bug(SM90, &DEEP, &found, "__syncthreads();  // after the initialisation", "", "mbar_wait(");
}

#[test]
fn an_unordered_store_into_a_stage() {
    let from = "    float d[32];\n    for";
    let to = "    for (int i = t - 128; i < 1024; i += 128) reinterpret_cast<uint16_t*>(sm + 2 * STAGE_BYTES)[i] = 0; \
              float d[32];\n    for";
    let lines = [
        lines_with("gemm_sm90.cu", "gpu::wgmma_m64n64k16("),
        lines_with("gemm_sm90.cu", "tma_load_2d("),
        lines_with("gemm_sm90.cu", "float d[32]"),
    ];
    let module = mutant("gemm_sm90.cu", from, to);
    reports(&module, &[Kind::Race, Kind::Async], "gemm_sm90.cu", &lines.concat(), |device| {
        DEEP.run(device, SM90).map(drop)
    });
}

#[test]
fn ordinary_stores_without_a_proxy_fence() {
    bug(GENERIC, &TILE, &[Kind::Async], "emu::fence_proxy_async();", "", "gpu::wgmma_m64n64k16(");
}

#[test]
fn more_groups_in_flight_than_can_be_waited_for() {
    bug(GENERIC, &TILE, &[Kind::Async], "emu::wgmma_wait(0);", "emu::wgmma_wait(8);", "emu::wgmma_wait(0);");
}

#[test]
fn accumulators_read_before_the_wait() {
    let (from, to) = ("emu::wgmma_wait(0);\n    for", "for");
    let module = compile(&compiler("wgmma_generic.cu").replace("wgmma_generic.cu", from, to).replace(
        "wgmma_generic.cu",
        "C[row * 64 + column] = d[i];\n    }",
        "C[row * 64 + column] = d[i];\n    }\n    emu::wgmma_wait(0);",
    ));
    passes(&module, |device| {
        assert!(!TILE.run(device, GENERIC)?, "the result is right");
        Ok(())
    });
}

#[test]
fn a_reader_may_fence_in_place_of_the_writers() {
    let with = |fence: &str| {
        let file = "wgmma_generic.cu";
        let without = compiler(file).replace(file, "    emu::fence_proxy_async();\n", "");
        compile(&without.replace(file, "__syncthreads();", &format!("__syncthreads(); {fence}")))
    };
    passes(&with("emu::fence_proxy_async();"), |device| TILE.run(device, GENERIC).map(|right| assert!(right)));
    // Every thread of every warp has to.
    for fence in ["if (t != 77) emu::fence_proxy_async();", "if (t >= 32) emu::fence_proxy_async();"] {
        let lines =
            lines_with("wgmma_generic.cu", "gpu::wgmma_m64n64k16(").iter().map(|line| line - 1).collect::<Vec<_>>();
        reports(&with(fence), &[Kind::Async], "wgmma_generic.cu", &lines, |device| TILE.run(device, GENERIC).map(drop));
    }
}

#[test]
fn a_writers_fence_is_between_its_write_and_its_release() {
    let (before, after) = ("for (int i = t; i < 64 * 8;", "float d[32];");
    for place in [before, after] {
        let file = "wgmma_generic.cu";
        // One warp's fences, so that they are not the readers'.
        let fence = format!("if (t >= 32) emu::fence_proxy_async(); {place}");
        let without = compiler(file).replace(file, "emu::fence_proxy_async();", "");
        let module = compile(&without.replace(file, place, &fence));
        reports(&module, &[Kind::Async], file, &lines_with(file, "gpu::wgmma_m64n64k16("), |device| {
            TILE.run(device, GENERIC).map(drop)
        });
    }
}

#[test]
fn copies_of_threads_need_a_proxy_fence_too() {
    let file = "wgmma_generic.cu";
    let copies = |wait: &str| {
        let copy = |compiler: Compiler, from: &str, to: &str| compiler.replace(file, from, to);
        let a = "*reinterpret_cast<uint4*>(sm + at) = *reinterpret_cast<const uint4*>(A + r * 64 + c * 8);";
        let b =
            "*reinterpret_cast<uint4*>(sm + TILE_BYTES + at) = *reinterpret_cast<const uint4*>(B + r * 64 + c * 8);";
        let module = copy(compiler(file), a, "gpu::cp_async16(gpu::smem(sm + at), A + r * 64 + c * 8, 16);");
        let module = copy(module, b, "gpu::cp_async16(gpu::smem(sm + TILE_BYTES + at), B + r * 64 + c * 8, 16);");
        compile(&copy(module, "emu::fence_proxy_async();", wait))
    };
    let wait = "gpu::cp_async_commit(); gpu::cp_async_wait<0>();";
    passes(&copies(&format!("{wait} emu::fence_proxy_async();")), |device| {
        TILE.run(device, GENERIC).map(|right| assert!(right))
    });
    for without in [wait.to_string(), format!("emu::fence_proxy_async(); {wait}")] {
        reports(&copies(&without), &[Kind::Async], file, &lines_with(file, "gpu::wgmma_m64n64k16("), |device| {
            TILE.run(device, GENERIC).map(drop)
        });
    }
}

#[test]
fn accumulators_need_a_fence_before_the_first_product() {
    bug(GENERIC, &TILE, &[Kind::Async], "emu::wgmma_fence();", "", "gpu::wgmma_m64n64k16(");
    bug(SM90, &DEEP, &[Kind::Async], "emu::wgmma_fence();", "if (k == 0) emu::wgmma_fence();", "gpu::wgmma_m64n64k16(");
}

#[test]
fn products_of_another_shape_on_accumulators_in_flight() {
    let (from, to) = (
        "emu::wgmma_commit();",
        "emu::wgmma(d, {emu::Element::Bf16, 32, a, b, true, false, false}); emu::wgmma_commit();",
    );
    bug(GENERIC, &TILE, &[Kind::Async], from, to, "emu::wgmma_commit();");
}
