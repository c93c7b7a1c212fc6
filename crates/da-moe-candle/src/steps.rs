//! Buffers of calls, used again when nothing refers to the call any more.

use crate::engine::Engine;
use crate::lock;
use candle_core::Result;
use da_moe::{DType, Keep, Step};
use std::sync::{Arc, Mutex};

/// Every step that a layer has. One is free when nobody else holds it.
#[derive(Default)]
pub(crate) struct Steps(Mutex<Vec<Made>>);

struct Made {
    tokens: usize,
    dtype: DType,
    keep: Keep,
    step: Arc<Mutex<Step>>,
}

impl Steps {
    /// A step for a call of so many tokens: a free one, or a new one in place of a free one that is too small.
    pub fn take(&self, engine: &Engine, tokens: usize, dtype: DType, keep: Keep) -> Result<Arc<Mutex<Step>>> {
        let mut all = lock(&self.0);
        let free = |made: &&mut Made| made.dtype == dtype && made.keep == keep && Arc::strong_count(&made.step) == 1;
        let largest = all.iter_mut().filter(free).max_by_key(|made| made.tokens);
        match largest {
            Some(made) if made.tokens >= tokens => Ok(made.step.clone()),
            too_small => {
                let step = Arc::new(Mutex::new(engine.step(tokens, dtype, keep)?));
                let made = Made { tokens, dtype, keep, step: step.clone() };
                match too_small {
                    Some(place) => *place = made,
                    None => all.push(made),
                }
                Ok(step)
            }
        }
    }
}

#[cfg(test)]
impl Steps {
    /// Where each step is, in the order in which they were made.
    pub fn places(&self) -> Vec<*const Mutex<Step>> {
        lock(&self.0).iter().map(|made| Arc::as_ptr(&made.step)).collect()
    }
}
