//! One call: everything that backward needs again.

use crate::carried::Carried;
use crate::engine::Engine;
use crate::how::How;
use crate::inputs::Flat;
use crate::lend::{Fresh, Lent, Opened, OpenedMut};
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
    pub fn forward(&self) -> Result<(Fresh, Carried)> {
        let mut y = Fresh::like("y", &self.inputs.x, &self.engine)?;
        let carried = self.with_views(|inputs, weights| {
            let y = &mut y.open(&self.engine)?;
            self.engine.forward(self.how.start, inputs, weights, &mut lock(&self.step), y.view()?)
        })?;
        Ok((y, carried))
    }

    /// `dx[T, D]`; the weights' gradients are left for [`Call::take_gradient`].
    pub fn backward(&self, dy: &Tensor) -> Result<Tensor> {
        let dy = dy.contiguous()?;
        let dy = Lent::new("dy", &dy)?;
        let mut dx = Fresh::like("d.x", &self.inputs.x, &self.engine)?;
        let mut fresh = self.weights.try_map(|name, weight| Fresh::like(name, weight, &self.engine))?;
        self.with_views(|inputs, weights| {
            let dy = dy.open(&self.engine)?;
            let mut dx = dx.open(&self.engine)?;
            let mut opened = fresh.try_map_mut(|fresh| fresh.open(&self.engine))?;
            let mut gradients = Gradients { loss_scale: self.how.loss_scale, ..views_mut(&mut dx, &mut opened)? };
            self.engine.backward(inputs, weights, dy.view()?, &mut lock(&self.step), &mut gradients)
        })?;
        *lock(&self.gradients) = fresh.into_vec().into_iter().map(|fresh| Some(fresh.into_tensor())).collect();
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
        let (inputs, weights) = (self.inputs.try_map(Lent::new)?, self.weights.try_map(Lent::new)?);
        let inputs = inputs.try_map(|_, lent| lent.open(&self.engine))?;
        let weights = weights.try_map(|_, lent| lent.open(&self.engine))?;
        call(&inputs.views(self.how.training)?, &weights.views()?)
    }
}

impl Flat<Opened<'_>> {
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

impl Parts<Opened<'_>> {
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

fn optional<'s, const R: usize>(opened: &'s Option<Opened<'_>>) -> Result<Option<TensorRef<'s, R>>> {
    opened.as_ref().map(Opened::view).transpose()
}

fn views_mut<'s>(dx: &'s mut OpenedMut<'_>, opened: &'s mut Parts<OpenedMut<'_>>) -> Result<Gradients<'s>> {
    Ok(Gradients {
        x: dx.view()?,
        router: Some(opened.router.view()?),
        experts: experts_mut(&mut opened.w_in, &mut opened.w_out)?,
        shared: match &mut opened.shared {
            Some([w_in, w_out]) => Some(experts_mut(w_in, w_out)?),
            None => None,
        },
        constants: opened.constants.as_mut().map(OpenedMut::view).transpose()?,
        routing: None,
        accumulate: false,
        loss_scale: 1.0,
    })
}

fn experts_mut<'s>(w_in: &'s mut OpenedMut<'_>, w_out: &'s mut OpenedMut<'_>) -> Result<ExpertGradients<'s>> {
    Ok(ExpertGradients { w_in: w_in.view()?, w_out: w_out.view()?, b_in: None, b_out: None })
}
