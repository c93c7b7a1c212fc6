//! A model's weights as a checkpoint holds them: asked for by name and shape, as any model asks for its variables.

use candle_core::{DType, Device, Result, Shape, Tensor, bail};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

/// Tensors by name, and which of them were asked for.
pub(crate) struct Held<'t> {
    tensors: &'t HashMap<String, Tensor>,
    asked: Mutex<BTreeSet<String>>,
}

impl<'t> Held<'t> {
    pub fn new(tensors: &'t HashMap<String, Tensor>) -> Self {
        Self { tensors, asked: Mutex::default() }
    }

    /// What gives a model its weights; none is copied, and none is made.
    pub fn builder(&self) -> VarBuilder<'_> {
        VarBuilder::from_backend(Box::new(self), DType::F32, Device::Cpu)
    }

    /// Names that were asked for.
    pub fn asked(self) -> BTreeSet<String> {
        self.asked.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The tensor of a name, if it has the shape.
pub(crate) fn find(tensors: &HashMap<String, Tensor>, name: &str, shape: &Shape) -> Result<Tensor> {
    match tensors.get(name) {
        Some(tensor) if tensor.shape() == shape => Ok(tensor.clone()),
        Some(tensor) => bail!("tensor `{name}` has shape {:?}, {:?} is expected", tensor.dims(), shape.dims()),
        None => bail!("there is no tensor `{name}`"),
    }
}

impl SimpleBackend for &Held<'_> {
    fn get(&self, shape: Shape, name: &str, _: Init, _: DType, _: &Device) -> Result<Tensor> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).insert(name.into());
        find(self.tensors, name, &shape)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        bail!("tensor `{name}` was asked for without a shape")
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
}
