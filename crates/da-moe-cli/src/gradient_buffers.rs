//! Where backward writes: a gradient for everything that a call has one of.

use crate::result_buffer::ResultBuffer;
use crate::target::Target;
use da_moe::{ExpertGradients, ExpertWeights, Gradients, Inputs, Result, Routing, TensorMut, Weights};

/// One gradient for each weight of a call.
pub(crate) struct GradientBuffers {
    pub(crate) x: ResultBuffer<2>,
    pub(crate) router: Option<ResultBuffer<2>>,
    pub(crate) experts: ExpertBuffers,
    pub(crate) shared: Option<ExpertBuffers>,
    pub(crate) constants: Option<ResultBuffer<2>>,
    /// In the caller's shape `[T, K]`.
    pub(crate) routing: Option<ResultBuffer<2>>,
}

/// Those of experts.
pub(crate) struct ExpertBuffers {
    pub(crate) w_in: ResultBuffer<3>,
    pub(crate) w_out: ResultBuffer<3>,
    pub(crate) b_in: Option<ResultBuffer<2>>,
    pub(crate) b_out: Option<ResultBuffer<2>>,
}

impl GradientBuffers {
    /// For a call with these inputs and weights.
    pub(crate) fn new(target: &impl Target, inputs: &Inputs<'_>, weights: &Weights<'_>) -> Result<Self> {
        let router = inputs.routing.is_none().then_some(weights.router);
        let routing = match inputs.routing {
            Some(Routing::Padded { weights, .. }) => Some(weights),
            // Nothing here is called with one; its gradient may be absent.
            Some(Routing::Csr { .. }) | None => None,
        };
        Ok(Self {
            x: ResultBuffer::like(target, inputs.x)?,
            router: ResultBuffer::like_optional(target, router)?,
            experts: ExpertBuffers::new(target, &weights.experts)?,
            shared: weights.shared.as_ref().map(|shared| ExpertBuffers::new(target, shared)).transpose()?,
            constants: ResultBuffer::like_optional(target, weights.constants)?,
            routing: ResultBuffer::like_optional(target, routing)?,
        })
    }

    /// Views for a backward call.
    pub(crate) fn views(&mut self) -> Result<Gradients<'_>> {
        let routing = match &mut self.routing {
            Some(weights) => {
                let count = weights.memory.len();
                Some(TensorMut::new(&mut weights.memory, [count])?)
            }
            None => None,
        };
        Ok(Gradients {
            x: self.x.view_mut()?,
            router: self.router.as_mut().map(ResultBuffer::view_mut).transpose()?,
            experts: self.experts.views()?,
            shared: self.shared.as_mut().map(ExpertBuffers::views).transpose()?,
            constants: self.constants.as_mut().map(ResultBuffer::view_mut).transpose()?,
            routing,
            accumulate: false,
            loss_scale: 1.0,
        })
    }
}

impl ExpertBuffers {
    fn new(target: &impl Target, weights: &ExpertWeights<'_>) -> Result<Self> {
        Ok(Self {
            w_in: ResultBuffer::like(target, weights.w_in)?,
            w_out: ResultBuffer::like(target, weights.w_out)?,
            b_in: ResultBuffer::like_optional(target, weights.b_in)?,
            b_out: ResultBuffer::like_optional(target, weights.b_out)?,
        })
    }

    fn views(&mut self) -> Result<ExpertGradients<'_>> {
        Ok(ExpertGradients {
            w_in: self.w_in.view_mut()?,
            w_out: self.w_out.view_mut()?,
            b_in: self.b_in.as_mut().map(ResultBuffer::view_mut).transpose()?,
            b_out: self.b_out.as_mut().map(ResultBuffer::view_mut).transpose()?,
        })
    }
}
