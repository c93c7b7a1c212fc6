//! Memory that a call writes a result to, where the backend reaches it.

use crate::target::Target;
use da_moe::{Memory, Result, TensorMut, TensorRef};

/// Memory for one result, and its shape.
pub(crate) struct ResultBuffer<const R: usize> {
    pub(crate) shape: [usize; R],
    pub(crate) memory: Memory,
}

impl<const R: usize> ResultBuffer<R> {
    /// As large as a tensor, and of its type.
    pub(crate) fn like(target: &impl Target, tensor: TensorRef<'_, R>) -> Result<Self> {
        let shape = tensor.shape();
        Ok(Self { shape, memory: target.allocate(tensor.dtype(), shape.iter().product())? })
    }

    /// As [`Self::like`], for what there may be.
    pub(crate) fn like_optional(target: &impl Target, tensor: Option<TensorRef<'_, R>>) -> Result<Option<Self>> {
        tensor.map(|tensor| Self::like(target, tensor)).transpose()
    }

    /// To be read.
    pub(crate) fn view(&self) -> Result<TensorRef<'_, R>> {
        TensorRef::new(&self.memory, self.shape)
    }

    /// To be written.
    pub(crate) fn view_mut(&mut self) -> Result<TensorMut<'_, R>> {
        TensorMut::new(&mut self.memory, self.shape)
    }
}
