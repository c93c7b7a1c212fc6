//! Flat JSON objects whose fields depend on a choice made by another field of the same object.

use std::fmt::Display;

/// Takes a parameter that the chosen variant needs.
pub(super) fn required<T>(value: &mut Option<T>, field: &str, choice: impl Display) -> Result<T, String> {
    value.take().ok_or_else(|| format!("missing field `{field}`, needed by `{choice}`"))
}

/// Refuses parameters that are still there after the chosen variant took its own.
pub(super) fn refuse_unused(left: &[(&str, bool)], choice: impl Display) -> Result<(), String> {
    match left.iter().find(|(_, present)| *present) {
        Some((field, _)) => Err(format!("field `{field}` is not used by `{choice}`")),
        None => Ok(()),
    }
}
