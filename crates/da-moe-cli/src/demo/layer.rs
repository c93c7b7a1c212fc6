//! The layer of the demo: a small DA-MoE layer with drawn weights, run forward and backward over the text.

use super::text::Text;
use super::vectors::{HEADS, Vectors, WIDTH};
use crate::device::Opened;
use crate::draw::Draw;
use crate::gradient_buffers::GradientBuffers;
use crate::result_buffer::ResultBuffer;
use crate::target::Target;
use crate::{Device, Error, Result};
use da_moe::{
    Attention, Backend, Buffer, DType, Element, Inputs, Keep, Layer, LayerConfig, Report, StageTimes, Step, TensorRef,
    Timed, Weights,
};

/// `E`.
pub(super) const EXPERTS: usize = 8;
/// The most experts that a token gets.
pub(super) const K_MAX: usize = 4;
const EXPERT_WIDTH: usize = 128;
const SEED: u64 = 7;

/// Inputs and weights, all f32.
pub(super) struct Setup {
    pub(super) config: LayerConfig,
    tokens: usize,
    x: Vec<f32>,
    attention: Vec<f32>,
    cu_seqlens: Vec<i32>,
    router: Buffer,
    w_in: Buffer,
    w_out: Buffer,
    pub(super) dy: Vec<f32>,
}

/// What the layer computed, for pictures and for the oracle.
pub(super) struct Computed {
    pub(super) importance: Vec<f32>,
    pub(super) k: Vec<i32>,
    pub(super) report: Report,
    pub(super) times: StageTimes,
    pub(super) device: String,
    pub(super) step: Step,
    pub(super) y: ResultBuffer<2>,
    pub(super) gradients: GradientBuffers,
}

impl Setup {
    pub(super) fn new(text: &Text) -> Self {
        let config = LayerConfig::da_moe(WIDTH, EXPERT_WIDTH, EXPERTS, K_MAX);
        let tokens = text.tokens.len();
        let Vectors { x, attention } = Vectors::of(text);
        let mut draw = Draw::new(SEED);
        Self {
            router: draw.weights(DType::F32, EXPERTS * WIDTH, WIDTH),
            w_in: draw.weights(DType::F32, EXPERTS * config.rows_in() * WIDTH, WIDTH),
            w_out: draw.weights(DType::F32, EXPERTS * WIDTH * EXPERT_WIDTH, EXPERT_WIDTH),
            dy: draw.normal(tokens * WIDTH, 1.0),
            cu_seqlens: text.cu_seqlens(),
            config,
            tokens,
            x,
            attention,
        }
    }

    pub(super) fn inputs(&self) -> Result<Inputs<'_>> {
        let heads = TensorRef::new(&self.attention, [self.tokens, HEADS, WIDTH / HEADS])?;
        let inputs = Inputs::new(TensorRef::new(&self.x, [self.tokens, WIDTH])?);
        Ok(Inputs {
            cu_seqlens: Some(TensorRef::new(&self.cu_seqlens, [self.cu_seqlens.len()])?),
            ..inputs.with_attention(Attention::QueryKey { q: heads, k: heads, lse: None })
        })
    }

    pub(super) fn weights(&self) -> Result<Weights<'_>> {
        Ok(Weights::new(
            TensorRef::new(&self.router, [EXPERTS, WIDTH])?,
            TensorRef::new(&self.w_in, [EXPERTS, self.config.rows_in(), WIDTH])?,
            TensorRef::new(&self.w_out, [EXPERTS, WIDTH, EXPERT_WIDTH])?,
        ))
    }

    pub(super) fn dy(&self) -> Result<TensorRef<'_, 2>> {
        Ok(TensorRef::new(&self.dy, [self.tokens, WIDTH])?)
    }

    /// One forward and one backward.
    pub(super) fn run(&self, device: Device) -> Result<Computed> {
        match device.open()? {
            Opened::Cpu(cpu, why) => {
                let computed = self.run_on(cpu)?;
                Ok(Computed { device: why.after(computed.device), ..computed })
            }
            Opened::Cuda(cuda) => self.run_on(cuda),
        }
    }

    pub(super) fn run_on<B: Target>(&self, backend: B) -> Result<Computed> {
        let layer = Layer::new(Timed::new(backend), self.config.clone())?;
        // The first call pays for threads and page faults, which would hide what the stages cost.
        self.call(&layer)?;
        layer.backend().take();
        let (step, y, gradients) = self.call(&layer)?;
        Ok(Computed {
            importance: elements(step.importance()?, self.tokens)?,
            k: elements(step.selection()?.k, self.tokens)?,
            report: step.report()?,
            times: layer.backend().times(),
            device: layer.backend().describe(),
            step,
            y,
            gradients,
        })
    }

    fn call<B: Target>(&self, layer: &Layer<Timed<B>>) -> Result<(Step, ResultBuffer<2>, GradientBuffers)> {
        let target = layer.backend().inner();
        let held = target.held();
        let (inputs, weights) = (B::inputs(&held, &self.inputs()?)?, B::weights(&held, &self.weights()?)?);
        let dy = B::matrix(&held, &self.dy()?)?;
        let stream = target.stream_for(layer.config(), &inputs, Keep::Hidden)?;
        let mut step = layer.step(self.tokens, DType::F32, Keep::Hidden)?;
        let mut y = ResultBuffer::like(target, inputs.x)?;
        let mut buffers = GradientBuffers::new(target, &inputs, &weights)?;
        layer.forward(&stream, &inputs, &weights, &mut layer.state()?, &mut step, y.view_mut()?)?;
        layer.backward(&stream, &inputs, &weights, dy, &mut step, &mut buffers.views()?)?;
        Ok((step, y, buffers))
    }
}

fn elements<T: Element>(tensor: TensorRef<'_, 1>, count: usize) -> Result<Vec<T>> {
    let host = tensor.data().to_host()?;
    let found = host.as_slice().and_then(|elements: &[T]| elements.get(..count));
    found.map(<[T]>::to_vec).ok_or_else(|| {
        let (argument, expected) = ("importance or k", T::DTYPE.to_string());
        Error::Layer(da_moe::Error::DType { op: "demo", argument, expected, found: tensor.dtype() })
    })
}
