//! Everything that a backend produced in one call, widened.

use super::report::Report;
use crate::widen::{integers, values};
use crate::{Experts, Forward, Gradients, Problem, Slot};
use da_moe_core::{ExpertGradients, Result, Step, TensorMut, TensorRef};

/// The outcome of a forward call and, where there was one, its backward call. Layouts are those of
/// [`Selection`](da_moe_core::Selection) and [`Plan`](da_moe_core::Plan).
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// `[T]`; not looked at for a routing from outside.
    pub importance: Vec<f64>,
    /// `[T, E + Z]`; not looked at for a routing from outside.
    pub logits: Vec<f64>,
    /// `[T]`.
    pub k: Vec<i64>,
    /// `[T, k_max]`.
    pub experts: Vec<i64>,
    /// `[T, k_max]`.
    pub weights: Vec<f64>,
    /// `[T, k_max]`.
    pub ranked: Vec<i64>,
    /// `[E + Z]`.
    pub load: Vec<i64>,
    /// `[E + Z]`.
    pub counts: Vec<i64>,
    /// `[E + 1]`.
    pub offsets: Vec<i64>,
    /// At least `R`.
    pub row_token: Vec<i64>,
    /// At least `R`.
    pub row_weight: Vec<f64>,
    /// `[T, k_max]`.
    pub token_row: Vec<i64>,
    /// `[1]`.
    pub dropped: Vec<i64>,
    /// Balance loss and z-loss; not looked at for a routing from outside.
    pub losses: Vec<f64>,
    /// `[T, D]`.
    pub y: Vec<f64>,
    /// Of the backward call.
    pub gradients: Option<Gradients>,
}

impl Outcome {
    /// What the layer's last call left in its buffers.
    ///
    /// # Errors
    /// When no forward has run, or the device's where the buffers are on one.
    pub fn from_step(step: &Step, y: TensorRef<'_, 2>, gradients: Option<&da_moe_core::Gradients<'_>>) -> Result<Self> {
        let (selection, plan) = (step.selection()?, step.plan()?);
        Ok(Self {
            // A routing from outside has neither.
            importance: gated(step.importance())?,
            logits: gated(step.logits())?,
            k: integers(selection.k)?,
            experts: integers(selection.experts)?,
            weights: values(selection.weights)?,
            ranked: integers(selection.ranked)?,
            load: integers(step.load()?)?,
            counts: integers(plan.counts)?,
            offsets: integers(plan.offsets)?,
            row_token: integers(plan.row_token)?,
            row_weight: values(plan.row_weight)?,
            token_row: integers(plan.token_row)?,
            dropped: integers(plan.dropped)?,
            losses: values(step.losses()?)?,
            y: values(y)?,
            gradients: gradients.map(widened).transpose()?,
        })
    }

    /// The oracle's own pass in a backend's layout: what a backend without rounding would produce.
    pub fn from_forward(problem: &Problem, forward: &Forward, gradients: Option<Gradients>) -> Self {
        let k_max = problem.config.k_max();
        let id = |&id: &usize| id as i64;
        let ids = |of: &[usize]| of.iter().map(id).collect::<Vec<i64>>();
        let experts: Vec<Vec<i64>> = forward.decision().experts.iter().map(|experts| ids(experts)).collect();
        let weights: Vec<Vec<f64>> = forward.selection.iter().map(|s| s.iter().map(|s| s.weight).collect()).collect();
        let ranked: Vec<Vec<i64>> = forward.ranked.iter().map(|ranked| ids(ranked)).collect();
        let rows =
            forward.plan.token_row.iter().map(|rows| rows.iter().map(|row| row.as_ref().map_or(-1, id)).collect());
        Self {
            importance: forward.importance.clone(),
            logits: forward.logits.clone(),
            k: ids(&forward.k),
            experts: padded(experts, k_max, -1),
            weights: padded(weights, k_max, 0.0),
            ranked: padded(ranked, k_max, -1),
            load: ids(&forward.load),
            counts: ids(&forward.plan.counts),
            offsets: ids(&forward.plan.offsets),
            row_token: ids(&forward.plan.row_token),
            row_weight: forward.plan.row_weight.clone(),
            token_row: padded(rows, k_max, -1),
            dropped: vec![forward.plan.dropped as i64],
            losses: vec![forward.balance_loss, forward.z_loss],
            y: forward.y.clone(),
            gradients,
        }
    }

    pub(super) fn check_lengths(&self, problem: &Problem, report: &mut Report) {
        let (tokens, candidates) = (problem.tokens, problem.config.candidates());
        let slots = tokens * problem.config.k_max();
        if problem.routing.is_none() {
            report.length("importance", self.importance.len(), tokens);
            report.length("logits", self.logits.len(), tokens * candidates);
            report.length("losses", self.losses.len(), 2);
        }
        report.length("k", self.k.len(), tokens);
        report.length("experts", self.experts.len(), slots);
        report.length("weights", self.weights.len(), slots);
        report.length("ranked", self.ranked.len(), slots);
        report.length("y", self.y.len(), problem.x.len());
    }

    /// The selection, once its ids are known to be good.
    pub(super) fn slots(&self) -> Vec<Vec<Slot>> {
        let k_max = self.experts.len() / self.k.len().max(1);
        let of_token = |(t, &k): (usize, &i64)| {
            let slot = |at: usize| Slot { expert: self.experts[at] as usize, weight: self.weights[at] };
            (t * k_max..t * k_max + k as usize).map(slot).collect()
        };
        self.k.iter().enumerate().map(of_token).collect()
    }
}

/// Each token's list, filled up to `k_max` entries.
pub(super) fn padded<T: Copy>(lists: impl IntoIterator<Item = Vec<T>>, k_max: usize, filler: T) -> Vec<T> {
    let fill = |list: Vec<T>| list.into_iter().chain(std::iter::repeat(filler)).take(k_max);
    lists.into_iter().flat_map(fill).collect()
}

/// Values that a routing from outside does not have.
fn gated<const R: usize>(tensor: Result<TensorRef<'_, R>>) -> Result<Vec<f64>> {
    tensor.map_or(Ok(Vec::new()), values)
}

fn widened(gradients: &da_moe_core::Gradients<'_>) -> Result<Gradients> {
    Ok(Gradients {
        x: values(gradients.x.as_ref())?,
        router: optional(&gradients.router)?,
        experts: expert_gradients(&gradients.experts)?,
        shared: gradients.shared.as_ref().map(expert_gradients).transpose()?,
        constants: optional(&gradients.constants)?,
        routing: optional(&gradients.routing)?,
    })
}

fn optional<const R: usize>(gradient: &Option<TensorMut<'_, R>>) -> Result<Option<Vec<f64>>> {
    gradient.as_ref().map(|gradient| values(gradient.as_ref())).transpose()
}

fn expert_gradients(gradients: &ExpertGradients<'_>) -> Result<Experts> {
    let w_out = gradients.w_out.as_ref();
    let [count, _, width] = w_out.shape();
    Ok(Experts {
        w_in: values(gradients.w_in.as_ref())?,
        w_out: values(w_out)?,
        b_in: optional(&gradients.b_in)?,
        b_out: optional(&gradients.b_out)?,
        count,
        width,
    })
}
