//! Types of candle's that the layer does not take.

use candle_core::{DType, Result, bail};

/// A refusal of a type that no tensor of the library has.
pub(crate) fn unknown<T>(name: &str, dtype: DType) -> Result<T> {
    bail!("`{name}` is {dtype:?}, which the layer has no use for")
}
