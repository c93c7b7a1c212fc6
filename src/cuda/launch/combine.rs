//! Which kernel combines, and with how many threads (`kernels/combine/combine.cu`).

use crate::cuda::abi;
use crate::cuda::cost::{Contents, Work, element_size, row_size};
use crate::cuda::device::{Call, Launch, Parameters, Target};
use crate::cuda::launch::vectorized::{self, are_aligned, are_whole};
use crate::{DType, NullExpert};

/// The one launch of combine; none where there is nothing to write. `storage` is the type of `x`, constants and `y`;
/// `rows` that of rows and shared: the same, or f32.
pub fn calls(_: Target, storage: DType, rows: DType, p: abi::Combine) -> impl Iterator<Item = Call> {
    let vector = if is_wide(storage, rows, &p) { vectorized::wide(storage) } else { 1 };
    let launch = vectorized::launch(kernel(storage, rows, &p), p.tokens, p.width, vector);
    (p.tokens > 0 && p.width > 0).then(|| Call::new(launch, p)).into_iter()
}

/// What null experts return, as the kernels know it.
pub fn null_kind(null_expert: NullExpert) -> i32 {
    match null_expert {
        NullExpert::Zero => abi::NULL_ZERO,
        NullExpert::Copy => abi::NULL_COPY,
        NullExpert::Constant => abi::NULL_CONSTANT,
    }
}

/// Whether every row of every tensor starts and ends at a multiple of 128 bits.
fn is_wide(storage: DType, rows: DType, p: &abi::Combine) -> bool {
    are_whole(storage, [i64::from(p.width), p.x_stride, p.constants_stride])
        && are_whole(rows, [p.rows_stride, p.shared_stride])
        && are_aligned([p.x as usize, p.constants as usize, p.rows as usize, p.shared as usize, p.y as usize])
}

fn kernel(storage: DType, rows: DType, p: &abi::Combine) -> &'static str {
    match (storage, rows == storage, is_wide(storage, rows, p)) {
        (DType::Bf16, true, false) => "combine_bf16",
        (DType::Bf16, true, true) => "combine_bf16_wide",
        (DType::Bf16, false, false) => "combine_bf16_f32rows",
        (DType::Bf16, false, true) => "combine_bf16_f32rows_wide",
        (DType::F16, true, false) => "combine_f16",
        (DType::F16, true, true) => "combine_f16_wide",
        (DType::F16, false, false) => "combine_f16_f32rows",
        (DType::F16, false, true) => "combine_f16_f32rows_wide",
        (_, _, false) => "combine_f32",
        (_, _, true) => "combine_f32_wide",
    }
}

impl Parameters for abi::Combine {
    fn work(&self, launch: &Launch, contents: &Contents) -> Work {
        let rows = contents.rows.min(self.row_count as usize) as f64;
        let shared = if self.shared.is_null() { 0.0 } else { 1.0 };
        let tokens = f64::from(self.tokens);
        let of_column = row_size(launch.kernel) * (rows + shared * tokens) + element_size(launch.kernel) * tokens;
        Work::moved(of_column * f64::from(self.width) + 12.0 * tokens * f64::from(self.slots), launch.blocks())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::device::Launch;

    fn of_width(width: i32) -> abi::Combine {
        let stride = i64::from(width);
        abi::Combine { tokens: 9, width, x_stride: stride, rows_stride: stride, ..Default::default() }
    }

    fn only(storage: DType, rows: DType, p: abi::Combine) -> Launch {
        calls(Target::H100, storage, rows, p).next().unwrap().launch
    }

    #[test]
    fn whole_rows_of_128_bits_are_moved_at_once() {
        assert_eq!(only(DType::F32, DType::F32, of_width(12)).kernel, "combine_f32_wide");
        assert_eq!(only(DType::F32, DType::F32, of_width(13)).kernel, "combine_f32");
        assert_eq!(only(DType::Bf16, DType::F32, of_width(16)).kernel, "combine_bf16_f32rows_wide");
        assert_eq!(only(DType::F16, DType::F16, of_width(12)).kernel, "combine_f16");
        let misaligned = abi::Combine { y: 8 as *mut _, ..of_width(16) };
        assert_eq!(only(DType::Bf16, DType::Bf16, misaligned).kernel, "combine_bf16");
        let padded = abi::Combine { x_stride: 19, ..of_width(16) };
        assert_eq!(only(DType::Bf16, DType::Bf16, padded).kernel, "combine_bf16");
    }

    #[test]
    fn every_column_of_every_token_has_a_lane() {
        assert_eq!(only(DType::Bf16, DType::Bf16, of_width(2048)).grid, [2, 4, 1]);
        assert_eq!(only(DType::F32, DType::F32, of_width(65)).grid, [2, 2, 1]);
        assert_eq!(calls(Target::H100, DType::F32, DType::F32, abi::Combine::default()).count(), 0);
    }
}
