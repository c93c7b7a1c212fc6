//! Tensor maps: what is encoded, what kernels make of it, and what is refused.

use std::ptr::{null, null_mut};

use crate::image::kernel;
use crate::library::{Cuda, LEGACY, alone};

/// A map where a kernel wants one.
#[repr(C, align(64))]
struct Map([u64; 16]);

/// What is encoded: three dimensions, the first 32 numbers of each of 8 rows as a box.
#[derive(Clone, Copy)]
struct Tensor {
    address: u64,
    elements: i32,
    rank: u32,
    extents: [u64; 3],
    strides: [u64; 2],
    box_extents: [u32; 3],
    steps: [u32; 3],
    interleave: i32,
    swizzle: i32,
    promotion: i32,
    fill: i32,
}

const FLOAT32: i32 = 7;
const SWIZZLE_128B: i32 = 3;

/// Two halves of 24 columns in rows of 64 numbers, `rows` of them.
fn tensor(address: u64, rows: u64) -> Tensor {
    Tensor {
        address,
        elements: FLOAT32,
        rank: 3,
        extents: [24, 2, rows],
        strides: [128, 256],
        box_extents: [32, 1, 8],
        steps: [1; 3],
        interleave: 0,
        swizzle: SWIZZLE_128B,
        promotion: 3,
        fill: 0,
    }
}

fn encode_to(cuda: &Cuda, map: *mut u64, of: &Tensor) -> i32 {
    let (extents, strides) = (of.extents.as_ptr(), of.strides.as_ptr());
    let (boxes, steps) = (of.box_extents.as_ptr(), of.steps.as_ptr());
    let (interleave, swizzle, promotion, fill) = (of.interleave, of.swizzle, of.promotion, of.fill);
    let (elements, rank, address) = (of.elements, of.rank, of.address);
    cuda.tensor_map(map, elements, rank, address, extents, strides, boxes, steps, interleave, swizzle, promotion, fill)
}

fn encode(cuda: &Cuda, tensor: &Tensor) -> (i32, Map) {
    let mut map = Map([0; 16]);
    (encode_to(cuda, map.0.as_mut_ptr(), tensor), map)
}

#[test]
fn a_kernel_gets_the_box_that_its_map_says() {
    let (cuda, _) = Cuda::open();
    let function = cuda.loaded(kernel("first_box", &[128, 8]));
    let numbers: Vec<i32> = (0..64 * 5).collect();
    let (tensor, mut out) = (tensor(cuda.memory(&numbers), 5), cuda.memory(&[-1; 256]));
    let (encoded, mut map) = encode(&cuda, &tensor);
    assert_eq!(encoded, 0);
    let mut parameters = [map.0.as_mut_ptr().cast(), (&raw mut out).cast()];
    let started = cuda.launch(function, 1, 1, 1, 32, 1, 1, 1024, LEGACY, parameters.as_mut_ptr(), null_mut());
    assert_eq!((started, cuda.wait(LEGACY)), (0, 0));
    // Pieces of four numbers are exchanged within a row; outside of the tensor are zeros.
    let expected: Vec<i32> = (0..256)
        .map(|place| {
            let (row, column) = (place / 32, ((place % 32 / 4) ^ (place / 32 % 8)) * 4 + place % 4);
            if row < 5 && column < 24 { 64 * row + column } else { 0 }
        })
        .collect();
    assert_eq!(cuda.values::<256>(out).to_vec(), expected);
}

#[test]
fn what_is_no_map_is_refused() {
    let (cuda, _) = Cuda::open();
    let right = tensor(cuda.memory(&[0; 512]), 8);
    assert_eq!(encode(&cuda, &right).0, 0);
    let narrow = [16, 1, 8];
    assert_eq!(encode(&cuda, &Tensor { box_extents: narrow, swizzle: 2, ..right }).0, 0, "64 bytes");
    for (elements, size) in [(1, 2), (6, 2), (9, 2), (2, 4)] {
        let box_extents = [128 / size, 1, 8];
        assert_eq!(encode(&cuda, &Tensor { elements, box_extents, ..right }).0, 0, "elements {elements}");
    }
    for (number, wrong) in [
        Tensor { address: right.address + 8, ..right },
        Tensor { address: 64, ..right },
        Tensor { elements: 10, ..right },
        Tensor { elements: -1, ..right },
        Tensor { rank: 0, ..right },
        Tensor { rank: 6, ..right },
        Tensor { extents: [0, 2, 8], ..right },
        Tensor { extents: [24, 2, (1 << 32) + 1], ..right },
        Tensor { strides: [136, 256], ..right },
        Tensor { strides: [128, 1 << 40], ..right },
        Tensor { box_extents: [32, 0, 8], ..right },
        Tensor { box_extents: [32, 1, 257], ..right },
        // Half of 16 bytes, and more than the swizzle is wide.
        Tensor { box_extents: [2, 1, 8], ..right },
        Tensor { box_extents: [64, 1, 8], ..right },
        Tensor { steps: [1, 1, 2], ..right },
        Tensor { interleave: 1, ..right },
        Tensor { swizzle: 4, ..right },
        Tensor { promotion: 4, ..right },
        Tensor { fill: 1, ..right },
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(encode(&cuda, &wrong).0, 1, "{number}");
    }
    let mut maps = [Map([0; 16]), Map([0; 16])];
    assert_eq!(encode_to(&cuda, maps[0].0.as_mut_ptr().wrapping_add(4), &right), 1, "32 bytes behind a right place");
    assert_eq!(encode_to(&cuda, null_mut(), &right), 1);
    let steps = [1; 3];
    let nothing = cuda.tensor_map(
        maps[0].0.as_mut_ptr(),
        FLOAT32,
        3,
        right.address,
        null(),
        null(),
        null(),
        steps.as_ptr(),
        0,
        3,
        0,
        0,
    );
    assert_eq!(nothing, 1, "no extents");
}

#[test]
fn no_context_is_needed_but_a_driver_that_was_started() {
    let cuda = Cuda::load_library();
    assert_eq!(encode(&cuda, &tensor(256, 8)).0, 3);
    let (cuda, _) = Cuda::open();
    let address = cuda.memory(&[0; 512]);
    assert_eq!(cuda.set_current(null_mut()), 0);
    assert_eq!(encode(&cuda, &tensor(address, 8)).0, 0);
}

#[test]
fn gpus_before_hopper_have_no_maps() {
    for (architecture, result) in [("80", 801), ("90", 0), ("100", 0)] {
        let settings = [("EMULATED_CUDA_ARCHITECTURE", architecture)];
        if alone("tensor_maps::gpus_before_hopper_have_no_maps", &settings) {
            let (cuda, _) = Cuda::open();
            assert_eq!(encode(&cuda, &tensor(cuda.memory(&[0; 512]), 8)).0, result);
        }
    }
}
