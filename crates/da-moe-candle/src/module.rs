//! The layer as a module.

use crate::autograd;
use crate::call::Call;
use crate::carried::Carried;
use crate::engine::Engine;
use crate::how::{How, Start};
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
    /// Names of weights that no gradient reaches though nobody asked for that.
    unreachable: Arc<[&'static str]>,
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
        let unreachable = weights.try_map(|name, weight| Ok((!weight.track_op()).then_some(name)))?;
        Ok(Self {
            engine: Arc::new(engine),
            weights: Arc::new(weights),
            detached: Arc::new(detached),
            steps: Arc::default(),
            unreachable: unreachable.into_vec().into_iter().flatten().collect(),
            collected: false,
        })
    }

    /// The same layer with some of its weights held fast, by the names of [`DaMoe::new`]: they have no gradient, variables or not.
    /// In training every weight must be a variable, or made of variables, that is not held fast: a gradient that is missing
    /// without a word looks like a model that does not learn.
    ///
    /// # Errors
    /// A name that no weight of this layer has.
    pub fn with_frozen(self, names: &[&str]) -> Result<Self> {
        let all: Vec<&str> = self.weights.try_map(|name, _| Ok(name))?.into_vec();
        if let Some(name) = names.iter().find(|name| !all.contains(name)) {
            bail!("this layer has no weight `{name}`, it has {}", all.join(", "));
        }
        let frozen = |name: &str| names.contains(&name);
        let weights = self.weights.try_map(|name, w| Ok(if frozen(name) { w.detach() } else { w.clone() }))?;
        let unreachable = self.unreachable.iter().copied().filter(|name| !frozen(name)).collect();
        Ok(Self { weights: Arc::new(weights), unreachable, ..self })
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

    /// `y`, of `x`'s shape and type: [`DaMoe::call`] in [training](How::training) or in [evaluation](How::evaluation).
    ///
    /// # Errors
    /// As [`DaMoe::call`].
    pub fn forward(&self, inputs: &Inputs, training: bool) -> Result<Output> {
        self.call(inputs, &if training { How::training() } else { How::evaluation() })
    }

    /// `y`, of `x`'s shape and type.
    ///
    /// # Errors
    /// Any input that does not fit, by name; in training, weights that no gradient would reach.
    pub fn call(&self, inputs: &Inputs, how: &How) -> Result<Output> {
        let tracked = |x: &Tensor| x.track_op() || self.weights.each().any(Tensor::track_op);
        self.run(inputs, how, tracked).map(|(output, _)| output)
    }

    /// The first of two calls that activation checkpointing makes: `y` outside of any graph, nothing kept for backward, and what
    /// to make the call again with, as [`How::again`], when its gradients are due.
    ///
    /// Without it a second call in training would move once more what `running` and `budget-running` carry, and any second
    /// call would find it moved, so that tokens would get another number of experts than in the first. On a GPU a layer that carries
    /// something waits for it to be told.
    ///
    /// # Errors
    /// As [`DaMoe::call`].
    pub fn forward_to_repeat(&self, inputs: &Inputs, training: bool) -> Result<(Tensor, Carried)> {
        let how = How { start: Start::Told, training, ..How::evaluation() };
        let (output, carried) = self.run(inputs, &how, |_| false)?;
        Ok((output.y, carried))
    }

    /// `differentiable` says whether `y` of such an `x` is part of a graph.
    fn run(&self, inputs: &Inputs, how: &How, differentiable: impl Fn(&Tensor) -> bool) -> Result<(Output, Carried)> {
        if how.training && !self.unreachable.is_empty() {
            bail!(
                "weights that are no variables would have no gradient: {}; name them in `with_frozen` if that is meant",
                self.unreachable.join(", ")
            );
        }
        if !how.loss_scale.is_finite() {
            bail!("the losses' factor is {}, which is not a finite number", how.loss_scale);
        }
        let flat = inputs.flat()?;
        let x = flat.x.clone();
        let differentiable = differentiable(&x);
        let keep = if differentiable { Keep::Hidden } else { Keep::Nothing };
        let step = self.steps.take(&self.engine, x.dim(0)?, storage_type(&x)?, keep)?;
        let call = Call {
            engine: self.engine.clone(),
            weights: self.detached.clone(),
            inputs: flat.detach(),
            how: *how,
            step: step.clone(),
            gradients: Mutex::default(),
        };
        let (y, carried) = call.forward()?;
        let call = Arc::new(call);
        let (y, collected) = match differentiable {
            true => {
                let [linked, collected] = autograd::linked_and_collected(&self.weights, self.collected);
                (autograd::attach(y, &call, &x, linked)?, collected)
            }
            false => (y.into_tensor(), Vec::new()),
        };
        let y = y.reshape(inputs.x().shape())?;
        let collected = collected.into_iter().map(|(weight, tensor)| (weight, tensor.clone())).collect();
        Ok((Output { y, record: Record::new(step, call, collected) }, carried))
    }

    /// What `running` and `budget-running` carry between calls: part of a checkpoint.
    ///
    /// # Errors
    /// The device's.
    pub fn state(&self) -> Result<Vec<f32>> {
        Ok(self.engine.state()?.values().to_vec())
    }

    /// Goes on from what [`DaMoe::state`] returned.
    ///
    /// # Errors
    /// Another number of values, values that no layer carries, or the device's error.
    pub fn set_state(&self, values: &[f32]) -> Result<()> {
        self.engine.set_state(values.try_into()?)
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
