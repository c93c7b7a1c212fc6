//! The library's layer on the device that the weights are on, with what it carries between calls.

use crate::carried::Carried;
use crate::how::Start;
use crate::lock;
use candle_core::{Device, Error, Result, bail};
use da_moe::{
    Buffer, Cpu, DType, Gradients, Inputs, Keep, Layer, LayerConfig, State, Step, TensorMut, TensorRef, Weights,
};
use std::sync::Mutex;

pub(crate) enum Engine {
    /// Carried values are copied into a call and out of it: a thread that held a lock while others work for it might begin
    /// another call of this layer meanwhile, and wait for itself.
    Cpu { layer: Layer<Cpu>, carried: Mutex<Carried> },
    #[cfg(feature = "cuda")]
    Cuda(crate::cuda::Engine),
}

impl Engine {
    pub fn new(config: LayerConfig, device: &Device) -> Result<Self> {
        match device {
            Device::Cpu => {
                let layer = Layer::new(Cpu::new(), config).map_err(Error::wrap)?;
                Ok(Self::Cpu { layer, carried: Mutex::new(Carried::NONE) })
            }
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => Ok(Self::Cuda(crate::cuda::Engine::new(config, device)?)),
            other => bail!("as built, this layer does not run on {:?}", other.location()),
        }
    }

    pub fn config(&self) -> &LayerConfig {
        match self {
            Self::Cpu { layer, .. } => layer.config(),
            #[cfg(feature = "cuda")]
            Self::Cuda(engine) => engine.config(),
        }
    }

    pub fn step(&self, tokens: usize, dtype: DType, keep: Keep) -> Result<Step> {
        let step = match self {
            Self::Cpu { layer, .. } => layer.step(tokens, dtype, keep),
            #[cfg(feature = "cuda")]
            Self::Cuda(engine) => engine.step(tokens, dtype, keep),
        };
        step.map_err(Error::wrap)
    }

    /// Returns what was carried when the call began, where `start` asks for it.
    pub fn forward(
        &self,
        start: Start,
        inputs: &Inputs<'_>,
        weights: &Weights<'_>,
        step: &mut Step,
        y: TensorMut<'_, 2>,
    ) -> Result<Carried> {
        let done = match self {
            Self::Cpu { layer, carried } => forward(layer, carried, start, inputs, weights, step, y),
            #[cfg(feature = "cuda")]
            Self::Cuda(engine) => engine.forward(start, inputs, weights, step, y),
        };
        done.map_err(Error::wrap)
    }

    pub fn backward(
        &self,
        inputs: &Inputs<'_>,
        weights: &Weights<'_>,
        dy: TensorRef<'_, 2>,
        step: &mut Step,
        gradients: &mut Gradients<'_>,
    ) -> Result<()> {
        let done = match self {
            Self::Cpu { layer, .. } => layer.backward(&(), inputs, weights, dy, step, gradients),
            #[cfg(feature = "cuda")]
            Self::Cuda(engine) => engine.backward(inputs, weights, dy, step, gradients),
        };
        done.map_err(Error::wrap)
    }

    pub fn state(&self) -> Result<Carried> {
        match self {
            Self::Cpu { carried, .. } => Ok(*lock(carried)),
            #[cfg(feature = "cuda")]
            Self::Cuda(engine) => engine.state().map_err(Error::wrap),
        }
    }

    pub fn set_state(&self, values: Carried) -> Result<()> {
        match self {
            Self::Cpu { carried, .. } => *lock(carried) = values,
            #[cfg(feature = "cuda")]
            Self::Cuda(engine) => engine.set_state(values).map_err(Error::wrap)?,
        }
        Ok(())
    }
}

fn forward(
    layer: &Layer<Cpu>,
    carried: &Mutex<Carried>,
    start: Start,
    inputs: &Inputs<'_>,
    weights: &Weights<'_>,
    step: &mut Step,
    y: TensorMut<'_, 2>,
) -> da_moe::Result<Carried> {
    let before = match start {
        Start::Now | Start::Told => *lock(carried),
        Start::Earlier(before) => before,
    };
    let mut state = State { values: Buffer::from(before.values().to_vec()).into() };
    layer.forward(&(), inputs, weights, &mut state, step, y)?;
    if inputs.training
        && let Ok(values) = state.values.to_host()?.to_f32().try_into()
    {
        *lock(carried) = Carried::new(values);
    }
    Ok(before)
}
