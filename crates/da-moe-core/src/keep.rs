//! What a forward call keeps for backward.

/// What backward needs of the experts' hidden rows (SPEC §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Only forward will be called.
    Nothing,
    /// Forward keeps `h`: `R · F` (or `2F`) elements of [`Backend::intermediate`](crate::Backend::intermediate)'s type.
    Hidden,
    /// Backward computes `h` again from `x`.
    Recompute,
}
