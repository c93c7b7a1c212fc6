//! Single PTX services.

use da_moe_emulator::{Device, Error, Kind, Schedule, TensorMap2d};
use half::f16;

use crate::common::{compile, compiler, download, input, lines_with, mutant, output, parameter, passes, reports};

const FILE: &str = "ptx.cu";

#[test]
fn fragments_of_f16() {
    let a: Vec<f16> = (0..256).map(|i| f16::from_f32((i * 7 % 23) as f32 - 11.0)).collect();
    let b: Vec<f16> = (0..256).map(|i| f16::from_f32((i * 5 % 19) as f32 / 4.0)).collect();
    let dot = |at: usize| (0..16).map(|k| a[at / 16 * 16 + k].to_f32() * b[k * 16 + at % 16].to_f32()).sum::<f32>();
    let expected: Vec<f32> = (0..256).map(dot).collect();
    passes(&compile(&compiler(FILE)), |device| {
        let (a, b, c) = (input(device, "A", &a), input(device, "B", &b), output::<f32>(device, "C", 256));
        let parameters = [parameter(&a), parameter(&b), parameter(&c)];
        // SAFETY: three addresses, as the kernel takes them.
        unsafe { device.launch("product_f16", [1, 1, 1], [32, 1, 1], 0, &parameters)? };
        assert_eq!(download::<f32>(device, c, 256), expected);
        Ok(())
    });
}

#[test]
fn stores_of_matrices_are_checked() {
    let (file, store) = ("layouts.cu", "emu::stmatrix(");
    let row = "gpu::smem(shared + lane * 7 % 32), stored);\n    __syncwarp();";
    let lines = [lines_with(file, store), lines_with(file, "out[lane] = shared[lane];")].concat();
    for (kind, to) in [
        // A row of another lane without a barrier between; a row that all lanes give; half a row further.
        (Kind::Race, "gpu::smem(shared + lane * 7 % 32), stored);"),
        (Kind::Race, "gpu::smem(shared), stored);\n    __syncwarp();"),
        (Kind::Misaligned, "gpu::smem(shared + lane * 7 % 32) + 8, stored);\n    __syncwarp();"),
    ] {
        reports(&mutant(file, row, to), &[kind], file, &lines, |device| {
            let (words, out) = (input(device, "words", &[0u32; 128]), output::<u32>(device, "out", 128));
            let parameters = [parameter(&words), parameter(&out), parameter(&4), parameter(&0)];
            // SAFETY: two addresses and two ints, as the kernel takes them.
            unsafe { device.launch("layout_stmatrix", [1, 1, 1], [32, 1, 1], 0, &parameters) }
        });
    }
}

#[test]
fn small_copies_are_filled_up_with_zeros() {
    let expected = |i: usize| if i == 1 || i % 4 == 3 { 0 } else { i as i32 + 1 };
    passes(&compile(&compiler(FILE)), |device| {
        let (at, out) = (input(device, "in", &(1..=64).collect::<Vec<i32>>()), output::<i32>(device, "out", 64));
        // SAFETY: two addresses, as the kernel takes them.
        unsafe { device.launch("small_copies", [1, 1, 1], [32, 1, 1], 0, &[parameter(&at), parameter(&out)])? };
        assert_eq!(download::<i32>(device, out, 64), (0..64).map(expected).collect::<Vec<_>>());
        Ok(())
    });
}

fn pipeline(device: &Device) -> Result<(), Error> {
    let (at, out) = (input(device, "in", &(0..128).collect::<Vec<i32>>()), output::<i32>(device, "out", 128));
    // SAFETY: two addresses, as the kernel takes them.
    unsafe { device.launch("pipeline", [1, 1, 1], [64, 1, 1], 0, &[parameter(&at), parameter(&out)])? };
    let expected: Vec<i32> = (0..128).map(|i| i / 32 * 32 + 31 - i % 32).collect();
    assert_eq!(download::<i32>(device, out, 128), expected);
    Ok(())
}

#[test]
fn named_barriers_make_a_pipeline() {
    passes(&compile(&compiler(FILE)), pipeline);
}

#[test]
fn a_pipeline_without_a_barrier_on_either_side() {
    // The producer overwrites what is being read, or comes round again before the consumer has come at all.
    let lines = ["buffer[lane] =", "buffer[31 - lane]", "emu::named_barrier(full, 64, false)"];
    let lines: Vec<_> = lines.iter().flat_map(|line| lines_with(FILE, line)).collect();
    let to = "if (step == 99) emu::named_barrier(empty, 64, ";
    let module =
        compile(&compiler(FILE).replace(FILE, "emu::named_barrier(empty, 64, true", &format!("{to}true")).replace(
            FILE,
            "emu::named_barrier(empty, 64, false",
            &format!("{to}false"),
        ));
    reports(&module, &[Kind::Race, Kind::Async], FILE, &lines, pipeline);
}

#[test]
fn a_pipeline_that_waits_for_nobody() {
    let module = mutant(FILE, "emu::named_barrier(full, 64, false);  // arrive at full", "");
    reports(&module, &[Kind::Deadlock], FILE, &lines_with(FILE, "emu::named_barrier("), pipeline);
}

#[test]
fn tensor_maps_that_the_driver_refuses() {
    let device = Device::new(compile(&compiler(FILE)), Schedule::from_seed(0));
    let address = device.alloc("matrix", 64 * 128).unwrap();
    let right = TensorMap2d {
        inner: 64,
        outer: 64,
        row_bytes: 128,
        box_inner: 64,
        box_outer: 64,
        element_bytes: 2,
        swizzle: 128,
    };
    device.tensor_map_2d(address, &right).unwrap();
    let wrong = [
        TensorMap2d { row_bytes: 120, ..right },
        TensorMap2d { inner: 65, ..right },
        TensorMap2d { box_outer: 257, ..right },
        TensorMap2d { box_inner: 4, ..right },
        TensorMap2d { swizzle: 64, ..right },
        TensorMap2d { box_inner: 32, ..right },
        TensorMap2d { inner: 0, ..right },
        TensorMap2d { outer: (1 << 32) + 1, ..right },
        TensorMap2d { row_bytes: 1 << 40, ..right },
        TensorMap2d { swizzle: 100, ..right },
        TensorMap2d { element_bytes: 3, ..right },
    ];
    for shape in wrong {
        device.tensor_map_2d(address, &shape).expect_err(&format!("{shape:?}"));
    }
    device.tensor_map_2d(address + 8, &right).expect_err("an address that is not aligned");
}
