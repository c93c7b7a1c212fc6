//! What a launch costs at least, by arithmetic alone: the bytes that it has to move, the operations that are of use, and
//! the time that a machine of known rates needs for them. A model to hold measurements against, not a measurement. What each
//! kernel moves and multiplies is said in `launch`, where it is chosen.

pub mod hopper;
mod machine;

pub use crate::cuda::cost::machine::{Bound, Machine};

/// What a launch does, whatever machine does it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Work {
    /// Read from memory and written to it when nothing is read twice.
    pub bytes: f64,
    /// Multiplications and additions of use: padding and bookkeeping do not count.
    pub operations: f64,
    /// What the operations run on.
    pub unit: Unit,
    /// Pieces that the work is cut into: tiles of a product, else blocks.
    pub tiles: u64,
    /// Bytes that multiprocessors read and write: what is read by several counts for each.
    pub l2_bytes: f64,
    /// Wavefronts of shared memory, in products.
    pub wavefronts: f64,
    /// Instructions of warps that are issued in products' main loops.
    pub instructions: f64,
}

impl Work {
    /// So many bytes moved once, by so many blocks, and nothing multiplied that counts.
    pub(in crate::cuda) fn moved(bytes: f64, blocks: u64) -> Self {
        Self {
            bytes,
            operations: 0.0,
            unit: Unit::Scalar,
            tiles: blocks,
            l2_bytes: bytes,
            wavefronts: 0.0,
            instructions: 0.0,
        }
    }
}

/// What multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Tensor cores on 16-bit factors, by `wgmma`.
    Wgmma16,
    /// The same by `mma.sync`.
    Tensor16,
    /// Tensor cores on TF32 factors.
    Tensor32,
    /// The ordinary f32 units.
    Scalar,
}

/// What the parameters of a launch do not say, because only the device knows it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Contents {
    /// R, routed rows, spread evenly over the experts.
    pub rows: usize,
    /// Pairs of query and key, over all sequences, of one head.
    pub pairs: f64,
}

impl Contents {
    /// Rows that there are, of a kernel's `rows` at most; `offsets` is null where that many are there.
    pub(in crate::cuda) fn rows(&self, offsets: *const i32, rows: i32) -> f64 {
        (if offsets.is_null() { rows as usize } else { self.rows.min(rows as usize) }) as f64
    }
}

/// Bytes moved for an element of a gradient: what is added to is read too.
pub(in crate::cuda) fn written(out_f32: i32, beta: f32, size: f64) -> f64 {
    (if out_f32 == 0 { size } else { 4.0 }) * if beta == 0.0 { 1.0 } else { 2.0 }
}

/// Bytes of an element by the name of a kernel: both 16-bit types have "f16" in theirs.
pub(in crate::cuda) fn element_size(kernel: &str) -> f64 {
    if kernel.contains("f16") { 2.0 } else { 4.0 }
}

/// Bytes of an element of the rows that a kernel adds up, by its name.
pub(in crate::cuda) fn row_size(kernel: &str) -> f64 {
    if kernel.contains("f32rows") { 4.0 } else { element_size(kernel) }
}
