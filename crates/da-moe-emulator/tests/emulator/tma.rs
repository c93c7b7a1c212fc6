//! Boxes of tensors of any rank, loaded and stored by the tensor memory accelerator, and its order with everything else.

use da_moe_emulator::{Device, Error, Kind, TensorMapShape};

use crate::common::{compile, compiler, download, input, lines_with, mutant, output, parameter, passes, reports};

const FILE: &str = "tma.cu";

/// A tensor of 16-bit elements with padding between rows, and boxes of it.
fn tensor(dims: &[u64], box_dims: &[u32], swizzle: u32) -> TensorMapShape {
    let mut shape = TensorMapShape {
        rank: dims.len() as u32,
        element_bytes: 2,
        swizzle,
        dims: [1; 5],
        strides: [0; 4],
        box_dims: [1; 5],
    };
    shape.dims[..dims.len()].copy_from_slice(dims);
    shape.box_dims[..dims.len()].copy_from_slice(box_dims);
    let mut stride = (dims[0] * 2).next_multiple_of(16) + 16;
    for i in 0..dims.len() - 1 {
        shape.strides[i] = stride;
        stride = stride * dims[i + 1] + 16;
    }
    shape
}

/// Bytes from the tensor's start to behind its last element.
fn bytes(shape: &TensorMapShape) -> usize {
    let last: u64 = shape.strides.iter().zip(&shape.dims[1..]).map(|(stride, dim)| stride * (dim - 1)).sum();
    (last + shape.dims[0] * 2) as usize
}

/// The element at coordinates, if the tensor has it.
fn place(shape: &TensorMapShape, at: [i64; 5]) -> Option<usize> {
    let inside = at.iter().zip(&shape.dims).all(|(&x, &dim)| (0..dim as i64).contains(&x));
    let outer: i64 = at[1..].iter().zip(&shape.strides).map(|(x, &stride)| x * stride as i64).sum();
    inside.then(|| (at[0] + outer / 2) as usize)
}

/// Coordinates in a box.
fn coordinates(shape: &TensorMapShape) -> Vec<[i64; 5]> {
    let mut all = vec![[0; 5]];
    for i in 0..5 {
        let along = |at: &[i64; 5]| {
            let at = *at;
            (0..i64::from(shape.box_dims[i])).map(move |x| {
                let mut moved = at;
                moved[i] = x;
                moved
            })
        };
        all = all.iter().flat_map(along).collect();
    }
    all
}

fn moved(at: [i64; 5], by: [i32; 5]) -> [i64; 5] {
    std::array::from_fn(|i| at[i] + i64::from(by[i]))
}

fn copy(device: &Device, from: &TensorMapShape, to: &TensorMapShape, at: [[i32; 5]; 2]) -> Result<(), Error> {
    let elements: Vec<u16> = (0..bytes(from) / 2).map(|i| i as u16 + 1).collect();
    let (source, target) = (input(device, "source", &elements), output::<u16>(device, "target", bytes(to) / 2));
    let (from_map, to_map) = (device.tensor_map(source, from)?, device.tensor_map(target, to)?);
    let [from_at, to_at] = at.map(|at| std::array::from_fn(|i| if i < from.rank as usize { at[i] } else { 0 }));
    let size: u32 = from.box_dims.iter().product::<u32>() * 2;
    let parameters = [
        parameter(&from_map),
        parameter(&to_map),
        parameter(&from_at),
        parameter(&to_at),
        parameter(&from.rank),
        parameter(&size),
    ];
    // SAFETY: two tensor maps, two arrays of five ints and two ints, as the kernel takes them.
    unsafe { device.launch("copy_box", [1, 1, 1], [32, 1, 1], size, &parameters)? };
    let found = download::<u16>(device, target, bytes(to) / 2);
    let mut written = 0;
    for element in coordinates(from) {
        if let Some(target) = place(to, moved(element, to_at)) {
            let expected = place(from, moved(element, from_at)).map_or(0, |source| elements[source]);
            assert_eq!(found[target], expected, "{from:?} to {to:?}, {at:?}, {element:?}");
            written += 2;
        }
    }
    assert_eq!(device.unwritten(target)?, bytes(to) - written, "{from:?} to {to:?}, {at:?}");
    Ok(())
}

/// The dimensions of two tensors and of a box, and a swizzle.
type Case = ([&'static [u64]; 2], &'static [u32], u32);

#[test]
fn boxes_of_every_rank_go_in_and_out() {
    let cases: [Case; 6] = [
        ([&[300], &[280]], &[256], 0),
        ([&[70, 9], &[72, 7]], &[64, 8], 128),
        ([&[20, 5, 4], &[17, 6, 3]], &[16, 4, 3], 32),
        ([&[64, 10, 2, 1], &[64, 9, 3, 1]], &[64, 8, 2, 1], 128),
        ([&[33, 3, 1, 4, 3], &[40, 2, 2, 3, 4]], &[32, 2, 1, 3, 2], 64),
        ([&[24, 1, 3, 1, 2], &[24, 1, 3, 1, 2]], &[24, 1, 2, 1, 2], 0),
    ];
    let places = [[[0; 5]; 2], [[3, 2, 1, 0, 1], [0; 5]], [[-5, -1, 0, 1, 0], [2, -3, 1, 0, -1]], [[0; 5], [400; 5]]];
    passes(&compile(&compiler(FILE)), |device| {
        for ([from, to], boxes, swizzle) in cases {
            for at in places {
                copy(device, &tensor(from, boxes, swizzle), &tensor(to, boxes, 0).with_swizzle(swizzle), at)?;
            }
        }
        Ok(())
    });
}

/// Swizzles are of shared memory alone: if it is stored with another than it was loaded with, pieces change their places.
#[test]
fn a_store_with_another_swizzle() {
    let shape = tensor(&[64, 8], &[64, 8], 128);
    let module = compile(&compiler(FILE));
    passes(&module, |device| {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            copy(device, &shape, &shape.with_swizzle(0), [[0; 5]; 2])
        }));
        assert!(result.is_err(), "the copy is right");
        Ok(())
    });
}

trait WithSwizzle {
    fn with_swizzle(self, swizzle: u32) -> Self;
}

impl WithSwizzle for TensorMapShape {
    fn with_swizzle(self, swizzle: u32) -> Self {
        Self { swizzle, ..self }
    }
}

/// 16 rows of 16 ints, of which `written` are, in an allocation of `rows` rows.
fn load_two(device: &Device, rows: usize, written: usize) -> Result<(), Error> {
    let source = output::<i32>(device, "source", rows * 16);
    let values: Vec<u8> = (0..written as i32 * 16).flat_map(i32::to_le_bytes).collect();
    device.upload(source, &values)?;
    let map = device.tensor_map(source, &TensorMapShape::matrix(4, 0, 16, 16, 64, [16, 8]))?;
    let sums = output::<i32>(device, "sums", 32);
    let parameters = [parameter(&map), parameter(&source), parameter(&sums)];
    // SAFETY: a tensor map and two addresses, as the kernel takes them.
    unsafe { device.launch("load_two", [1, 1, 1], [32, 1, 1], 1024, &parameters)? };
    if written == 16 {
        assert_eq!(download::<i32>(device, sums, 32).iter().sum::<i32>(), (0..256).sum());
    }
    assert_eq!(device.unwritten(sums)?, 0);
    Ok(())
}

fn load_bug(kinds: &[Kind], from: &str, to: &str, line: &str) {
    reports(&mutant(FILE, from, to), kinds, FILE, &lines_with(FILE, line), |device| load_two(device, 16, 16));
}

#[test]
fn loads_take_along_what_nothing_has_written() {
    let module = compile(&compiler(FILE));
    passes(&module, |device| load_two(device, 16, 16));
    passes(&module, |device| load_two(device, 16, 11));
    // But not what is outside of the allocation.
    reports(&module, &[Kind::OutOfBounds], FILE, &lines_with(FILE, "full, 2, second)"), |device| {
        load_two(device, 15, 11)
    });
}

#[test]
fn loads_are_ordered_with_other_writes_of_both_sides() {
    load_bug(&[Kind::Race], "tile + 512, &map, full, 2, second", "tile + 384, &map, full, 2, second", "full, 2, ");
    load_bug(
        &[Kind::Race],
        "if (t == 0) {\n        emu::mbarrier_arrive",
        "if (t == 5) source[8] = 8;\n    if (t == 0) {\n        emu::mbarrier_arrive",
        "full, 2, ",
    );
    load_bug(
        &[Kind::Race, Kind::Uninitialised],
        "    gpu::mbar_wait(full, 0);\n    int total",
        "    if (t != 1) gpu::mbar_wait(full, 0);\n    int total",
        "int*>(sm)[i]",
    );
}

#[test]
fn a_block_that_ends_before_its_loads_have_come() {
    load_bug(&[Kind::Async], "    gpu::mbar_wait(full, 0);\n    int total", "    return;\n    int total", "full, 2, ");
}

#[test]
fn instructions_with_maps_that_they_cannot_use() {
    load_bug(&[Kind::Async], "full, 2, second", "full, 3, second", "full, 2, second");
    load_bug(&[Kind::Misaligned], "tile + 512", "tile + 576", "full, 2, second");
    load_bug(&[Kind::OutOfBounds], "tile + 512", "tile + 640", "full, 2, second");
}

#[test]
fn a_thread_that_ends_before_its_store_has_read() {
    let module = compile(&compiler(FILE).replace(FILE, "        emu::bulk_wait(0, true);\n", ""));
    let shape = tensor(&[64, 8], &[64, 8], 0);
    reports(&module, &[Kind::Async], FILE, &lines_with(FILE, "gpu::tma_store(&to"), |device| {
        copy(device, &shape, &shape, [[0; 5]; 2])
    });
}
