//! What the tensor memory accelerator is told of a tensor.

/// A tensor in device memory, and the box of it that one copy of the tensor memory accelerator moves. Dimensions come
/// innermost first; arrays have more places than a tensor of lower rank uses.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct TensorMapShape {
    /// How many dimensions there are, 1 to 5.
    pub rank: u32,
    /// Bytes of an element.
    pub element_bytes: u32,
    /// Width of the swizzle in bytes: 0 (none), 32, 64 or 128. Rows of a box are as wide, if there is one.
    pub swizzle: u32,
    /// Elements of each dimension.
    pub dims: [u64; 5],
    /// Bytes from one element to the next along each dimension but the innermost.
    pub strides: [u64; 4],
    /// Elements of each dimension in a box.
    pub box_dims: [u32; 5],
}

impl TensorMapShape {
    /// A row-major matrix of rows of `inner` elements, `row_bytes` apart, and a box of `box_inner` elements of each of
    /// `box_outer` rows.
    pub fn matrix(element_bytes: u32, swizzle: u32, inner: u64, outer: u64, row_bytes: u64, boxes: [u32; 2]) -> Self {
        let (dims, strides) = ([inner, outer, 1, 1, 1], [row_bytes, 0, 0, 0]);
        Self { rank: 2, element_bytes, swizzle, dims, strides, box_dims: [boxes[0], boxes[1], 1, 1, 1] }
    }
}

/// What kernels take as a `CUtensorMap` parameter.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct TensorMap(pub(crate) [u64; 16]);

impl TensorMap {
    /// Its 128 bytes.
    pub fn words(&self) -> [u64; 16] {
        self.0
    }
}
