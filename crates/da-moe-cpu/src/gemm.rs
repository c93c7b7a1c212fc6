//! Single-threaded matrix products on f32 (the `faer` crate's), and the fusion around them: rows gathered and widened on
//! the way in, weights widened panel by panel so that half-precision storage never exists twice in memory.

use crate::scratch;
use crate::simd::{vectorized, widen};
use crate::views::Rows;
use da_moe_core::Storage;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// Elements of a weight panel: half a megabyte in f32, so that what the product packs of it stays in the second-level
/// cache. Measured on the shape c-mid: products with `W_in` a third faster than with the whole matrix at once.
const PANEL: usize = 128 * 1024;

/// A row-major f32 matrix, or the transpose of one.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    matrix: MatRef<'a, f32>,
}

impl<'a> Operand<'a> {
    pub fn new(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        let data = &data[..if rows == 0 { 0 } else { (rows - 1) * stride + cols }];
        Self { matrix: MatRef::from_row_major_slice_with_stride(data, rows, cols, stride) }
    }

    pub fn dense(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::new(data, rows, cols, cols)
    }

    pub fn transposed(self) -> Self {
        Self { matrix: self.matrix.transpose() }
    }
}

/// `c = a b`, or `c += a b`; `c` is row-major with row stride `stride`.
pub(crate) fn multiply(c: &mut [f32], stride: usize, a: Operand<'_>, b: Operand<'_>, accumulate: bool) {
    let (rows, cols, depth) = (a.matrix.nrows(), b.matrix.ncols(), a.matrix.ncols());
    if rows == 0 || cols == 0 {
        return;
    }
    let c = &mut c[..(rows - 1) * stride + cols];
    if depth == 0 {
        if !accumulate {
            c.chunks_mut(stride).for_each(|row| row[..cols].fill(0.0));
        }
        return;
    }
    // Not `from_row_major_slice_with_stride_mut`: in faer 0.24.4 it takes the stride for that of columns.
    let c = MatMut::from_column_major_slice_with_stride_mut(c, cols, rows, stride).transpose_mut();
    let mode = if accumulate { Accum::Add } else { Accum::Replace };
    matmul(c, mode, a.matrix, b.matrix, 1.0, Par::Seq);
}

/// Calls `body(first row, f32 panel, rows in it, row stride)` over the first `count` rows of `matrix`, in order.
fn panels<S: Storage>(matrix: Rows<'_, S>, count: usize, mut body: impl FnMut(usize, &[f32], usize, usize)) {
    let cols = matrix.cols;
    let most = (PANEL / cols.max(1)).max(1).next_multiple_of(64);
    let room = if S::as_f32(matrix.data).is_some() { 0 } else { most.min(count) * cols };
    scratch::with([room], |[panel]| {
        for first in (0..count).step_by(most) {
            let rows = most.min(count - first);
            if let Some(all) = S::as_f32(matrix.data) {
                body(first, &all[first * matrix.stride..], rows, matrix.stride);
                continue;
            }
            vectorized(
                #[inline(always)]
                || (0..rows).for_each(|row| widen(matrix.row(first + row), &mut panel[row * cols..][..cols])),
            );
            body(first, panel, rows, cols);
        }
    });
}

/// `c[m, n] = a[m, d] wᵀ` for weights `w[n, d]`.
pub(crate) fn times_transposed<S: Storage>(c: &mut [f32], a: &[f32], m: usize, w: Rows<'_, S>, n: usize) {
    let a = Operand::dense(a, m, w.cols);
    panels(w, n, |first, panel, rows, stride| {
        let panel = Operand::new(panel, rows, w.cols, stride).transposed();
        multiply(&mut c[first..], n, a, panel, false);
    });
}

/// `c[m, d] = a[m, n] w`, or `c += a w`, for weights `w[n, d]`.
pub(crate) fn times<S: Storage>(c: &mut [f32], a: &[f32], m: usize, w: Rows<'_, S>, n: usize, accumulate: bool) {
    if let Some(all) = S::as_f32(w.data) {
        // Nothing to widen, and panels would only make this product add to `c` once each.
        return multiply(c, w.cols, Operand::dense(a, m, n), Operand::new(all, n, w.cols, w.stride), accumulate);
    }
    panels(w, n, |first, panel, rows, stride| {
        let a = Operand::new(&a[first..], m, rows, n);
        multiply(c, w.cols, a, Operand::new(panel, rows, w.cols, stride), accumulate || first > 0);
    });
}

/// Copies and widens the rows `indices` of `matrix`, columns `first .. first + cols`, into dense `to`.
pub(crate) fn gather<S: Storage>(
    matrix: Rows<'_, S>,
    indices: impl Iterator<Item = usize>,
    first: usize,
    cols: usize,
    to: &mut [f32],
) {
    vectorized(
        #[inline(always)]
        || {
            for (index, to) in indices.zip(to.chunks_exact_mut(cols)) {
                widen(&matrix.row(index)[first..first + cols], to);
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use da_moe_core::bf16;

    /// Small integers, so that every order of summation is exact.
    fn integers(rows: usize, cols: usize, seed: usize) -> Vec<f32> {
        (0..rows * cols).map(|i| ((i * 7 + seed) % 5) as f32 - 2.0).collect()
    }

    fn naive(a: &[f32], b: impl Fn(usize, usize) -> f32, [m, n, k]: [usize; 3]) -> Vec<f32> {
        let element = |i: usize, j: usize| (0..k).map(|l| a[i * k + l] * b(l, j)).sum();
        (0..m * n).map(|at| element(at / n, at % n)).collect()
    }

    #[test]
    fn products_match_plain_loops_at_every_odd_size() {
        for [m, n, k] in
            [[0, 3, 2], [1, 1, 1], [3, 0, 2], [2, 3, 0], [5, 300, 7], [33, 17, 65], [129, 64, 257], [2, 3, 131_073]]
        {
            let (a, w) = (integers(m, k, 1), integers(n, k, 2));
            let half: Vec<bf16> = w.iter().map(|w| bf16::from_f32(*w)).collect();
            let exact = naive(&a, |l, j| w[j * k + l], [m, n, k]);
            let mut c = vec![f32::NAN; m * n];
            times_transposed(&mut c, &a, m, Rows { data: &w, stride: k, cols: k }, n);
            assert_eq!(c, exact, "f32 {m} {n} {k}");
            c.fill(f32::NAN);
            times_transposed(&mut c, &a, m, Rows { data: &half, stride: k, cols: k }, n);
            assert_eq!(c, exact, "bf16 {m} {n} {k}");

            let (a, w) = (integers(m, n, 1), integers(n, k, 2));
            let half: Vec<bf16> = w.iter().map(|w| bf16::from_f32(*w)).collect();
            let exact = naive(&a, |l, j| w[l * k + j], [m, k, n]);
            let mut c = vec![f32::NAN; m * k];
            times(&mut c, &a, m, Rows { data: &half, stride: k, cols: k }, n, false);
            if n > 0 {
                assert_eq!(c, exact, "bf16 {m} {n} {k}");
            }
            c.fill(1.0);
            times(&mut c, &a, m, Rows { data: &w, stride: k, cols: k }, n, true);
            assert_eq!(c, exact.iter().map(|e| e + 1.0).collect::<Vec<_>>(), "accumulated {m} {n} {k}");
        }
    }
}
