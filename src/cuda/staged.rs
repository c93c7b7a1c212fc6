//! The kernels on host tensors: every stage copies in, launches and copies out. Slow on purpose: each tensor of a stage has an
//! allocation of its own, of exactly its size, so that the emulator sees every access past an end and every element that was
//! not written.

use crate::cuda::device::Device;
use crate::cuda::kernels::Kernels;
use crate::cuda::stage;
use crate::cuda::stage::binder::Binder;
use crate::{
    Backend, BiasUpdate, CombineArgs, CombineBackwardArgs, Cpu, DType, ExpertsArgs, ExpertsBackwardArgs, GateArgs,
    GateBackwardArgs, ImportanceArgs, Inputs, LayerConfig, Memory, PermuteArgs, PermuteBackwardArgs, Result,
    RouterArgs, RoutingArgs, RoutingBackwardArgs, TensorMut, TensorRef,
};

/// The layer by kernels, on tensors in host memory.
#[derive(Debug)]
pub struct Staged<D: Device> {
    kernels: Kernels<D>,
    host: Cpu,
}

impl<D: Device> Staged<D> {
    /// Stages by `kernels`.
    pub fn new(kernels: Kernels<D>) -> Self {
        Self { kernels, host: Cpu::new() }
    }

    /// The kernels.
    pub fn kernels(&self) -> &Kernels<D> {
        &self.kernels
    }

    pub(super) fn binder(&self, stage: &'static str) -> Binder<'_, D> {
        Binder::host(self.kernels.device(), self.kernels.target(), stage)
    }
}

impl<D: Device> Clone for Staged<D> {
    fn clone(&self) -> Self {
        Self { kernels: self.kernels.clone(), host: self.host.clone() }
    }
}

impl<D: Device> Backend for Staged<D> {
    type Stream = ();

    fn describe(&self) -> String {
        self.kernels.describe()
    }

    fn allocate(&self, dtype: DType, len: usize) -> Result<Memory> {
        self.host.allocate(dtype, len)
    }

    fn row_type(&self, storage: DType) -> DType {
        self.kernels.row_type(storage)
    }

    fn check_contents(&self, config: &LayerConfig, inputs: &Inputs<'_>, tokens: usize) -> Result<()> {
        self.host.check_contents(config, inputs, tokens)
    }

    fn router(&self, _: &(), args: RouterArgs<'_>) -> Result<()> {
        stage::router(&mut self.binder("router"), args)
    }

    fn importance(&self, _: &(), args: ImportanceArgs<'_>) -> Result<()> {
        stage::importance(&mut self.binder("importance"), args)
    }

    fn gate(&self, _: &(), args: GateArgs<'_>) -> Result<()> {
        stage::gate(&mut self.binder("gate"), self.kernels.options(), args)
    }

    fn routing(&self, _: &(), args: RoutingArgs<'_>) -> Result<()> {
        stage::routing(&mut self.binder("routing"), self.kernels.options(), args)
    }

    fn permute(&self, _: &(), args: PermuteArgs<'_>) -> Result<()> {
        stage::permute(&mut self.binder("permute"), args)
    }

    fn experts(&self, _: &(), args: ExpertsArgs<'_>) -> Result<()> {
        stage::experts(&mut self.binder("experts"), self.kernels.options(), args)
    }

    fn combine(&self, _: &(), args: CombineArgs<'_>) -> Result<()> {
        stage::combine(&mut self.binder("combine"), args)
    }

    fn combine_backward(&self, _: &(), args: CombineBackwardArgs<'_>) -> Result<()> {
        stage::combine_backward(&mut self.binder("combine_backward"), args)
    }

    fn experts_backward(&self, _: &(), args: ExpertsBackwardArgs<'_>) -> Result<()> {
        stage::experts_backward(&mut self.binder("experts_backward"), self.kernels.options(), args)
    }

    fn permute_backward(&self, _: &(), args: PermuteBackwardArgs<'_>) -> Result<()> {
        stage::permute_backward(&mut self.binder("permute_backward"), args)
    }

    fn gate_backward(&self, _: &(), args: GateBackwardArgs<'_>) -> Result<()> {
        stage::gate_backward(&mut self.binder("gate_backward"), self.kernels.options(), args)
    }

    fn routing_backward(&self, _: &(), args: RoutingBackwardArgs<'_>) -> Result<()> {
        stage::routing_backward(&mut self.binder("routing_backward"), args)
    }

    fn update_bias(&self, _: &(), update: BiasUpdate, load: TensorRef<'_, 1>, bias: TensorMut<'_, 1>) -> Result<()> {
        stage::update_bias(&mut self.binder("update_bias"), update, load, bias)
    }
}
