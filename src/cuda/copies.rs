//! Host tensors copied to a device, for programs that have no device tensors of their own.

use crate::cuda::device::Device;
use crate::cuda::device::memory::DeviceMemory;
use crate::cuda::kernels::Kernels;
use crate::{
    Attention, ExpertGradients, ExpertWeights, Gradients, Inputs, Result, Routing, TensorMut, TensorRef, Weights,
};
use typed_arena::Arena;

/// Copies of tensors on one device, as long as they are needed. Every copy waits.
///
/// ```no_run
/// # use da_moe::cuda::{Copies, Cuda};
/// # fn call(inputs: &da_moe::Inputs<'_>, weights: &da_moe::Weights<'_>) -> da_moe::Result<()> {
/// let cuda = Cuda::open(0)?;
/// let copies = Copies::new(&cuda);
/// let (inputs, weights) = (copies.inputs(inputs)?, copies.weights(weights)?);
/// # Ok(())
/// # }
/// ```
pub struct Copies<D: Device> {
    kernels: Kernels<D>,
    memory: Arena<DeviceMemory<D>>,
}

impl<D: Device> Copies<D> {
    /// None yet.
    pub fn new(kernels: &Kernels<D>) -> Self {
        Self { kernels: kernels.clone(), memory: Arena::new() }
    }

    /// A copy of the memory behind a view, seen in the same way.
    ///
    /// # Errors
    /// When the memory cannot be had, or the device fails.
    pub fn tensor<const R: usize>(&self, view: &TensorRef<'_, R>) -> Result<TensorRef<'_, R>> {
        let memory: &DeviceMemory<D> = self.memory.alloc(self.kernels.upload(view.data())?);
        TensorRef::strided(memory, view.shape(), view.strides())
    }

    fn optional<const R: usize>(&self, view: &Option<TensorRef<'_, R>>) -> Result<Option<TensorRef<'_, R>>> {
        view.as_ref().map(|view| self.tensor(view)).transpose()
    }

    /// Copies of everything that is there.
    ///
    /// # Errors
    /// As [`Copies::tensor`].
    pub fn inputs(&self, inputs: &Inputs<'_>) -> Result<Inputs<'_>> {
        Ok(Inputs {
            x: self.tensor(&inputs.x)?,
            cu_seqlens: self.optional(&inputs.cu_seqlens)?,
            mask: self.optional(&inputs.mask)?,
            attention: inputs.attention.as_ref().map(|attention| self.attention(attention)).transpose()?,
            importance: self.optional(&inputs.importance)?,
            token_ids: self.optional(&inputs.token_ids)?,
            token_frequency: self.optional(&inputs.token_frequency)?,
            k_given: self.optional(&inputs.k_given)?,
            routing: inputs.routing.as_ref().map(|routing| self.routing(routing)).transpose()?,
            training: inputs.training,
        })
    }

    fn attention(&self, attention: &Attention<'_>) -> Result<Attention<'_>> {
        Ok(match attention {
            Attention::QueryKey { q, k, lse } => {
                Attention::QueryKey { q: self.tensor(q)?, k: self.tensor(k)?, lse: self.optional(lse)? }
            }
            Attention::Probabilities(p) => Attention::Probabilities(self.tensor(p)?),
        })
    }

    fn routing(&self, routing: &Routing<'_>) -> Result<Routing<'_>> {
        Ok(match routing {
            Routing::Padded { experts, weights } => {
                Routing::Padded { experts: self.tensor(experts)?, weights: self.tensor(weights)? }
            }
            Routing::Csr { offsets, experts, weights } => Routing::Csr {
                offsets: self.tensor(offsets)?,
                experts: self.tensor(experts)?,
                weights: self.tensor(weights)?,
            },
        })
    }

    /// Copies of everything that is there.
    ///
    /// # Errors
    /// As [`Copies::tensor`].
    pub fn weights(&self, weights: &Weights<'_>) -> Result<Weights<'_>> {
        Ok(Weights {
            router: self.tensor(&weights.router)?,
            router_bias: self.optional(&weights.router_bias)?,
            experts: self.experts(&weights.experts)?,
            shared: weights.shared.as_ref().map(|shared| self.experts(shared)).transpose()?,
            constants: self.optional(&weights.constants)?,
        })
    }

    fn experts(&self, experts: &ExpertWeights<'_>) -> Result<ExpertWeights<'_>> {
        Ok(ExpertWeights {
            w_in: self.tensor(&experts.w_in)?,
            w_out: self.tensor(&experts.w_out)?,
            b_in: self.optional(&experts.b_in)?,
            b_out: self.optional(&experts.b_out)?,
        })
    }
}

/// A gradient on a device, where a host gradient is copied from.
struct GradientCopy<D: Device, const R: usize> {
    memory: DeviceMemory<D>,
    shape: [usize; R],
}

impl<D: Device, const R: usize> GradientCopy<D, R> {
    fn like(kernels: &Kernels<D>, gradient: &TensorMut<'_, R>) -> Result<Self> {
        Ok(Self { memory: kernels.upload(gradient.as_ref().data())?, shape: gradient.shape() })
    }

    fn optional(kernels: &Kernels<D>, gradient: &Option<TensorMut<'_, R>>) -> Result<Option<Self>> {
        gradient.as_ref().map(|gradient| Self::like(kernels, gradient)).transpose()
    }

    fn view_mut(&mut self) -> Result<TensorMut<'_, R>> {
        TensorMut::new(&mut self.memory, self.shape)
    }
}

/// Copies of the gradients of some experts.
struct ExpertGradientCopies<D: Device> {
    w_in: GradientCopy<D, 3>,
    w_out: GradientCopy<D, 3>,
    b_in: Option<GradientCopy<D, 2>>,
    b_out: Option<GradientCopy<D, 2>>,
}

impl<D: Device> ExpertGradientCopies<D> {
    fn like(kernels: &Kernels<D>, gradients: &ExpertGradients<'_>) -> Result<Self> {
        Ok(Self {
            w_in: GradientCopy::like(kernels, &gradients.w_in)?,
            w_out: GradientCopy::like(kernels, &gradients.w_out)?,
            b_in: GradientCopy::optional(kernels, &gradients.b_in)?,
            b_out: GradientCopy::optional(kernels, &gradients.b_out)?,
        })
    }

    fn view_mut(&mut self) -> Result<ExpertGradients<'_>> {
        Ok(ExpertGradients {
            w_in: self.w_in.view_mut()?,
            w_out: self.w_out.view_mut()?,
            b_in: self.b_in.as_mut().map(GradientCopy::view_mut).transpose()?,
            b_out: self.b_out.as_mut().map(GradientCopy::view_mut).transpose()?,
        })
    }
}

/// Copies of gradients on a device, for a backward call to write.
pub struct GradientCopies<D: Device> {
    x: GradientCopy<D, 2>,
    router: Option<GradientCopy<D, 2>>,
    experts: ExpertGradientCopies<D>,
    shared: Option<ExpertGradientCopies<D>>,
    constants: Option<GradientCopy<D, 2>>,
    routing: Option<GradientCopy<D, 1>>,
    accumulate: bool,
    loss_scale: f32,
}

impl<D: Device> GradientCopies<D> {
    /// As many and as large as those of `gradients`, with what they hold, to be overwritten or added to as they are.
    ///
    /// # Errors
    /// As [`Copies::tensor`].
    pub fn like(kernels: &Kernels<D>, gradients: &Gradients<'_>) -> Result<Self> {
        let shared = gradients.shared.as_ref();
        Ok(Self {
            x: GradientCopy::like(kernels, &gradients.x)?,
            router: GradientCopy::optional(kernels, &gradients.router)?,
            experts: ExpertGradientCopies::like(kernels, &gradients.experts)?,
            shared: shared.map(|shared| ExpertGradientCopies::like(kernels, shared)).transpose()?,
            constants: GradientCopy::optional(kernels, &gradients.constants)?,
            routing: GradientCopy::optional(kernels, &gradients.routing)?,
            accumulate: gradients.accumulate,
            loss_scale: gradients.loss_scale,
        })
    }

    /// Views for a backward call.
    ///
    /// # Errors
    /// None that a caller could cause.
    pub fn view_mut(&mut self) -> Result<Gradients<'_>> {
        Ok(Gradients {
            x: self.x.view_mut()?,
            router: self.router.as_mut().map(GradientCopy::view_mut).transpose()?,
            experts: self.experts.view_mut()?,
            shared: self.shared.as_mut().map(ExpertGradientCopies::view_mut).transpose()?,
            constants: self.constants.as_mut().map(GradientCopy::view_mut).transpose()?,
            routing: self.routing.as_mut().map(GradientCopy::view_mut).transpose()?,
            accumulate: self.accumulate,
            loss_scale: self.loss_scale,
        })
    }
}
