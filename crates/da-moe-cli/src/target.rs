//! What a command needs of a backend besides its stages: the same for host memory and a GPU's.

use crate::Result;
use da_moe::cuda::{self, Copies, Kernels, Most};
use da_moe::{Backend, Buffer, Cpu, Inputs, Keep, LayerConfig, Memory, TensorRef, Weights};

/// A backend with a way to hand it host tensors.
pub(crate) trait Target: Backend<Stream: Sized> {
    /// What holds the copies that it needs.
    type Held;

    /// No copies yet.
    fn held(&self) -> Self::Held;

    /// Inputs where this backend reaches them.
    fn inputs<'a>(held: &'a Self::Held, inputs: &Inputs<'a>) -> Result<Inputs<'a>>;

    /// Weights where this backend reaches them.
    fn weights<'a>(held: &'a Self::Held, weights: &Weights<'a>) -> Result<Weights<'a>>;

    /// A matrix where this backend reaches it.
    fn matrix<'a>(held: &'a Self::Held, matrix: &TensorRef<'a, 2>) -> Result<TensorRef<'a, 2>>;

    /// Room for results like `buffer`.
    fn room(&self, buffer: &Buffer) -> Result<Memory> {
        Ok(self.allocate(buffer.dtype(), buffer.len())?)
    }

    /// A stream for calls with these inputs.
    fn stream_for(&self, config: &LayerConfig, inputs: &Inputs<'_>, keep: Keep) -> Result<Self::Stream>;

    /// Measured rate of dense f32 products, in GFLOP/s, where the backend can tell.
    fn ceiling(&self) -> Option<f64>;
}

impl Target for Cpu {
    type Held = ();

    fn held(&self) {}

    fn inputs<'a>((): &'a (), inputs: &Inputs<'a>) -> Result<Inputs<'a>> {
        Ok(*inputs)
    }

    fn weights<'a>((): &'a (), weights: &Weights<'a>) -> Result<Weights<'a>> {
        Ok(*weights)
    }

    fn matrix<'a>((): &'a (), matrix: &TensorRef<'a, 2>) -> Result<TensorRef<'a, 2>> {
        Ok(*matrix)
    }

    fn stream_for(&self, _: &LayerConfig, _: &Inputs<'_>, _: Keep) -> Result<()> {
        Ok(())
    }

    fn ceiling(&self) -> Option<f64> {
        Some(self.dense_gflops())
    }
}

impl<D: cuda::Device> Target for Kernels<D> {
    type Held = Copies<D>;

    fn held(&self) -> Copies<D> {
        Copies::new(self)
    }

    fn inputs<'a>(held: &'a Copies<D>, inputs: &Inputs<'a>) -> Result<Inputs<'a>> {
        Ok(held.inputs(inputs)?)
    }

    fn weights<'a>(held: &'a Copies<D>, weights: &Weights<'a>) -> Result<Weights<'a>> {
        Ok(held.weights(weights)?)
    }

    fn matrix<'a>(held: &'a Copies<D>, matrix: &TensorRef<'a, 2>) -> Result<TensorRef<'a, 2>> {
        Ok(held.tensor(matrix)?)
    }

    fn stream_for(&self, config: &LayerConfig, inputs: &Inputs<'_>, keep: Keep) -> Result<cuda::Stream<D>> {
        Ok(self.stream(self.workspace_bytes(config, Most::of(inputs, keep))?)?)
    }

    fn ceiling(&self) -> Option<f64> {
        None
    }
}
