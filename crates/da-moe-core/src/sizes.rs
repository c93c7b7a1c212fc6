//! Checked sizes: every product that later becomes an index or an allocation is formed here, once.

use crate::{Error, LayerConfig, Result};

/// The dimensions of one call, with SPEC.md's letters spelled out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// `T`.
    pub tokens: usize,
    /// `D`.
    pub hidden: usize,
    /// `F`.
    pub width: usize,
    /// `F`, or `2F` when gated.
    pub rows_in: usize,
    /// `E`.
    pub experts: usize,
    /// `E + Z`.
    pub candidates: usize,
    /// `k_max`.
    pub k_max: usize,
    /// `T · k_max`: room for rows.
    pub rows: usize,
    /// Width of the shared expert; 0 for none.
    pub shared_width: usize,
    /// Rows of the shared expert's `W_in`.
    pub shared_rows_in: usize,
}

impl Sizes {
    /// The sizes of a call with `tokens` tokens.
    ///
    /// # Errors
    /// [`Error::Overflow`] when row indices do not fit i32 or a buffer does not fit memory.
    pub fn new(config: &LayerConfig, tokens: usize) -> Result<Self> {
        let sizes = Self {
            tokens,
            hidden: config.hidden_size,
            width: config.moe_intermediate_size,
            rows_in: config.rows_in(),
            experts: config.num_experts,
            candidates: config.candidates(),
            k_max: config.k_max(),
            rows: product("row indices", &[tokens, config.k_max()], i32::MAX as usize)?,
            shared_width: config.shared_intermediate_size,
            shared_rows_in: config.shared_rows_in(),
        };
        let elements = isize::MAX as usize / 4;
        product("router logits", &[tokens, sizes.candidates], i32::MAX as usize)?;
        product("hidden rows", &[sizes.rows, sizes.rows_in], elements)?;
        product("output rows", &[sizes.rows.max(tokens), sizes.hidden], elements)?;
        product("shared hidden rows", &[tokens, sizes.shared_rows_in], elements)?;
        Ok(sizes)
    }
}

/// The product of `sizes`, refused above `limit`.
fn product(what: &'static str, sizes: &[usize], limit: usize) -> Result<usize> {
    sizes
        .iter()
        .try_fold(1usize, |product, &size| product.checked_mul(size))
        .filter(|&product| product <= limit)
        .ok_or_else(|| Error::Overflow { what, sizes: sizes.to_vec(), limit })
}
