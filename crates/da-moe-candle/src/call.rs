//! One call: everything that backward needs again.

use crate::carried::Carried;
use crate::engine::Engine;
use crate::how::How;
use crate::inputs::Flat;
use crate::interop::{Borrowed, BorrowedMut, Output, ReadGuard};
use crate::lock;
use crate::weights::Parts;
use candle_core::{Result, Tensor, bail};
use da_moe::{Attention, ExpertGradients, ExpertWeights, Gradients, Inputs, Step, TensorRef, Weights};
use std::sync::{Arc, Mutex};

pub(crate) struct Call {
    pub engine: Arc<Engine>,
    /// Detached, as `inputs` are, so that a call does not keep the graph that it is part of.
    pub weights: Arc<Parts<Tensor>>,
    pub inputs: Flat<Tensor>,
    pub how: How,
    pub step: Arc<Mutex<Step>>,
    /// By weight, from the backward of the layer until the weight's link, or the record, takes it.
    pub gradients: Mutex<Vec<Option<Tensor>>>,
}

impl Call {
    /// `y[T, D]`, and what was carried before.
    pub fn forward(&self) -> Result<(Output, Carried)> {
        let mut y = Output::like("y", &self.inputs.x, &self.engine)?;
        let carried = self.with_views(|inputs, weights| {
            let y = &mut y.borrow_mut(&self.engine)?;
            self.engine.forward(self.how.start, inputs, weights, &mut lock(&self.step), y.view()?)
        })?;
        Ok((y, carried))
    }

    /// `dx[T, D]`; the weights' gradients are left for [`Call::take_gradient`].
    pub fn backward(&self, dy: &Tensor) -> Result<Tensor> {
        let dy = dy.contiguous()?;
        let dy = ReadGuard::new("dy", &dy)?;
        let mut dx = Output::like("d.x", &self.inputs.x, &self.engine)?;
        let mut outputs = self.weights.try_map(|name, weight| Output::like(name, weight, &self.engine))?;
        self.with_views(|inputs, weights| {
            let dy = dy.borrow(&self.engine)?;
            let mut dx = dx.borrow_mut(&self.engine)?;
            let mut borrowed = outputs.try_map_mut(|output| output.borrow_mut(&self.engine))?;
            let mut gradients = Gradients { loss_scale: self.how.loss_scale, ..views_mut(&mut dx, &mut borrowed)? };
            self.engine.backward(inputs, weights, dy.view()?, &mut lock(&self.step), &mut gradients)
        })?;
        *lock(&self.gradients) = outputs.into_vec().into_iter().map(|output| Some(output.into_tensor())).collect();
        Ok(dx.into_tensor())
    }

    /// The gradient of weight number `weight`, once for each backward.
    pub fn take_gradient(&self, weight: usize) -> Result<Tensor> {
        match lock(&self.gradients).get_mut(weight).and_then(Option::take) {
            Some(gradient) => Ok(gradient),
            None => bail!("weight {weight} was asked for its gradient before the layer was"),
        }
    }

    fn with_views<R>(&self, call: impl FnOnce(&Inputs<'_>, &Weights<'_>) -> Result<R>) -> Result<R> {
        let (inputs, weights) = (self.inputs.try_map(ReadGuard::new)?, self.weights.try_map(ReadGuard::new)?);
        let inputs = inputs.try_map(|_, guard| guard.borrow(&self.engine))?;
        let weights = weights.try_map(|_, guard| guard.borrow(&self.engine))?;
        call(&inputs.views(self.how.training)?, &weights.views()?)
    }
}

impl Flat<Borrowed<'_>> {
    fn views(&self, training: bool) -> Result<Inputs<'_>> {
        let attention = match (&self.query_key, &self.probabilities) {
            (Some([q, k]), _) => Some(Attention::QueryKey { q: q.view()?, k: k.view()?, lse: optional(&self.lse)? }),
            (None, Some(probabilities)) => Some(Attention::Probabilities(probabilities.view()?)),
            (None, None) => None,
        };
        Ok(Inputs {
            x: self.x.view()?,
            cu_seqlens: Some(self.cu_seqlens.view()?),
            mask: optional(&self.mask)?,
            attention,
            importance: optional(&self.importance)?,
            token_ids: optional(&self.token_ids)?,
            token_frequency: optional(&self.token_frequency)?,
            k_given: optional(&self.k_given)?,
            routing: None,
            training,
        })
    }
}

impl Parts<Borrowed<'_>> {
    fn views(&self) -> Result<Weights<'_>> {
        Ok(Weights {
            shared: match &self.shared {
                Some([w_in, w_out]) => {
                    Some(ExpertWeights { w_in: w_in.view()?, w_out: w_out.view()?, b_in: None, b_out: None })
                }
                None => None,
            },
            constants: optional(&self.constants)?,
            ..Weights::new(self.router.view()?, self.w_in.view()?, self.w_out.view()?)
        })
    }
}

fn optional<'s, const R: usize>(borrowed: &'s Option<Borrowed<'_>>) -> Result<Option<TensorRef<'s, R>>> {
    borrowed.as_ref().map(Borrowed::view).transpose()
}

fn views_mut<'s>(dx: &'s mut BorrowedMut<'_>, borrowed: &'s mut Parts<BorrowedMut<'_>>) -> Result<Gradients<'s>> {
    Ok(Gradients {
        x: dx.view()?,
        router: Some(borrowed.router.view()?),
        experts: experts_mut(&mut borrowed.w_in, &mut borrowed.w_out)?,
        shared: match &mut borrowed.shared {
            Some([w_in, w_out]) => Some(experts_mut(w_in, w_out)?),
            None => None,
        },
        constants: borrowed.constants.as_mut().map(BorrowedMut::view).transpose()?,
        routing: None,
        accumulate: false,
        loss_scale: 1.0,
    })
}

fn experts_mut<'s>(w_in: &'s mut BorrowedMut<'_>, w_out: &'s mut BorrowedMut<'_>) -> Result<ExpertGradients<'s>> {
    Ok(ExpertGradients { w_in: w_in.view()?, w_out: w_out.view()?, b_in: None, b_out: None })
}
