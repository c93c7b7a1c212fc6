//! What is carried from one training step to the next.

use crate::{Error, Memory, Result, Slice, TensorMut};

/// Number of f32 values carried between steps: minimum, maximum, price `λ`, training steps that moved the first two.
pub const STATE_LEN: usize = 4;

/// What `running` and `budget-running` carry between steps; part of a checkpoint. Policies that carry nothing leave it be.
#[derive(Debug)]
pub struct State {
    /// `[STATE_LEN]` f32: running minimum and maximum of importance, price `λ`, training steps that moved
    /// minimum and maximum; zeros at first.
    pub values: Memory,
}

impl State {
    pub(crate) fn view_mut(&mut self) -> Result<TensorMut<'_, 1>> {
        TensorMut::prefix(&mut self.values, [STATE_LEN])
    }

    /// Refuses what no steps could have left, where the host can read it: numbers that are not finite, a negative one, a
    /// minimum above the maximum. (On a device such numbers count as none: statistics are then those of a fresh state.)
    ///
    /// # Errors
    /// [`Error::Value`] naming the number.
    pub fn check(&self, op: &'static str) -> Result<()> {
        let Slice::F32(values) = Slice::from(&self.values) else { return Ok(()) };
        let refuse = |problem: String| Err(Error::Value { op, argument: "state", problem });
        let names = ["minimum", "maximum", "price", "number of steps"];
        let wrong = |(_, value): &(&str, &f32)| !(value.is_finite() && **value >= 0.0);
        if let Some((name, value)) = names.into_iter().zip(values).find(wrong) {
            return refuse(format!("its {name} is {value}; no training step leaves that"));
        }
        match values {
            [minimum, maximum, _, steps] if *steps > 0.0 && minimum > maximum => {
                refuse(format!("its minimum {minimum} is above its maximum {maximum}"))
            }
            _ => Ok(()),
        }
    }
}
