//! The layer as a module.

use crate::autograd;
use crate::call::Call;
use crate::carried;
use crate::engine::Engine;
use crate::inputs::Inputs;
use crate::record::Record;
use crate::steps::Steps;
use crate::weights::Parts;
use candle_core::{DType, Result, Tensor, bail};
use candle_nn::VarBuilder;
use da_moe::{Keep, LayerConfig};
use std::fmt;
use std::sync::{Arc, Mutex};

/// A DA-MoE layer with its weights. Clones share weights, buffers and what is carried between calls.
#[derive(Clone)]
pub struct DaMoe {
    engine: Arc<Engine>,
    weights: Arc<Parts<Tensor>>,
    /// The same, outside of any graph.
    detached: Arc<Parts<Tensor>>,
    steps: Arc<Steps>,
    /// Whether gradients of weights are collected beside candle's graph.
    collected: bool,
}

impl fmt::Debug for DaMoe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DaMoe").field("config", self.config()).finish_non_exhaustive()
    }
}

/// What a call returns.
#[derive(Clone, Debug)]
pub struct Output {
    /// Of the shape and type of `x`.
    pub y: Tensor,
    /// What the call decided.
    pub record: Record,
}

impl DaMoe {
    /// A layer whose weights are `vb`'s, of its type and on its device:
    ///
    /// | name | shape |
    /// |---|---|
    /// | `router.weight` | `[E + Z, D]` |
    /// | `experts.w_in` | `[E, F, D]`, `[E, 2F, D]` where gated |
    /// | `experts.w_out` | `[E, D, F]` |
    /// | `shared.w_in`, `shared.w_out` | the same with one expert, where there is a shared one |
    /// | `null.constants` | `[Z, D]`, where null experts are constants |
    ///
    /// New ones are normally distributed with deviation `1 / sqrt(fan in)`.
    ///
    /// # Errors
    /// A configuration that is refused, the leak rule's among them; a device that the layer does not run on; weights that
    /// `vb` does not have, or has of another shape.
    pub fn new(config: LayerConfig, vb: VarBuilder) -> Result<Self> {
        let engine = Engine::new(config, vb.device())?;
        let weights = Parts::get(engine.config(), &vb)?;
        let detached = weights.try_map(|_, weight| Ok(weight.detach()))?;
        Ok(Self {
            engine: Arc::new(engine),
            weights: Arc::new(weights),
            detached: Arc::new(detached),
            steps: Arc::default(),
            collected: false,
        })
    }

    /// The same layer, whose experts' gradients do not pass through candle's backward: that makes zeros for each gradient and
    /// adds the gradient to them, which reads and writes memory of the experts' size several times.
    /// [`Record::collect_gradients`] adds them to the others afterwards; until then an optimiser finds none for the
    /// experts.
    #[must_use]
    pub fn with_collected_gradients(self) -> Self {
        Self { collected: true, ..self }
    }

    /// The configuration.
    pub fn config(&self) -> &LayerConfig {
        self.engine.config()
    }

    /// `y`, of `x`'s shape and type. `training`: whether what `running` and `budget-running` carry moves.
    ///
    /// # Errors
    /// Any input that does not fit, by name.
    pub fn forward(&self, inputs: &Inputs, training: bool) -> Result<Output> {
        let flat = inputs.flat()?;
        let x = flat.x.clone();
        let differentiable = x.track_op() || self.weights.each().any(Tensor::track_op);
        let keep = if differentiable { Keep::Hidden } else { Keep::Nothing };
        let step = self.steps.take(&self.engine, x.dim(0)?, storage_type(&x)?, keep)?;
        let call = Call {
            engine: self.engine.clone(),
            weights: self.detached.clone(),
            inputs: flat.detach(),
            training,
            step: step.clone(),
            gradients: Mutex::default(),
        };
        let y = call.forward()?;
        let call = Arc::new(call);
        let [linked, collected] = autograd::linked_and_collected(&self.weights, self.collected);
        let y = autograd::attach(y, &call, &x, linked)?.reshape(inputs.x().shape())?;
        let collected = collected.into_iter().map(|(weight, tensor)| (weight, tensor.clone())).collect();
        Ok(Output { y, record: Record::new(step, call, collected) })
    }

    /// What `running` and `budget-running` carry between calls: part of a checkpoint.
    ///
    /// # Errors
    /// The device's.
    pub fn state(&self) -> Result<Vec<f32>> {
        self.engine.state()
    }

    /// Goes on from what [`DaMoe::state`] returned.
    ///
    /// # Errors
    /// Another number of values, values that no layer carries, or the device's error.
    pub fn set_state(&self, values: &[f32]) -> Result<()> {
        self.engine.set_state(carried::checked(values)?)
    }
}

fn storage_type(x: &Tensor) -> Result<da_moe::DType> {
    match x.dtype() {
        DType::F32 => Ok(da_moe::DType::F32),
        DType::BF16 => Ok(da_moe::DType::Bf16),
        DType::F16 => Ok(da_moe::DType::F16),
        other => bail!("`x` is {other:?}, expected F32, BF16 or F16"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use candle_nn::VarMap;

    fn layer() -> Result<DaMoe> {
        DaMoe::new(LayerConfig::mixtral(8, 4, 3), VarBuilder::from_varmap(&VarMap::new(), DType::F32, &Device::Cpu))
    }

    fn call(layer: &DaMoe, tokens: usize) -> Result<Output> {
        layer.forward(&Inputs::new(&Tensor::zeros((tokens, 8), DType::F32, &Device::Cpu)?), true)
    }

    #[test]
    fn training_in_a_loop_makes_one_step_and_two_calls_at_once_make_two() -> Result<()> {
        let layer = layer()?;
        call(&layer, 6)?.y.sum_all()?.backward()?;
        let one = layer.steps.places();
        for tokens in [6, 3, 6, 1] {
            call(&layer, tokens)?.y.sum_all()?.backward()?;
        }
        assert_eq!((one.len(), layer.steps.places()), (1, one));

        let (first, second) = (call(&layer, 6)?, call(&layer, 6)?);
        let two = layer.steps.places();
        assert_eq!(two.len(), 2);
        let record = first.record;
        drop((first.y, second));
        call(&layer, 6)?;
        call(&layer, 6)?;
        assert_eq!(layer.steps.places(), two, "the step of a record that is held is not free, the other is");
        assert_eq!(record.experts_per_token()?, [2; 6]);
        Ok(())
    }

    #[test]
    fn a_larger_call_takes_the_place_of_smaller_ones() -> Result<()> {
        let layer = layer()?;
        for tokens in 1..9 {
            call(&layer, tokens)?;
        }
        assert_eq!(layer.steps.places().len(), 1);
        Ok(())
    }
}
