//! What a forward call keeps for backward.

use crate::{DType, Element, Storage, bf16, f16};

/// What backward needs of the experts' hidden rows (SPEC §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Only forward will be called.
    Nothing,
    /// Forward keeps `h`: `R · F` (or `2F`) elements of [`hidden_type`].
    Hidden,
    /// Backward computes `h` again from `x`.
    Recompute,
}

/// The type in which backward has `h` (SPEC §6) in a call with this storage type, on every backend: [`Storage::Hidden`]. Forward keeps it so, or
/// backward rounds to it what it computes again; what forward activates is not rounded.
pub const fn hidden_type(storage: DType) -> DType {
    match storage {
        DType::Bf16 => <bf16 as Storage>::Hidden::DTYPE,
        DType::F16 => <f16 as Storage>::Hidden::DTYPE,
        DType::F32 | DType::I32 | DType::U8 => <f32 as Storage>::Hidden::DTYPE,
    }
}
