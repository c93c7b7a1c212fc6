//! One method per stage and direction. Data flows straight down: router product, importance, gate, permute, experts,
//! combine; and straight up again in backward. A fused kernel replaces the inside of a stage, never the order.
//!
//! Arguments are views checked by [`Layer`](crate::Layer); for engines that call stages one by one, a backend
//! starts every stage with the arguments' own `check`. Outputs are the caller's and are overwritten entirely; of buffers
//! with room for `T · k_max` rows, the first `R`.

use crate::{
    CombineArgs, CombineBackwardArgs, DType, ExpertsArgs, ExpertsBackwardArgs, GateArgs, GateBackwardArgs,
    ImportanceArgs, Keep, LayerConfig, Memory, PermuteArgs, PermuteBackwardArgs, Result, RouterArgs, RoutingArgs,
    RoutingBackwardArgs, Sizes, Slice, TensorMut, TensorRef, expect_host,
};
use std::time::{Duration, Instant};

/// How the selection bias follows the load (SPEC §3).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BiasUpdate {
    /// `b_e += rate · sign(mean count − count_e)`.
    Sign {
        /// Step size.
        rate: f32,
    },
    /// `b_e += rate · (mean count − count_e) / mean count`.
    Proportional {
        /// Step size.
        rate: f32,
    },
}

/// Executes the stages.
pub trait Backend: Send + Sync {
    /// What work is ordered on; `()` where calls are synchronous.
    type Stream: ?Sized;

    /// What does the work, for people.
    fn describe(&self) -> String;

    /// `len` zeros of type `dtype`.
    ///
    /// # Errors
    /// When the memory cannot be had.
    fn allocate(&self, dtype: DType, len: usize) -> Result<Memory>;

    /// Refuses memory that this backend cannot reach. [`Layer`](crate::Layer) asks for every tensor before it writes any.
    ///
    /// # Errors
    /// [`Error::Location`](crate::Error::Location) naming `op` and `argument`.
    fn check_location(&self, op: &'static str, argument: &'static str, memory: Slice<'_>) -> Result<()> {
        expect_host(op, argument, memory)
    }

    /// Refuses a stream that cannot carry a call of these sizes: another device's, or one without room to work in.
    ///
    /// # Errors
    /// [`Error::Location`](crate::Error::Location) or [`Error::Workspace`](crate::Error::Workspace).
    fn check_stream(
        &self,
        _op: &'static str,
        _stream: &Self::Stream,
        _config: &LayerConfig,
        _inputs: &crate::Inputs<'_>,
        _keep: Keep,
    ) -> Result<()> {
        Ok(())
    }

    /// The type in which `[rows, D]` passes between stages, of routed experts and of the shared one: `o` from experts to combine, and
    /// `dx` of every row from experts' backward to permute's.
    fn row_type(&self, _storage: DType) -> DType {
        DType::F32
    }

    /// f32 elements that the stages of calls of these sizes want as scratch from their arguments; nothing where stages have
    /// room of their own, as a stream's.
    fn stage_scratch(&self, _sizes: &Sizes, _keep: Keep) -> usize {
        0
    }

    /// How long it takes to do what `work` starts on a stream: here the time of the call, where calls are synchronous.
    ///
    /// # Errors
    /// That of `work`, or the device's.
    fn time(&self, _stream: &Self::Stream, work: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
        let start = Instant::now();
        work()?;
        Ok(start.elapsed())
    }

    /// Refuses contents that would index out of bounds, where the backend can read them without waiting.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) naming the tensor, the position and the value.
    fn check_contents(&self, config: &LayerConfig, inputs: &crate::Inputs<'_>, tokens: usize) -> Result<()>;

    /// The router product.
    ///
    /// # Errors
    /// Views of wrong shape or type.
    fn router(&self, stream: &Self::Stream, args: RouterArgs<'_>) -> Result<()>;
    /// Stage 1.
    ///
    /// # Errors
    /// Views of wrong shape or type, or missing for the configured source.
    fn importance(&self, stream: &Self::Stream, args: ImportanceArgs<'_>) -> Result<()>;
    /// Stage 2.
    ///
    /// # Errors
    /// Views of wrong shape or type, or missing for the configured policy.
    fn gate(&self, stream: &Self::Stream, args: GateArgs<'_>) -> Result<()>;
    /// Stage 2 for a routing from outside.
    ///
    /// # Errors
    /// Views of wrong shape or type, or ids out of range.
    fn routing(&self, stream: &Self::Stream, args: RoutingArgs<'_>) -> Result<()>;
    /// Stage 3.
    ///
    /// # Errors
    /// Views of wrong shape or type.
    fn permute(&self, stream: &Self::Stream, args: PermuteArgs<'_>) -> Result<()>;
    /// Stage 4.
    ///
    /// # Errors
    /// Views of wrong shape or type.
    fn experts(&self, stream: &Self::Stream, args: ExpertsArgs<'_>) -> Result<()>;
    /// Stage 5.
    ///
    /// # Errors
    /// Views of wrong shape or type.
    fn combine(&self, stream: &Self::Stream, args: CombineArgs<'_>) -> Result<()>;

    /// Stage 5, backward.
    ///
    /// # Errors
    /// Views of wrong shape or type.
    fn combine_backward(&self, stream: &Self::Stream, args: CombineBackwardArgs<'_>) -> Result<()>;
    /// Stage 4, backward.
    ///
    /// # Errors
    /// Views of wrong shape or type.
    fn experts_backward(&self, stream: &Self::Stream, args: ExpertsBackwardArgs<'_>) -> Result<()>;
    /// Stage 3, backward.
    ///
    /// # Errors
    /// Views of wrong shape or type.
    fn permute_backward(&self, stream: &Self::Stream, args: PermuteBackwardArgs<'_>) -> Result<()>;
    /// Stage 2, backward, with the router product.
    ///
    /// # Errors
    /// Views of wrong shape or type.
    fn gate_backward(&self, stream: &Self::Stream, args: GateBackwardArgs<'_>) -> Result<()>;

    /// Stage 2, backward, for a routing from outside.
    ///
    /// # Errors
    /// Views of wrong shape or type.
    fn routing_backward(&self, stream: &Self::Stream, args: RoutingBackwardArgs<'_>) -> Result<()>;

    /// Moves the selection bias `[E + Z]` f32 against the load `[E + Z]` i32 (SPEC §3).
    ///
    /// # Errors
    /// Views of wrong shape or type.
    fn update_bias(
        &self,
        stream: &Self::Stream,
        update: BiasUpdate,
        load: TensorRef<'_, 1>,
        bias: TensorMut<'_, 1>,
    ) -> Result<()>;
}
