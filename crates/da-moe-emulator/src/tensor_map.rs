//! What the tensor memory accelerator is told of a tensor.

/// A row-major matrix in device memory, and the box of it that one copy of the tensor memory accelerator moves.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct TensorMap2d {
    /// Elements in a row.
    pub inner: u64,
    /// Rows.
    pub outer: u64,
    /// Bytes from one row to the next.
    pub row_bytes: u64,
    /// Elements of a row in a box.
    pub box_inner: u32,
    /// Rows in a box.
    pub box_outer: u32,
    /// Bytes of an element.
    pub element_bytes: u32,
    /// Width of the swizzle in bytes: 0 (none), 32, 64 or 128. Rows of a box are as wide, if there is one.
    pub swizzle: u32,
}

/// What kernels take as a `CUtensorMap` parameter.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct TensorMap(pub(crate) [u64; 16]);
