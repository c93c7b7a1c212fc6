//! Integers of candle's usual types as the library's: it has I32 for ids and numbers, and U8 for a mask.

use candle_core::{DType, Result, Tensor, bail};

/// `tensor[T]` as I32; another type than candle's integers is left for the library to refuse.
pub(crate) fn narrow(name: &str, tensor: &Tensor) -> Result<Tensor> {
    if !matches!(tensor.dtype(), DType::U32 | DType::I64) {
        return Ok(tensor.clone());
    }
    let convert = |(index, &value): (usize, &i64)| match i32::try_from(value) {
        Ok(value) => Ok(value),
        Err(_) => bail!("`{name}` has {value} at {index}, outside of i32"),
    };
    let values: Vec<i32> = wide(tensor)?.iter().enumerate().map(convert).collect::<Result<_>>()?;
    Tensor::from_vec(values, tensor.shape(), tensor.device())
}

/// A mask as U8, of zeros and ones alone. U8 on a GPU is not looked at: that would wait for it.
pub(crate) fn mask(tensor: &Tensor) -> Result<Tensor> {
    let as_it_is = match tensor.dtype() {
        DType::U8 => true,
        DType::U32 | DType::I32 | DType::I64 => false,
        // The library refuses it.
        _ => return Ok(tensor.clone()),
    };
    if as_it_is && !tensor.device().is_cpu() {
        return Ok(tensor.clone());
    }
    let values = wide(tensor)?;
    if let Some((index, value)) = values.iter().enumerate().find(|(_, value)| !matches!(value, 0 | 1)) {
        bail!("`mask` has {value} at {index}, expected 0 or 1");
    }
    if as_it_is {
        return Ok(tensor.clone());
    }
    let flags = values.iter().map(|&value| u8::from(value == 1)).collect();
    Tensor::from_vec(flags, tensor.shape(), tensor.device())
}

/// On the host; waits for a GPU.
fn wide(tensor: &Tensor) -> Result<Vec<i64>> {
    tensor.flatten_all()?.to_dtype(DType::I64)?.to_vec1()
}
