//! What `running` and `budget-running` carry between calls, as numbers from outside.

use candle_core::{Result, bail};
use da_moe::STATE_LEN;

/// The same numbers, if a layer can have come to them: minimum and maximum of importance, price, and training steps that moved the
/// first two.
pub(crate) fn checked(values: &[f32]) -> Result<[f32; STATE_LEN]> {
    let Ok(values) = <[f32; STATE_LEN]>::try_from(values) else {
        bail!("a layer carries {STATE_LEN} values, {} were given", values.len());
    };
    let [minimum, maximum, price, steps] = values;
    if let Some(number) = values.iter().find(|number| !number.is_finite()) {
        bail!("a layer carries finite values, {number} was given: {values:?}");
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
    Ok(values)
}
