//! Which kernel sums the rows' gradients back to their tokens, and with how many threads (`kernels/permute/permute_backward.cu`).

use crate::DType;
use crate::cuda::abi;
use crate::cuda::cost::{Contents, Work, row_size};
use crate::cuda::device::{Call, Launch, Parameters, Target};
use crate::cuda::launch::vectorized::{self, are_aligned, are_whole, of_type};

/// The one launch; none where there is nothing to write. `storage` is the type of `dy`; `rows` that of rows and shared: the
/// same, or f32.
pub fn calls(_: Target, storage: DType, rows: DType, p: abi::PermuteBackward) -> impl Iterator<Item = Call> {
    let is_wide = is_wide(storage, rows, &p);
    let vector = if is_wide { vectorized::wide(storage) } else { 1 };
    let kernels = if rows == storage { KERNELS } else { F32_ROWS };
    let launch = vectorized::launch(of_type(kernels, storage, is_wide), p.tokens, p.width, vector);
    (p.tokens > 0 && p.width > 0).then(|| Call::new(launch, p)).into_iter()
}

const KERNELS: [[&str; 2]; 3] = [
    ["permute_backward_f32", "permute_backward_f32_wide"],
    ["permute_backward_bf16", "permute_backward_bf16_wide"],
    ["permute_backward_f16", "permute_backward_f16_wide"],
];

const F32_ROWS: [[&str; 2]; 3] = [
    KERNELS[0],
    ["permute_backward_bf16_f32rows", "permute_backward_bf16_f32rows_wide"],
    ["permute_backward_f16_f32rows", "permute_backward_f16_f32rows_wide"],
];

/// Whether every row of every tensor starts and ends at a multiple of 128 bits.
fn is_wide(storage: DType, rows: DType, p: &abi::PermuteBackward) -> bool {
    are_whole(storage, [i64::from(p.width), p.dy_stride])
        && are_whole(rows, [p.dx_rows_stride, p.shared_stride])
        && are_aligned([p.dy as usize, p.dx_rows as usize, p.shared_dx as usize, p.dx as usize])
}

impl Parameters for abi::PermuteBackward {
    fn work(&self, launch: &Launch, contents: &Contents) -> Work {
        let rows = contents.rows.min(self.row_count as usize) as f64;
        let shared = if self.shared_dx.is_null() { 0.0 } else { 1.0 };
        let tokens = f64::from(self.tokens);
        let of_column = row_size(launch.kernel) * (rows + shared * tokens) + 4.0 * tokens;
        Work::moved(of_column * f64::from(self.width) + 16.0 * tokens * f64::from(self.slots), launch.blocks())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_rows_of_128_bits_are_moved_at_once() {
        let of_width = |width: i32| {
            let stride = i64::from(width);
            let strides = abi::PermuteBackward { dy_stride: stride, dx_rows_stride: stride, ..Default::default() };
            abi::PermuteBackward { tokens: 9, width, ..strides }
        };
        let only = |storage, rows, p| {
            calls(Target::H100, storage, rows, p).next().map(|call| (call.launch.kernel, call.launch.grid)).unwrap()
        };
        assert_eq!(only(DType::F32, DType::F32, of_width(132)), ("permute_backward_f32_wide", [2, 1, 1]));
        assert_eq!(only(DType::F32, DType::F32, of_width(131)), ("permute_backward_f32", [2, 3, 1]));
        assert_eq!(only(DType::Bf16, DType::Bf16, of_width(2048)), ("permute_backward_bf16_wide", [2, 4, 1]));
        let ragged = abi::PermuteBackward { dx_rows_stride: 18, ..of_width(16) };
        assert_eq!(only(DType::F16, DType::F32, ragged), ("permute_backward_f16_f32rows", [2, 1, 1]));
        // Four elements are 128 bits in f32 alone.
        let ragged = abi::PermuteBackward { dx_rows_stride: 20, ..of_width(16) };
        assert_eq!(only(DType::Bf16, DType::F32, ragged), ("permute_backward_bf16_f32rows_wide", [2, 1, 1]));
        assert_eq!(only(DType::Bf16, DType::Bf16, ragged), ("permute_backward_bf16", [2, 1, 1]));
        assert_eq!(calls(Target::H100, DType::F32, DType::F32, abi::PermuteBackward::default()).count(), 0);
    }
}
