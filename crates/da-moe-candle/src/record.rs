//! What a call decided.

use crate::call::Call;
use crate::lock;
use candle_core::backprop::GradStore;
use candle_core::{Error, Result, Tensor};
use da_moe::{Element, Report, Step, TensorRef};
use std::fmt;
use std::sync::{Arc, Mutex};

/// What one call decided, for reports and pictures. Figures of a GPU are waited for.
///
/// A record keeps the call's buffers from being used again, as its `y` does; it is dropped when it has been read. Where gradients
/// are collected it keeps the call's inputs too.
#[derive(Clone)]
pub struct Record {
    step: Arc<Mutex<Step>>,
    /// Where there are gradients to collect: the call that has them, and the weights with their numbers.
    beside: Option<Beside>,
}

#[derive(Clone)]
struct Beside {
    call: Arc<Call>,
    weights: Vec<(usize, Tensor)>,
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record").finish_non_exhaustive()
    }
}

impl Record {
    /// `weights` are those whose gradients are collected, with their numbers.
    pub(crate) fn new(step: Arc<Mutex<Step>>, call: Arc<Call>, weights: Vec<(usize, Tensor)>) -> Self {
        Self { step, beside: (!weights.is_empty()).then_some(Beside { call, weights }) }
    }

    /// Adds the gradients that a layer [with collected gradients](crate::DaMoe::with_collected_gradients) has left beside candle's
    /// to those of the backward that has just run; once for each backward. Of any other layer there is nothing to add.
    ///
    /// # Errors
    /// When backward has not run since, or the device's.
    pub fn collect_gradients(&self, gradients: &mut GradStore) -> Result<()> {
        let Some(Beside { call, weights }) = &self.beside else { return Ok(()) };
        for (weight, tensor) in weights {
            let gradient = call.take_gradient(*weight)?;
            let sum = match gradients.remove(tensor) {
                Some(others) => others.add(&gradient)?,
                None => gradient,
            };
            gradients.insert(tensor, sum);
        }
        Ok(())
    }

    /// Counts, drops, mean `k`, losses, entropy of the load.
    ///
    /// # Errors
    /// The device's.
    pub fn report(&self) -> Result<Report> {
        lock(&self.step).report().map_err(Error::wrap)
    }

    /// `[T]`: importance, after normalisation.
    ///
    /// # Errors
    /// The device's.
    pub fn importance(&self) -> Result<Vec<f32>> {
        self.read(|step| host(step.importance()?))
    }

    /// `[T]`: `k_t`, before any drop.
    ///
    /// # Errors
    /// The device's.
    pub fn experts_per_token(&self) -> Result<Vec<i32>> {
        self.read(|step| host(step.selection()?.k))
    }

    /// `[T, k_max]`: experts in descending order of weight, −1 past `k_t`.
    ///
    /// # Errors
    /// The device's.
    pub fn experts(&self) -> Result<Vec<i32>> {
        self.read(|step| host(step.selection()?.experts))
    }

    /// `[T, k_max]`: their weights, 0 past `k_t`.
    ///
    /// # Errors
    /// The device's.
    pub fn weights(&self) -> Result<Vec<f32>> {
        self.read(|step| host(step.selection()?.weights))
    }

    /// `[T, E + Z]`: the router's logits.
    ///
    /// # Errors
    /// The device's.
    pub fn logits(&self) -> Result<Vec<f32>> {
        self.read(|step| host(step.logits()?))
    }

    /// `[T, E + Z]`: gradient of the logits, that of the balance and z losses included, from the call's last backward.
    ///
    /// # Errors
    /// When backward has not run, or the device's.
    pub fn router_gradient(&self) -> Result<Vec<f32>> {
        self.read(|step| host(step.router_gradient()?))
    }

    fn read<T>(&self, read: impl FnOnce(&Step) -> da_moe::Result<T>) -> Result<T> {
        read(&lock(&self.step)).map_err(Error::wrap)
    }
}

/// A copy of a dense view, whose memory may have room for more.
fn host<T: Element, const R: usize>(view: TensorRef<'_, R>) -> da_moe::Result<Vec<T>> {
    let count = view.shape().iter().product();
    let copy = view.data().to_host()?;
    let elements = copy.as_slice::<T>().and_then(|elements| elements.get(..count)).map(<[T]>::to_vec);
    let expected = T::DTYPE.to_string();
    elements.ok_or_else(|| da_moe::Error::DType { op: "record", argument: "result", expected, found: view.dtype() })
}
