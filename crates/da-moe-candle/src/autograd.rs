//! The layer as an operation of candle's.
//!
//! candle differentiates operations of at most three arguments, and a layer has up to seven that it has gradients of. So
//! weights are not arguments: each has a [`Link`], and the links are a chain whose end, one element without meaning, is the
//! second argument of the [`Operation`]. candle's backward comes to an operation before it comes to its arguments: the
//! operation's runs the library's, and leaves each weight's gradient where the weight's link finds it. A gradient that is
//! collected needs no link: [`Record::collect_gradients`](crate::Record::collect_gradients) takes it from there.

use crate::call::Call;
use crate::interop::Output;
use crate::lock;
use crate::weights::Parts;
use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{CpuStorage, CudaStorage, CustomOp2, DType, Layout, Result, Shape, Storage, Tensor, bail};
use std::sync::{Arc, Mutex};

/// A weight's number, in the order of [`Parts::each`], and the weight.
pub(crate) type Numbered<'w> = (usize, &'w Tensor);

/// The weights that have a gradient: those with links, and those whose gradients are collected beside the graph. Without
/// `collected` all have links; with it, the first, because by it backward comes to the layer even where `x` has no gradient, and
/// those that are computed from others, whose gradients have further to go.
pub(crate) fn linked_and_collected(weights: &Parts<Tensor>, collected: bool) -> [Vec<Numbered<'_>>; 2] {
    let mut parts = [Vec::new(), Vec::new()];
    for (weight, tensor) in weights.each().enumerate().filter(|(_, tensor)| tensor.track_op()) {
        let beside = collected && tensor.is_variable() && !parts[0].is_empty();
        parts[usize::from(beside)].push((weight, tensor));
    }
    parts
}

/// `y[T, D]` with its way back to `x` and to the weights `linked`.
pub(crate) fn attach(y: Output, call: &Arc<Call>, x: &Tensor, linked: Vec<Numbered<'_>>) -> Result<Tensor> {
    let mut chain = Tensor::zeros(1, DType::F32, x.device())?;
    for (weight, tensor) in linked {
        chain = chain.apply_op2(tensor, Link { call: call.clone(), weight })?;
    }
    x.apply_op2(&chain, Operation { call: call.clone(), y: Mutex::new(Some(y)) })
}

struct Operation {
    call: Arc<Call>,
    /// Computed already; until candle asks for it.
    y: Mutex<Option<Output>>,
}

impl Operation {
    fn take(&self) -> Result<(Storage, Shape)> {
        match lock(&self.y).take() {
            Some(y) => Ok(y.into_storage()),
            None => bail!("the layer's result was asked for twice"),
        }
    }
}

impl CustomOp2 for Operation {
    fn name(&self) -> &'static str {
        "da-moe"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        match self.take()? {
            (Storage::Cpu(y), shape) => Ok((y, shape)),
            _ => bail!("the layer's result is on another device than `x`"),
        }
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        match self.take()? {
            (Storage::Cuda(y), shape) => Ok((y, shape)),
            _ => bail!("the layer's result is on another device than `x`"),
        }
    }

    fn bwd(&self, x: &Tensor, chain: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dx = self.call.backward(dy)?;
        Ok((x.track_op().then_some(dx), onward(chain)?))
    }
}

struct Link {
    call: Arc<Call>,
    weight: usize,
}

impl CustomOp2 for Link {
    fn name(&self) -> &'static str {
        "da-moe-weight"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![0.0]), Shape::from(1)))
    }

    fn cuda_fwd(&self, chain: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        let shape = Shape::from(1);
        Ok((chain.device().zeros_impl(&shape, DType::F32)?, shape))
    }

    fn bwd(&self, chain: &Tensor, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((onward(chain)?, Some(self.call.take_gradient(self.weight)?)))
    }
}

/// A gradient for the rest of the chain, so that candle goes on to it.
fn onward(chain: &Tensor) -> Result<Option<Tensor>> {
    if chain.track_op() { Ok(Some(chain.zeros_like()?.detach())) } else { Ok(None) }
}
