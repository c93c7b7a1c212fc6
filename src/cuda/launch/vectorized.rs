//! How warps divide rows among themselves (`kernels/device/columns.cuh`), and when rows can be moved 128 bits at a time.

use crate::DType;
use crate::cuda::device::Launch;

const WARP: usize = 32;
/// Rows of a block: one a warp.
const WARPS: usize = 8;
/// Vectors of columns that a lane has.
const VECTORS: usize = 2;

/// Elements that 128 bits hold.
pub(in crate::cuda) fn wide(storage: DType) -> usize {
    16 / storage.size()
}

/// Threads for every row and column, `vector` elements at once.
pub(in crate::cuda) fn launch(kernel: &'static str, rows: i32, width: i32, vector: usize) -> Launch {
    let grid = [(rows as usize).div_ceil(WARPS) as u32, (width as usize).div_ceil(WARP * VECTORS * vector) as u32, 1];
    Launch { kernel, grid, threads: (WARPS * WARP) as u32, shared: 0, cluster: 1 }
}

/// Whether so many elements are multiples of 128 bits: widths and strides.
pub(in crate::cuda) fn are_whole<const N: usize>(dtype: DType, counts: [i64; N]) -> bool {
    counts.into_iter().all(|count| (count.unsigned_abs() as usize * dtype.size()).is_multiple_of(16))
}

/// Whether addresses are multiples of 128 bits.
pub(in crate::cuda) fn are_aligned<const N: usize>(addresses: [usize; N]) -> bool {
    addresses.into_iter().all(|address| address.is_multiple_of(16))
}

/// The kernel for a storage type: of f32, bf16 and f16, each one that moves elements and one that moves 128 bits.
pub(in crate::cuda) fn of_type(kernels: [[&'static str; 2]; 3], storage: DType, is_wide: bool) -> &'static str {
    let index = match storage {
        DType::Bf16 => 1,
        DType::F16 => 2,
        _ => 0,
    };
    kernels[index][usize::from(is_wide)]
}
