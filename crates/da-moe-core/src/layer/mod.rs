//! The layer, written once on top of [`Backend`]: checks, then five stages down, or five stages up.

mod backward;
mod forward;

use crate::step::view_mut;
use crate::{
    Backend, BiasUpdate, DType, Error, Inputs, Keep, LayerConfig, Memory, Plan, Result, Rows, STATE_LEN, Scratch,
    SharedPlan, Sizes, Slice, State, Step, StepBytes, TensorMut, Weights,
};

/// A DA-MoE layer: a valid configuration and the backend that executes it. Weights and buffers are the caller's.
///
/// A layer holds no state: any number of threads may call it at once, each with its own [`Step`].
#[derive(Clone, Debug)]
pub struct Layer<B> {
    backend: B,
    config: LayerConfig,
}

impl<B: Backend> Layer<B> {
    /// A layer of this configuration.
    ///
    /// # Errors
    /// As [`LayerConfig::validate`].
    pub fn new(backend: B, config: LayerConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self { backend, config })
    }

    /// The configuration.
    pub fn config(&self) -> &LayerConfig {
        &self.config
    }

    /// The backend.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Buffers for calls of up to `max_tokens` tokens of storage type `dtype`, with [`Scratch`] of its own.
    ///
    /// # Errors
    /// [`Error::Overflow`], [`Error::DType`] for an integer type, or the backend's allocation error.
    pub fn step(&self, max_tokens: usize, dtype: DType, keep: Keep) -> Result<Step> {
        let step = self.step_without_scratch(max_tokens, dtype, keep)?;
        Ok(Step { scratch: self.scratch(max_tokens, dtype, keep)?, ..step })
    }

    /// The same without [`Scratch`], which each call is then lent with [`Step::with_scratch`].
    ///
    /// # Errors
    /// As [`Layer::step`].
    pub fn step_without_scratch(&self, max_tokens: usize, dtype: DType, keep: Keep) -> Result<Step> {
        Step::allocate(&self.backend, &self.sizes_of("step", max_tokens, dtype)?, dtype, keep)
    }

    /// Scratch for steps like this.
    ///
    /// # Errors
    /// As [`Layer::step`].
    pub fn scratch(&self, max_tokens: usize, dtype: DType, keep: Keep) -> Result<Scratch> {
        Scratch::allocate(&self.backend, &self.sizes_of("scratch", max_tokens, dtype)?, dtype, keep)
    }

    /// Bytes that [`Layer::step_without_scratch`] and [`Layer::scratch`] allocate; [`Layer::step`] allocates both.
    ///
    /// # Errors
    /// As [`Layer::step`].
    pub fn step_bytes(&self, max_tokens: usize, dtype: DType, keep: Keep) -> Result<StepBytes> {
        let sizes = self.sizes_of("step", max_tokens, dtype)?;
        let stage_scratch = self.backend.stage_scratch(&sizes, keep);
        Ok(StepBytes::of(&sizes, dtype, self.backend.row_type(dtype), stage_scratch, keep))
    }

    fn sizes_of(&self, op: &'static str, max_tokens: usize, dtype: DType) -> Result<Sizes> {
        if !dtype.is_storage() {
            let expected = "f32, bf16 or f16".into();
            return Err(Error::DType { op, argument: "dtype", expected, found: dtype });
        }
        Sizes::new(&self.config, max_tokens)
    }

    /// Fresh state for policies and normalisations that carry statistics between steps.
    ///
    /// # Errors
    /// The backend's allocation error.
    pub fn state(&self) -> Result<State> {
        Ok(State { values: self.backend.allocate(DType::F32, STATE_LEN)? })
    }

    /// Moves the selection bias against the load of `step`'s last forward (SPEC §3).
    ///
    /// # Errors
    /// A bias of wrong shape or type, or a step without a forward.
    pub fn update_bias(
        &self,
        stream: &B::Stream,
        update: BiasUpdate,
        step: &Step,
        bias: TensorMut<'_, 1>,
    ) -> Result<()> {
        bias.expect_shape("update_bias", "router.bias", [self.config.candidates()])?;
        bias.expect_dtype("update_bias", "router.bias", &[DType::F32])?;
        self.backend.check_location("update_bias", "router.bias", bias.as_ref().data())?;
        self.backend.update_bias(stream, update, step.load()?, bias)
    }

    /// Everything that both directions check before anything is written.
    fn check_call(
        &self,
        op: &'static str,
        stream: &B::Stream,
        inputs: &Inputs<'_>,
        weights: &Weights<'_>,
        step: &Step,
    ) -> Result<Sizes> {
        let sizes = inputs.check(op, &self.config)?;
        weights.check(op, &self.config, inputs.x.dtype())?;
        let mut see = |argument, memory: Slice<'_>| self.backend.check_location(op, argument, memory);
        inputs.visit(&mut see)?;
        weights.visit(&mut see)?;
        see("step", step.any_buffer())?;
        let most = step.made_for.tokens;
        if sizes.tokens > most {
            let problem = format!("{} tokens, but the step was made for {most}", sizes.tokens);
            return Err(Error::Workspace { op, problem });
        }
        if step.made_for != Sizes::new(&self.config, most)? {
            return Err(Error::Workspace { op, problem: "the step was made for a layer of other sizes".into() });
        }
        if inputs.x.dtype() != step.dtype {
            let problem = format!("x is {}, but the step was made for {}", inputs.x.dtype(), step.dtype);
            return Err(Error::Workspace { op, problem });
        }
        step.scratch.check(op, &self.backend, &sizes, step.dtype, step.keep)?;
        self.backend.check_stream(op, stream, &self.config, inputs, step.keep)?;
        self.backend.check_contents(&self.config, inputs, sizes.tokens)?;
        Ok(sizes)
    }
}

/// Everything of a buffer.
fn all(buffer: &mut Memory) -> Result<TensorMut<'_, 1>> {
    let count = buffer.len();
    view_mut(buffer, [count])
}

fn routed<'a>(plan: &Plan<'a>) -> Rows<'a> {
    Rows::Routed { offsets: plan.offsets, row_token: plan.row_token, row_weight: Some(plan.row_weight) }
}

/// The tokens of the shared expert: all, or those of its plan where some are masked.
fn shared<'a>(plan: Option<&SharedPlan<'a>>) -> Rows<'a> {
    plan.map_or(Rows::All, |plan| Rows::Routed { offsets: plan.offsets, row_token: plan.row_token, row_weight: None })
}
