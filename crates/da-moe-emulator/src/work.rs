//! What kernels ask of a device.

/// How much the kernels of a device have asked for: what costs time on a GPU and shows in no result. A test that knows how
/// much is needed can tell that no more is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Work {
    /// Multiplications, each with its addition, of `mma.sync` and `wgmma`: m·n·k an instruction.
    pub multiply_adds: u64,
    /// Bytes of shared memory that `cp.async` and the tensor memory accelerator have filled, zeros included.
    pub copied_bytes: u64,
    /// Bytes that loads and `ldmatrix` have read of shared memory. The host compiler may have joined loads of one address.
    pub shared_read_bytes: u64,
}
