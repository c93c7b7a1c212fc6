//! What `running` and `budget-running` carry between calls, as values.

use candle_core::{Result, bail};
use da_moe::STATE_LEN;

/// What a layer carried when a call began: with it the call can be made again, with the same bits. A few numbers; of a layer
/// that carries nothing, zeros.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Carried([f32; STATE_LEN]);

impl Carried {
    /// Of a layer before its first step.
    pub(crate) const NONE: Self = Self([0.0; STATE_LEN]);

    pub(crate) fn new(values: [f32; STATE_LEN]) -> Self {
        Self(values)
    }

    /// The same numbers as [`DaMoe::state`](crate::DaMoe::state) has.
    pub fn values(&self) -> [f32; STATE_LEN] {
        self.0
    }
}

impl TryFrom<&[f32]> for Carried {
    type Error = candle_core::Error;

    /// Numbers from outside, if a layer can have come to them: minimum and maximum of importance, price, and training steps that
    /// moved the first two.
    fn try_from(values: &[f32]) -> Result<Self> {
        let Ok(values) = <[f32; STATE_LEN]>::try_from(values) else {
            bail!("a layer carries {STATE_LEN} values, {} were given", values.len());
        };
        let [minimum, maximum, price, steps] = values;
        if let Some(number) = values.iter().find(|number| !number.is_finite()) {
            bail!("a layer carries finite values, {number} was given: {values:?}");
        }
        if minimum < 0.0 {
            bail!("a layer carries a minimum from 0 up, {minimum} was given");
        }
        if minimum > maximum {
            bail!("a layer carries a minimum and a maximum, {minimum} and {maximum} were given");
        }
        if price < 0.0 {
            bail!("a layer carries a price from 0 up, {price} was given");
        }
        if steps < 0.0 || steps.fract() != 0.0 {
            bail!("a layer carries a number of steps, {steps} was given");
        }
        Ok(Self(values))
    }
}
