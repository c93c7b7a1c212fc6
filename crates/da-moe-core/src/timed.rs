//! A backend that keeps a stopwatch for each stage and direction.

use crate::{
    Backend, BiasUpdate, CombineArgs, CombineBackwardArgs, DType, ExpertsArgs, ExpertsBackwardArgs, GateArgs,
    GateBackwardArgs, ImportanceArgs, Inputs, Keep, LayerConfig, Memory, PermuteArgs, PermuteBackwardArgs, Result,
    RouterArgs, RoutingArgs, RoutingBackwardArgs, Sizes, Slice, TensorMut, TensorRef,
};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Time of each stage, summed over the calls since the last [`Timed::take`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageTimes {
    /// Stage 1.
    pub importance: Duration,
    /// Stage 2: the router product and the gate, or a routing from outside.
    pub gate: Duration,
    /// Stage 3.
    pub permute: Duration,
    /// Stage 4, routed and shared experts.
    pub experts: Duration,
    /// Stage 5.
    pub combine: Duration,
    /// Stage 5, backward.
    pub combine_backward: Duration,
    /// Stage 4, backward.
    pub experts_backward: Duration,
    /// Stage 3, backward.
    pub permute_backward: Duration,
    /// Stage 2, backward, with the router product or a routing from outside.
    pub gate_backward: Duration,
}

impl StageTimes {
    /// The five stages of forward together.
    pub fn forward(&self) -> Duration {
        self.importance + self.gate + self.permute + self.experts + self.combine
    }

    /// The four stages of backward together; importance has no gradient.
    pub fn backward(&self) -> Duration {
        self.combine_backward + self.experts_backward + self.permute_backward + self.gate_backward
    }
}

/// Delegates every stage to `B` and adds up how long each took.
///
/// Times are [`Backend::time`]'s: a device's own where it has a clock. Every stage is waited for.
#[derive(Debug, Default)]
pub struct Timed<B> {
    backend: B,
    times: Mutex<StageTimes>,
}

impl<B> Timed<B> {
    /// `backend` with all stopwatches at zero.
    pub fn new(backend: B) -> Self {
        Self { backend, times: Mutex::default() }
    }

    /// The backend that does the work.
    pub fn inner(&self) -> &B {
        &self.backend
    }

    /// What has been added up so far.
    pub fn times(&self) -> StageTimes {
        *self.lock()
    }

    /// What has been added up so far; the stopwatches start again at zero.
    pub fn take(&self) -> StageTimes {
        std::mem::take(&mut *self.lock())
    }

    // Durations are valid whatever a panicking thread was doing, so a poisoned lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, StageTimes> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: Backend> Timed<B> {
    fn clock(
        &self,
        stream: &B::Stream,
        stage: fn(&mut StageTimes) -> &mut Duration,
        work: impl FnOnce(&B) -> Result<()>,
    ) -> Result<()> {
        let mut work = Some(work);
        let elapsed = self.backend.time(stream, &mut || work.take().map_or(Ok(()), |work| work(&self.backend)))?;
        *stage(&mut self.lock()) += elapsed;
        Ok(())
    }
}

impl<B: Backend> Backend for Timed<B> {
    type Stream = B::Stream;

    fn describe(&self) -> String {
        self.backend.describe()
    }

    fn row_type(&self, storage: DType) -> DType {
        self.backend.row_type(storage)
    }

    fn stage_scratch(&self, sizes: &Sizes, keep: Keep) -> usize {
        self.backend.stage_scratch(sizes, keep)
    }

    fn allocate(&self, dtype: DType, len: usize) -> Result<Memory> {
        self.backend.allocate(dtype, len)
    }

    fn check_location(&self, op: &'static str, argument: &'static str, memory: Slice<'_>) -> Result<()> {
        self.backend.check_location(op, argument, memory)
    }

    fn check_stream(
        &self,
        op: &'static str,
        stream: &B::Stream,
        config: &LayerConfig,
        inputs: &Inputs<'_>,
        keep: Keep,
    ) -> Result<()> {
        self.backend.check_stream(op, stream, config, inputs, keep)
    }

    fn time(&self, stream: &B::Stream, work: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
        self.backend.time(stream, work)
    }

    fn check_contents(&self, config: &LayerConfig, inputs: &Inputs<'_>, tokens: usize) -> Result<()> {
        self.backend.check_contents(config, inputs, tokens)
    }

    fn router(&self, stream: &B::Stream, args: RouterArgs<'_>) -> Result<()> {
        self.clock(stream, |times| &mut times.gate, |backend| backend.router(stream, args))
    }

    fn importance(&self, stream: &B::Stream, args: ImportanceArgs<'_>) -> Result<()> {
        self.clock(stream, |times| &mut times.importance, |backend| backend.importance(stream, args))
    }

    fn gate(&self, stream: &B::Stream, args: GateArgs<'_>) -> Result<()> {
        self.clock(stream, |times| &mut times.gate, |backend| backend.gate(stream, args))
    }

    fn routing(&self, stream: &B::Stream, args: RoutingArgs<'_>) -> Result<()> {
        self.clock(stream, |times| &mut times.gate, |backend| backend.routing(stream, args))
    }

    fn permute(&self, stream: &B::Stream, args: PermuteArgs<'_>) -> Result<()> {
        self.clock(stream, |times| &mut times.permute, |backend| backend.permute(stream, args))
    }

    fn experts(&self, stream: &B::Stream, args: ExpertsArgs<'_>) -> Result<()> {
        self.clock(stream, |times| &mut times.experts, |backend| backend.experts(stream, args))
    }

    fn combine(&self, stream: &B::Stream, args: CombineArgs<'_>) -> Result<()> {
        self.clock(stream, |times| &mut times.combine, |backend| backend.combine(stream, args))
    }

    fn combine_backward(&self, stream: &B::Stream, args: CombineBackwardArgs<'_>) -> Result<()> {
        self.clock(stream, |times| &mut times.combine_backward, |backend| backend.combine_backward(stream, args))
    }

    fn experts_backward(&self, stream: &B::Stream, args: ExpertsBackwardArgs<'_>) -> Result<()> {
        self.clock(stream, |times| &mut times.experts_backward, |backend| backend.experts_backward(stream, args))
    }

    fn permute_backward(&self, stream: &B::Stream, args: PermuteBackwardArgs<'_>) -> Result<()> {
        self.clock(stream, |times| &mut times.permute_backward, |backend| backend.permute_backward(stream, args))
    }

    fn gate_backward(&self, stream: &B::Stream, args: GateBackwardArgs<'_>) -> Result<()> {
        self.clock(stream, |times| &mut times.gate_backward, |backend| backend.gate_backward(stream, args))
    }

    fn routing_backward(&self, stream: &B::Stream, args: RoutingBackwardArgs<'_>) -> Result<()> {
        self.clock(stream, |times| &mut times.gate_backward, |backend| backend.routing_backward(stream, args))
    }

    /// Not part of a forward or a backward, so not timed.
    fn update_bias(
        &self,
        stream: &B::Stream,
        update: BiasUpdate,
        load: TensorRef<'_, 1>,
        bias: TensorMut<'_, 1>,
    ) -> Result<()> {
        self.backend.update_bias(stream, update, load, bias)
    }
}
