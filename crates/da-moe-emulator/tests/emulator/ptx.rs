//! Single PTX services.

use da_moe_emulator::{Device, Error, Kind, Schedule, TensorMapShape};
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

#[test]
fn reciprocals_have_no_subnormals() {
    let (smallest, infinity) = (f32::MIN_POSITIVE, f32::INFINITY);
    let cases = [
        (3.0, 1.0 / 3.0),
        (-0.25, -4.0),
        (smallest, 1.0 / smallest),
        (smallest / 2.0, infinity),
        (-smallest / 2.0, -infinity),
        (0.0, infinity),
        (-0.0, -infinity),
        (infinity, 0.0),
        (-infinity, -0.0),
        (1.0 / smallest, smallest),
        (1.5 / smallest, 0.0),
        (-f32::MAX, -0.0),
    ];
    let values: Vec<f32> = cases.iter().map(|case| case.0).chain([f32::NAN]).collect();
    passes(&compile(&compiler(FILE)), |device| {
        let (at, out) = (input(device, "in", &values), output::<f32>(device, "out", values.len()));
        let threads = [values.len() as u32, 1, 1];
        // SAFETY: two addresses, as the kernel takes them.
        unsafe { device.launch("reciprocals", [1, 1, 1], threads, 0, &[parameter(&at), parameter(&out)])? };
        let found = download::<f32>(device, out, values.len());
        for ((x, expected), found) in cases.iter().zip(&found) {
            assert_eq!(found.to_bits(), expected.to_bits(), "1 / {x:e}: {found:e} instead of {expected:e}");
        }
        assert!(found[cases.len()].is_nan());
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
    let right = TensorMapShape::matrix(2, 128, 64, 64, 128, [64, 64]);
    device.tensor_map(address, &right).unwrap();
    let with_dims = |inner, outer| TensorMapShape { dims: [inner, outer, 1, 1, 1], ..right };
    let with_stride = |bytes| TensorMapShape { strides: [bytes, 0, 0, 0], ..right };
    let with_box = |inner, outer| TensorMapShape { box_dims: [inner, outer, 1, 1, 1], ..right };
    let wrong = [
        with_stride(120),
        with_stride(1 << 40),
        with_stride(0),
        with_dims(65, 64),
        with_dims(0, 64),
        with_dims(64, (1 << 32) + 1),
        with_box(64, 257),
        with_box(64, 0),
        with_box(4, 64),
        with_box(32, 64),
        TensorMapShape { swizzle: 64, ..right },
        TensorMapShape { swizzle: 100, ..right },
        TensorMapShape { element_bytes: 3, ..right },
        TensorMapShape { rank: 0, ..right },
        TensorMapShape { rank: 6, ..right },
        TensorMapShape { rank: 3, dims: [64, 64, 2, 1, 1], ..right },
        TensorMapShape { rank: 3, box_dims: [64, 64, 0, 1, 1], ..right },
    ];
    for shape in wrong {
        device.tensor_map(address, &shape).expect_err(&format!("{shape:?}"));
    }
    device.tensor_map(address + 8, &right).expect_err("an address that is not aligned");
    // Tiles of rows lie closer together than rows, and the stride of a dimension of one element counts for nothing.
    let tiles = TensorMapShape { rank: 4, dims: [64, 64, 2, 1, 1], strides: [256, 128, 0, 0], ..right };
    device.tensor_map(address, &tiles).unwrap();
}
