//! A shape's tensors on the device.

use super::Result;
use super::drawn::{W_IN, W_OUT, X, fan, random};
use super::shapes::Plan;
use da_moe::cuda::{DeviceMemory, Driver};
use da_moe::{Attention, Cuda, ExpertGradients, Gradients, Inputs, LayerConfig, TensorMut, TensorRef, Weights};

pub(super) struct Tensors {
    x: DeviceMemory<Driver>,
    q: DeviceMemory<Driver>,
    k: DeviceMemory<Driver>,
    cu_seqlens: DeviceMemory<Driver>,
    router: DeviceMemory<Driver>,
    w_in: DeviceMemory<Driver>,
    w_out: DeviceMemory<Driver>,
    heads: [usize; 2],
}

impl Tensors {
    pub(super) fn new(gpu: &Cuda, plan: &Plan, config: &LayerConfig, tokens: usize) -> Result<Self> {
        let (d, e, f) = (config.hidden_size, config.num_experts, config.moe_intermediate_size);
        let ([heads, width], length) = (plan.heads, plan.sequence);
        let starts: Vec<i32> = (0..=tokens.div_ceil(length)).map(|b| (b * length).min(tokens) as i32).collect();
        Ok(Self {
            x: gpu.upload(&random(tokens * d, 1.0, X))?,
            q: gpu.upload(&random(tokens * heads * width, 1.0, 2))?,
            k: gpu.upload(&random(tokens * heads * width, 1.0, 3))?,
            cu_seqlens: gpu.upload(&starts)?,
            router: gpu.upload(&random(e * d, fan(d), 4))?,
            w_in: gpu.upload(&random(e * config.rows_in() * d, fan(d), W_IN))?,
            w_out: gpu.upload(&random(e * d * f, fan(f), W_OUT))?,
            heads: plan.heads,
        })
    }

    pub(super) fn inputs(&self, config: &LayerConfig) -> Result<Inputs<'_>> {
        let (d, [heads, width]) = (config.hidden_size, self.heads);
        let tokens = self.x.len() / d;
        let rows = |memory| TensorRef::new(memory, [tokens, heads, width]);
        Ok(Inputs {
            cu_seqlens: Some(TensorRef::new(&self.cu_seqlens, [self.cu_seqlens.len()])?),
            attention: Some(Attention::query_key(rows(&self.q)?, rows(&self.k)?)),
            ..Inputs::new(TensorRef::new(&self.x, [tokens, d])?)
        })
    }

    pub(super) fn weights(&self, config: &LayerConfig) -> Result<Weights<'_>> {
        let (d, e, f) = (config.hidden_size, config.num_experts, config.moe_intermediate_size);
        Ok(Weights::new(
            TensorRef::new(&self.router, [e, d])?,
            TensorRef::new(&self.w_in, [e, config.rows_in(), d])?,
            TensorRef::new(&self.w_out, [e, d, f])?,
        ))
    }
}

/// Where backward writes.
pub(super) struct GradientMemory {
    x: DeviceMemory<Driver>,
    router: DeviceMemory<Driver>,
    w_in: DeviceMemory<Driver>,
    w_out: DeviceMemory<Driver>,
}

impl GradientMemory {
    pub(super) fn new(gpu: &Cuda, tensors: &Tensors) -> Result<Self> {
        let like = |memory: &DeviceMemory<Driver>| gpu.zeros(memory.dtype(), memory.len());
        let (x, router) = (like(&tensors.x)?, like(&tensors.router)?);
        Ok(Self { x, router, w_in: like(&tensors.w_in)?, w_out: like(&tensors.w_out)? })
    }

    pub(super) fn all(&self) -> [(&'static str, &DeviceMemory<Driver>); 4] {
        [("d.x", &self.x), ("d.router", &self.router), ("d.w_in", &self.w_in), ("d.w_out", &self.w_out)]
    }

    pub(super) fn view_mut(&mut self, x: [usize; 2], weights: &Weights<'_>) -> Result<Gradients<'_>> {
        Ok(Gradients {
            x: TensorMut::new(&mut self.x, x)?,
            router: Some(TensorMut::new(&mut self.router, weights.router.shape())?),
            experts: ExpertGradients {
                w_in: TensorMut::new(&mut self.w_in, weights.experts.w_in.shape())?,
                w_out: TensorMut::new(&mut self.w_out, weights.experts.w_out.shape())?,
                b_in: None,
                b_out: None,
            },
            shared: None,
            constants: None,
            routing: None,
            accumulate: false,
            loss_scale: 1.0,
        })
    }
}
