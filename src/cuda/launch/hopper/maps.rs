//! What the tensor memory accelerator is told of the operands of Hopper's products, and whether it can be.

use crate::cuda::abi;
use crate::cuda::device::tensor_map::BOX_BYTES;
use crate::cuda::device::{Elements, TensorBoxes};

/// Rows of weights that run along the depth, of which a block fetches so many at a time.
const WEIGHT_ROWS: u32 = 128;
/// Rows of all other boxes: of a plane in shared memory.
const ROWS: u32 = 64;
/// Bytes of a 16-bit element.
const HALF: u64 = 2;

const _: () = assert!(BOX_BYTES == 2 * ROWS, "a step of the depth is a box wide");

/// Where a matrix starts, and bytes between its rows, of its experts where it has some.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    address: u64,
    row: i64,
    expert: i64,
}

impl Matrix {
    /// One whose rows are so many elements of a size apart.
    pub(super) fn new<T>(address: *const T, stride: i64, is_f32: bool) -> Self {
        Self { address: address as u64, row: stride * if is_f32 { 4 } else { 2 }, expert: 16 }
    }

    /// One of each of some experts; a distance is asked for only where it is taken.
    pub(super) fn of_experts(self, experts: i32, stride: i64, is_f32: bool) -> Self {
        let size = if is_f32 { 4 } else { 2 };
        Self { expert: if experts > 1 { stride * size } else { self.expert }, ..self }
    }

    /// Whether every row starts at a multiple of 16 bytes, no further apart than a map can say.
    pub(super) fn is_aligned(&self) -> bool {
        let is_distance = |bytes: i64| bytes > 0 && bytes % 16 == 0 && bytes < 1 << 40;
        self.address.is_multiple_of(16) && is_distance(self.row) && is_distance(self.expert)
    }
}

/// Whether so many elements of 16 bits end where 16 bytes do.
pub(super) fn is_whole(elements: i32) -> bool {
    elements > 0 && elements % 8 == 0
}

/// Whether each stride is a multiple of the one before, as the driver's documentation has it.
pub(super) fn strides_nest(boxes: &TensorBoxes) -> bool {
    let strides = &boxes.strides[..boxes.rank - 1];
    strides.windows(2).all(|pair| pair[0] > 0 && pair[1].is_multiple_of(pair[0]))
}

/// `B[E, halves, columns, depth]`, whose rows run along the depth.
pub(super) fn weights(halves: u64, p: &abi::GroupedGemm) -> TensorBoxes {
    let row = p.b_stride as u64 * HALF;
    let half = row * p.columns as u64;
    let expert = if p.experts > 1 { p.b_expert_stride as u64 * HALF } else { halves * half };
    TensorBoxes {
        address: p.b as u64,
        elements: Elements::Half,
        rank: 4,
        extents: [p.depth as u64, p.columns as u64, halves, p.experts as u64],
        // One half is no step from anywhere.
        strides: [row, if halves == 1 { expert } else { half }, expert],
        heights: [WEIGHT_ROWS, 1, 1],
    }
}

/// `B[E, 1, depth, columns]`, whose rows run across it.
pub(super) fn weights_across(p: &abi::GroupedGemm) -> TensorBoxes {
    let row = p.b_stride as u64 * HALF;
    let expert = if p.experts > 1 { p.b_expert_stride as u64 * HALF } else { row * p.depth as u64 };
    TensorBoxes {
        address: p.b as u64,
        elements: Elements::Half,
        rank: 4,
        extents: [p.columns as u64, p.depth as u64, 1, p.experts as u64],
        strides: [row, expert, expert],
        heights: [ROWS, 1, 1],
    }
}

/// Rows of A as they lie.
pub(super) fn packed(p: &abi::GroupedGemm) -> TensorBoxes {
    TensorBoxes {
        address: p.a as u64,
        elements: Elements::Half,
        rank: 2,
        extents: [p.depth as u64, p.a_rows as u64, 1, 1],
        strides: [p.a_stride as u64 * HALF, 0, 0],
        heights: [ROWS, 1, 1],
    }
}

/// Rows of a weight's gradient's factor, which run across the depth: `[1, 1, rows, columns]`.
pub(super) fn factor(p: &abi::RoutedOperand) -> TensorBoxes {
    let row = p.stride as u64 * HALF;
    let all = row * p.sources as u64;
    TensorBoxes {
        address: p.rows as u64,
        elements: Elements::Half,
        rank: 4,
        extents: [p.columns as u64, p.sources as u64, 1, 1],
        strides: [row, all, all],
        heights: [ROWS, 1, 1],
    }
}

/// Rows of so many columns in each of one or two halves; a box ends where a half does.
pub(super) fn rows<T>(
    address: *const T,
    [columns, rows]: [i32; 2],
    halves: u64,
    stride: i64,
    is_f32: bool,
) -> TensorBoxes {
    let elements = elements(is_f32);
    let size = u64::from(elements.size());
    let row = stride as u64 * size;
    TensorBoxes {
        address: address as u64,
        elements,
        rank: 3,
        extents: [columns as u64, halves, rows as u64, 1],
        strides: [if halves == 1 { row } else { columns as u64 * size }, row, 0],
        heights: [1, ROWS, 1],
    }
}

/// The gradient of every expert's weight.
pub(super) fn gradient(p: &abi::WeightGradient) -> TensorBoxes {
    let elements = elements(p.out_f32 != 0);
    let size = u64::from(elements.size());
    let row = p.out_stride as u64 * size;
    let expert = if p.experts > 1 { p.out_expert_stride as u64 * size } else { row * p.left.columns as u64 };
    TensorBoxes {
        address: p.out as u64,
        elements,
        rank: 3,
        extents: [p.right.columns as u64, p.left.columns as u64, p.experts as u64, 1],
        strides: [row, expert, 0],
        heights: [ROWS, 1, 1],
    }
}

fn elements(is_f32: bool) -> Elements {
    if is_f32 { Elements::Float } else { Elements::Half }
}
