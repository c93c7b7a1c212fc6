//! AdamW whose moments can be saved: a run that goes on from a checkpoint has the bits of one that never stopped.

use crate::model_config::Schedule;
use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};

const BETA: [f64; 2] = [0.9, 0.98];
const EPSILON: f64 = 1e-8;

/// Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101) and gradients clipped by their common norm.
pub struct AdamW {
    entries: Vec<Entry>,
    weight_decay: f64,
    clip: f64,
    /// Steps taken.
    step: u64,
}

struct Entry {
    name: String,
    var: Var,
    moments: [Tensor; 2],
}

impl AdamW {
    /// For these variables, by name.
    ///
    /// # Errors
    /// The device's.
    pub fn new(variables: Vec<(String, Var)>, schedule: &Schedule) -> Result<Self> {
        let entries = variables.into_iter().map(|(name, var)| {
            let moments = [var.zeros_like()?, var.zeros_like()?];
            Ok(Entry { name, var, moments })
        });
        Ok(Self {
            entries: entries.collect::<Result<_>>()?,
            weight_decay: schedule.weight_decay,
            clip: schedule.clip,
            step: 0,
        })
    }

    /// Moves every variable against its gradient, and returns the norm of all gradients before clipping. A norm that is not
    /// finite moves nothing.
    ///
    /// # Errors
    /// The device's.
    pub fn step(&mut self, gradients: &GradStore, rate: f64) -> Result<f64> {
        let mut square = 0.0;
        for entry in &self.entries {
            if let Some(gradient) = gradients.get(&entry.var) {
                square += f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?);
            }
        }
        let norm = square.sqrt();
        if !norm.is_finite() {
            return Ok(norm);
        }
        self.step += 1;
        let scale = (self.clip / norm.max(self.clip)).min(1.0);
        let [first, second] = BETA.map(|beta| 1.0 - beta.powf(self.step as f64));
        for entry in &mut self.entries {
            let Some(gradient) = gradients.get(&entry.var) else { continue };
            let gradient = (gradient * scale)?;
            let [mean, square] = &entry.moments;
            let mean = ((mean * BETA[0])? + (&gradient * (1.0 - BETA[0]))?)?;
            let square = ((square * BETA[1])? + (gradient.sqr()? * (1.0 - BETA[1]))?)?;
            let change = (&mean / first)?.div(&((&square / second)?.sqrt()? + EPSILON)?)?;
            // Gains and biases are not pulled towards zero.
            let decay = if entry.var.rank() > 1 { rate * self.weight_decay } else { 0.0 };
            entry.var.set(&((entry.var.as_tensor() * (1.0 - decay))? - (change * rate)?)?)?;
            entry.moments = [mean, square];
        }
        Ok(norm)
    }

    /// What the names of the second moments begin with; they are sums of squares.
    pub(crate) const SQUARE: &str = "adam.square.";

    /// Names of a variable's moments.
    pub(crate) fn moments(name: &str) -> [String; 2] {
        [format!("adam.mean.{name}"), format!("{}{name}", Self::SQUARE)]
    }

    /// Every variable and moment by name, and the number of steps: what a checkpoint holds.
    pub fn tensors(&self) -> (Vec<(String, Tensor)>, u64) {
        let named = self.entries.iter().flat_map(|entry| {
            let [mean, square] = entry.moments.clone();
            let [mean_name, square_name] = Self::moments(&entry.name);
            [(entry.name.clone(), entry.var.as_tensor().clone()), (mean_name, mean), (square_name, square)]
        });
        (named.collect(), self.step)
    }

    /// Takes up what [`AdamW::tensors`] gave.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape.
    pub fn restore(&mut self, find: impl Fn(&str) -> Result<Tensor>, step: u64) -> Result<()> {
        for entry in &mut self.entries {
            entry.var.set(&find(&entry.name)?)?;
            let moment = |name: &str| {
                let tensor = find(name)?;
                if tensor.shape() != entry.var.shape() {
                    candle_core::bail!("the moments of `{}` have shape {:?}", entry.name, tensor.shape());
                }
                Ok(tensor)
            };
            let [mean, square] = Self::moments(&entry.name);
            entry.moments = [moment(&mean)?, moment(&square)?];
        }
        self.step = step;
        Ok(())
    }
}
