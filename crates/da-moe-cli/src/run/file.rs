//! Reading a safetensors file into typed, owned tensors.

use crate::{Error, Result};
use da_moe::{Buffer, DType, TensorRef, bf16, f16};
use da_moe_train::header;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::cell::RefCell;
use std::collections::BTreeSet;

/// A tensor of the input, converted to the type it is used in.
#[derive(Debug)]
pub(super) struct Owned<const R: usize> {
    pub(super) shape: [usize; R],
    pub(super) data: Buffer,
}

impl<const R: usize> Owned<R> {
    pub(super) fn view(&self) -> Result<TensorRef<'_, R>> {
        Ok(TensorRef::new(&self.data, self.shape)?)
    }
}

/// What one extent of a tensor must be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Extent {
    /// Exactly this, by the configuration.
    Is(usize),
    /// Anything; the specification's letter for it.
    Any(&'static str),
}

/// A parsed file that remembers which of its tensors were asked for.
pub(super) struct InputFile<'a> {
    tensors: SafeTensors<'a>,
    read: RefCell<BTreeSet<&'static str>>,
}

impl<'a> InputFile<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self> {
        header::check(bytes).map_err(Error::Format)?;
        let tensors = SafeTensors::deserialize(bytes).map_err(|error| Error::Format(error.to_string()))?;
        Ok(Self { tensors, read: RefCell::default() })
    }

    /// Names that nothing asked for, in order.
    pub(super) fn unread(&self) -> Vec<String> {
        let read = self.read.borrow();
        let mut names: Vec<_> = self.tensors.names().into_iter().filter(|name| !read.contains(name)).collect();
        names.sort_unstable();
        names.into_iter().map(String::from).collect()
    }

    /// Marks a tensor as known though this call has no use for it.
    pub(super) fn ignore(&self, name: &'static str) {
        self.read.borrow_mut().insert(name);
    }

    pub(super) fn rank(&self, name: &str) -> Option<usize> {
        Some(self.tensors.tensor(name).ok()?.shape().len())
    }

    /// The floating type that `name` is stored in, if it is one that the layer computes in.
    pub(super) fn storage(&self, name: &str) -> Option<DType> {
        match self.tensors.tensor(name).ok()?.dtype() {
            Dtype::BF16 => Some(DType::Bf16),
            Dtype::F16 => Some(DType::F16),
            _ => None,
        }
    }

    /// A floating tensor, rounded to `dtype`.
    pub(super) fn float<const R: usize>(
        &self,
        name: &'static str,
        dtype: DType,
        extents: [Extent; R],
    ) -> Result<Option<Owned<R>>> {
        let Some((tensor, shape)) = self.find(name, extents)? else { return Ok(None) };
        let bytes = tensor.data();
        let stored = match tensor.dtype() {
            Dtype::F32 => decode(bytes, f32::from_le_bytes).into(),
            Dtype::BF16 => decode(bytes, bf16::from_le_bytes).into(),
            Dtype::F16 => decode(bytes, f16::from_le_bytes).into(),
            Dtype::F64 => decode(bytes, |b| f64::from_le_bytes(b) as f32).into(),
            other => return Err(wrong_type(name, other, "a floating type (F32, BF16, F16 or F64)")),
        };
        let stored: Buffer = stored;
        let data = if stored.dtype() == dtype { stored } else { Buffer::from_f32(dtype, &stored.to_f32()) };
        Ok(Some(Owned { shape, data }))
    }

    /// An integer tensor whose values fit i32.
    pub(super) fn int<const R: usize>(&self, name: &'static str, extents: [Extent; R]) -> Result<Option<Owned<R>>> {
        let Some((tensor, shape)) = self.find(name, extents)? else { return Ok(None) };
        let wide = match tensor.dtype() {
            Dtype::I32 => {
                let data = decode(tensor.data(), i32::from_le_bytes).into();
                return Ok(Some(Owned { shape, data }));
            }
            Dtype::I64 => decode(tensor.data(), i64::from_le_bytes),
            other => return Err(wrong_type(name, other, "I32 or I64")),
        };
        let narrow = |(index, value): (usize, &i64)| {
            i32::try_from(*value).map_err(|_| Error::tensor(name, format!("has {value} at {index}, outside of i32")))
        };
        let data: Vec<i32> = wide.iter().enumerate().map(narrow).collect::<Result<_>>()?;
        Ok(Some(Owned { shape, data: data.into() }))
    }

    /// A tensor of zeros and ones.
    pub(super) fn flags<const R: usize>(&self, name: &'static str, extents: [Extent; R]) -> Result<Option<Owned<R>>> {
        let Some((tensor, shape)) = self.find(name, extents)? else { return Ok(None) };
        let wide: Vec<i64> = match tensor.dtype() {
            Dtype::U8 | Dtype::BOOL => decode(tensor.data(), |[byte]| i64::from(byte)),
            Dtype::I32 => decode(tensor.data(), |b| i64::from(i32::from_le_bytes(b))),
            Dtype::I64 => decode(tensor.data(), i64::from_le_bytes),
            other => return Err(wrong_type(name, other, "U8, BOOL, I32 or I64")),
        };
        if let Some((index, value)) = wide.iter().enumerate().find(|(_, value)| !matches!(value, 0 | 1)) {
            return Err(Error::tensor(name, format!("has {value} at {index}, expected 0 or 1")));
        }
        let data: Vec<u8> = wide.iter().map(|value| u8::from(*value == 1)).collect();
        Ok(Some(Owned { shape, data: data.into() }))
    }

    fn find<const R: usize>(
        &self,
        name: &'static str,
        extents: [Extent; R],
    ) -> Result<Option<(TensorView<'a>, [usize; R])>> {
        self.ignore(name);
        let Ok(tensor) = self.tensors.tensor(name) else { return Ok(None) };
        let fits = |(found, extent): (&usize, &Extent)| match extent {
            Extent::Is(size) => found == size,
            Extent::Any(_) => true,
        };
        match <[usize; R]>::try_from(tensor.shape()) {
            Ok(shape) if shape.iter().zip(&extents).all(fits) => Ok(Some((tensor, shape))),
            _ => {
                let expected = extents.map(|extent| match extent {
                    Extent::Is(size) => size.to_string(),
                    Extent::Any(letter) => letter.to_string(),
                });
                let problem = format!("has shape {:?}, expected [{}]", tensor.shape(), expected.join(", "));
                Err(Error::tensor(name, problem))
            }
        }
    }
}

fn wrong_type(name: &str, found: Dtype, expected: &str) -> Error {
    Error::tensor(name, format!("is {found:?}, expected {expected}"))
}

fn decode<const N: usize, T>(bytes: &[u8], element: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (chunks, _) = bytes.as_chunks::<N>();
    chunks.iter().map(|chunk| element(*chunk)).collect()
}
