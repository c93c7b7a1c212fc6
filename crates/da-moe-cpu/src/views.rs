//! Typed, row-wise reading of checked views.

use da_moe_core::{Element, Error, Result, Storage, TensorMut, TensorRef};

/// A matrix of which rows are read: the last dimension is contiguous, rows may be strided.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a, S> {
    pub data: &'a [S],
    pub stride: usize,
    pub cols: usize,
}

impl<'a, S: Copy> Rows<'a, S> {
    #[inline(always)]
    pub fn row(&self, index: usize) -> &'a [S] {
        &self.data[index * self.stride..][..self.cols]
    }
}

/// The rows of a rank-2 view.
pub(crate) fn rows<'a, S: Element>(
    op: &'static str,
    argument: &'static str,
    view: &TensorRef<'a, 2>,
) -> Result<Rows<'a, S>> {
    let data = view.host_elements(op, argument)?;
    let cols = view.shape()[1];
    // Rows of no elements all start at the first, wherever the view's strides would put them.
    Ok(Rows { data, stride: if cols == 0 { 0 } else { view.strides()[0] }, cols })
}

/// Refuses indices of `bound` and more: engines may hand in their own. Negative ones mean "absent".
pub(crate) fn check_below(
    op: &'static str,
    argument: &'static str,
    view: &TensorRef<'_, 2>,
    bound: usize,
) -> Result<()> {
    let indices = rows::<i32>(op, argument, view)?;
    for row in 0..view.shape()[0] {
        if let Some(&index) = indices.row(row).iter().find(|&&index| i64::from(index) >= bound as i64) {
            let problem = format!("row {row} has index {index}, the largest possible is below {bound}");
            return Err(Error::Value { op, argument, problem });
        }
    }
    Ok(())
}

/// Refuses offsets that do not start at 0, fall, or do not end at `end`.
pub(crate) fn check_offsets(op: &'static str, argument: &'static str, offsets: &[i32], end: usize) -> Result<()> {
    let problem = if offsets.first() != Some(&0) {
        "does not start at 0".to_string()
    } else if let Some(at) = offsets.windows(2).position(|pair| pair[0] > pair[1]) {
        format!("falls from {} to {} at position {}", offsets[at], offsets[at + 1], at + 1)
    } else if offsets.last().is_some_and(|&last| last as usize != end) {
        format!("ends at {}, expected {end}", offsets[offsets.len() - 1])
    } else {
        return Ok(());
    };
    Err(Error::Value { op, argument, problem })
}

/// The elements of a contiguous rank-1 view, exactly its length.
pub(crate) fn vector<'a, S: Element>(
    op: &'static str,
    argument: &'static str,
    view: &TensorRef<'a, 1>,
) -> Result<&'a [S]> {
    let data: &[S] = view.host_elements(op, argument)?;
    Ok(&data[..view.shape()[0]])
}

/// An optional [`vector`].
pub(crate) fn optional<'a, S: Element>(
    op: &'static str,
    argument: &'static str,
    view: &Option<TensorRef<'a, 1>>,
) -> Result<Option<&'a [S]>> {
    view.as_ref().map(|view| vector(op, argument, view)).transpose()
}

/// How many of `tokens` tokens are not padding.
pub(crate) fn unmasked_count(mask: Option<&[u8]>, tokens: usize) -> usize {
    mask.map_or(tokens, |mask| mask.iter().filter(|&&token| token != 0).count())
}

/// The elements of an output.
pub(crate) fn output<'a, S: Element, const R: usize>(
    op: &'static str,
    argument: &'static str,
    view: TensorMut<'a, R>,
) -> Result<&'a mut [S]> {
    view.into_host_elements(op, argument)
}

/// The first `needed` elements of a stage's scratch.
pub(crate) fn scratch<'a>(op: &'static str, view: TensorMut<'a, 1>, needed: usize) -> Result<&'a mut [f32]> {
    let scratch = output::<f32, 1>(op, "scratch", view)?;
    let found = scratch.len();
    scratch
        .get_mut(..needed)
        .ok_or_else(|| Error::Workspace { op, problem: format!("scratch of {found} f32, {needed} are needed") })
}

/// What the shared expert has for each token.
pub(crate) struct SharedRows<'a> {
    rows: Option<Rows<'a, f32>>,
    /// Row of each token; row `t` is token `t` without.
    of_tokens: Option<&'a [i32]>,
}

impl<'a> SharedRows<'a> {
    pub fn new(
        op: &'static str,
        argument: &'static str,
        shared: &Option<TensorRef<'a, 2>>,
        of_tokens: &Option<TensorRef<'a, 1>>,
    ) -> Result<Self> {
        let Some(shared) = shared else { return Ok(Self { rows: None, of_tokens: None }) };
        let (of_tokens, room) = (optional::<i32>(op, "shared_row", of_tokens)?, shared.shape()[0]);
        let out_of_room = |(_, row): &(usize, &i32)| usize::try_from(**row).is_ok_and(|row| row >= room);
        if let Some((t, row)) = of_tokens.unwrap_or_default().iter().enumerate().find(out_of_room) {
            let problem = format!("token {t} has row {row} of {room}");
            return Err(Error::Value { op, argument: "shared_row", problem });
        }
        Ok(Self { rows: Some(rows(op, argument, shared)?), of_tokens })
    }

    /// Nothing without a shared expert, and for masked tokens.
    #[inline(always)]
    pub fn of_token(&self, t: usize) -> Option<&'a [f32]> {
        let row = self.of_tokens.map_or(Some(t), |rows| usize::try_from(rows[t]).ok())?;
        self.rows.as_ref().map(|rows| rows.row(row))
    }
}

/// One matrix of a stack `[E, rows, cols]`.
#[derive(Clone, Copy)]
pub(crate) struct Stack<'a, S> {
    data: &'a [S],
    strides: [usize; 2],
    pub rows: usize,
    pub cols: usize,
}

impl<'a, S: Storage> Stack<'a, S> {
    pub fn new(op: &'static str, argument: &'static str, view: &TensorRef<'a, 3>) -> Result<Self> {
        let data = view.host_elements(op, argument)?;
        let ([_, rows, cols], [outer, inner, _]) = (view.shape(), view.strides());
        Ok(Self { data, strides: [outer, inner], rows, cols })
    }

    pub fn matrix(&self, index: usize) -> Rows<'a, S> {
        let data = if self.data.is_empty() { self.data } else { &self.data[index * self.strides[0]..] };
        Rows { data, stride: self.strides[1], cols: self.cols }
    }
}

/// Calls `$body` with `$S` naming the storage type of `$dtype`.
macro_rules! by_storage {
    ($op:expr, $argument:expr, $dtype:expr, $S:ident => $body:expr) => {
        match $dtype {
            da_moe_core::DType::F32 => {
                type $S = f32;
                $body
            }
            da_moe_core::DType::Bf16 => {
                type $S = da_moe_core::bf16;
                $body
            }
            da_moe_core::DType::F16 => {
                type $S = da_moe_core::f16;
                $body
            }
            found => Err(da_moe_core::Error::DType {
                op: $op,
                argument: $argument,
                expected: "f32, bf16 or f16".into(),
                found,
            }),
        }
    };
}
pub(crate) use by_storage;
