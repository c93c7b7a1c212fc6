//! What a command needs of a backend besides its stages: the same for host memory and a GPU's.

use crate::Result;
use da_moe::cuda::{self, Copies, Kernels, Most};
use da_moe::{Backend, Cpu, Inputs, Keep, LayerConfig, TensorRef, Weights};

/// How the rate of dense products is found, beside which a layer's is told.
pub(crate) enum Ceiling {
    /// Measured, in GFLOP/s.
    Rate(f64),
    /// By a layer of one expert, whose two products are dense: of so many tokens, and as wide.
    OneExpert(usize),
}

/// A backend with a way to hand it host tensors.
pub(crate) trait Target: Backend<Stream: Sized> + Clone {
    /// What holds the copies that it needs.
    type Held;

    /// Whether a stage that is timed by itself is waited for, which a whole call does not do.
    const STAGES_ARE_WAITED_FOR: bool;

    /// No copies yet.
    fn held(&self) -> Self::Held;

    /// Inputs where this backend reaches them.
    fn inputs<'a>(held: &'a Self::Held, inputs: &Inputs<'a>) -> Result<Inputs<'a>>;

    /// Weights where this backend reaches them.
    fn weights<'a>(held: &'a Self::Held, weights: &Weights<'a>) -> Result<Weights<'a>>;

    /// A matrix where this backend reaches it.
    fn matrix<'a>(held: &'a Self::Held, matrix: &TensorRef<'a, 2>) -> Result<TensorRef<'a, 2>>;

    /// A stream for calls with these inputs.
    fn stream_for(&self, config: &LayerConfig, inputs: &Inputs<'_>, keep: Keep) -> Result<Self::Stream>;

    /// Bytes of device memory that a stream holds; nothing where everything is in host memory.
    fn device_bytes(stream: &Self::Stream) -> Option<usize>;

    /// How fast dense products are.
    fn ceiling(&self) -> Ceiling;
}

impl Target for Cpu {
    type Held = ();

    const STAGES_ARE_WAITED_FOR: bool = false;

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

    fn device_bytes((): &()) -> Option<usize> {
        None
    }

    fn ceiling(&self) -> Ceiling {
        Ceiling::Rate(self.dense_gflops())
    }
}

impl<D: cuda::Device> Target for Kernels<D> {
    type Held = Copies<D>;

    const STAGES_ARE_WAITED_FOR: bool = true;

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

    fn device_bytes(stream: &cuda::Stream<D>) -> Option<usize> {
        Some(stream.workspace_bytes())
    }

    /// Enough tiles for every multiprocessor to take several.
    fn ceiling(&self) -> Ceiling {
        Ceiling::OneExpert(32 * self.device().target().multiprocessors)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use da_moe::cuda::Emulated;
    use da_moe_emulator::Schedule;
    use std::sync::Arc;

    /// What stands for a GPU in tests.
    pub(crate) fn emulated() -> Kernels<Emulated> {
        let cache = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/tmp/kernels");
        let module = Emulated::compiler(cache).compile().unwrap_or_else(|error| panic!("{error}"));
        Kernels::new(Arc::new(Emulated::new(module, Schedule::from_seed(1))))
    }
}
