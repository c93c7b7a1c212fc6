//! SPEC §6: gradients of `⟨y, dy⟩ + balance · L_balance + z · L_z`. `k`, the selection, `f_e` and drops carry none.

use crate::combine::null_output;
use crate::experts::row_backward;
use crate::losses::{balance_backward, z_backward};
use crate::problem::{add_scaled, dot, row, row_mut};
use crate::weights::weights_backward;
use crate::{Decision, Experts, Forward, Problem, forward_with};
use da_moe_core::NullExpert;

/// Gradients of everything that has one.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// `[T, D]`.
    pub x: Vec<f64>,
    /// `[E + Z, D]`; none for a routing from outside.
    pub router: Option<Vec<f64>>,
    /// Of the routed experts.
    pub experts: Experts,
    /// Of the shared expert.
    pub shared: Option<Experts>,
    /// `[Z, D]`.
    pub constants: Option<Vec<f64>>,
    /// Of a routing's weights: token after token, each token's entries in the caller's order; 0 for "none".
    pub routing: Option<Vec<f64>>,
}

/// What is differentiated, as a function of the problem alone once the decision is fixed.
pub fn objective(problem: &Problem, decision: &Decision, dy: &[f64]) -> f64 {
    let forward = forward_with(problem, decision);
    let losses = &problem.config.losses;
    dot(&forward.y, dy) + losses.balance * forward.balance_loss + losses.z * forward.z_loss
}

/// The gradients at a forward pass.
pub fn backward(problem: &Problem, forward: &Forward, dy: &[f64]) -> Gradients {
    let mut gradients = Gradients {
        x: vec![0.0; problem.x.len()],
        router: problem.routing.is_none().then(|| vec![0.0; problem.router.len()]),
        experts: problem.experts.zeros_like(),
        shared: problem.shared.as_ref().map(Experts::zeros_like),
        constants: problem.constants.as_ref().map(|c| vec![0.0; c.len()]),
        routing: problem.routing.as_ref().map(|routing| vec![0.0; routing.iter().map(Vec::len).sum()]),
    };
    routed_backward(problem, forward, dy, &mut gradients);
    null_backward(problem, forward, dy, &mut gradients);
    shared_backward(problem, forward, dy, &mut gradients);
    let dg = weight_gradients(problem, forward, dy);
    match &problem.routing {
        Some(routing) => routing_backward(routing, forward, &dg, &mut gradients),
        None => router_backward(problem, forward, &dg, &mut gradients),
    }
    gradients
}

/// `dg[t][slot] = ⟨dy_t, o⟩`, `o` what the slot's expert returned (equal to `⟨a, da⟩` without `b_out`); 0 when dropped.
pub(crate) fn weight_gradients(problem: &Problem, forward: &Forward, dy: &[f64]) -> Vec<Vec<f64>> {
    let d = problem.config.hidden_size;
    let of_slot = |t: usize, slot: usize| {
        let dy = row(dy, t, d);
        match (forward.plan.token_row[t][slot], null_output(problem, t, forward.selection[t][slot].expert)) {
            (Some(at), _) => dot(dy, row(&forward.rows.out, at, d)),
            (None, Some(output)) => dot(dy, output),
            (None, None) => 0.0,
        }
    };
    (0..problem.tokens).map(|t| (0..forward.k[t]).map(|slot| of_slot(t, slot)).collect()).collect()
}

fn routed_backward(problem: &Problem, forward: &Forward, dy: &[f64], gradients: &mut Gradients) {
    let (d, width) = (problem.config.hidden_size, problem.config.moe_intermediate_size);
    let (rows_in, activation) = (problem.config.rows_in(), problem.config.hidden_act);
    for (at, (&t, &g)) in forward.plan.row_token.iter().zip(&forward.plan.row_weight).enumerate() {
        let kept = (problem.x_row(t), row(&forward.rows.hidden, at, rows_in), row(&forward.rows.activated, at, width));
        let d_out: Vec<f64> = row(dy, t, d).iter().map(|dy| g * dy).collect();
        let e = forward.plan.row_expert(at);
        let dx = row_backward(&problem.experts, activation, e, kept, &d_out, &mut gradients.experts);
        add_scaled(row_mut(&mut gradients.x, t, d), 1.0, &dx);
    }
}

/// `copy` returns `g·dy` to `x`, `constant` to its vector.
fn null_backward(problem: &Problem, forward: &Forward, dy: &[f64], gradients: &mut Gradients) {
    let (d, experts) = (problem.config.hidden_size, problem.config.num_experts);
    for (t, slots) in forward.selection.iter().enumerate() {
        for slot in slots.iter().filter(|slot| slot.expert >= experts) {
            match (problem.config.null_expert, &mut gradients.constants) {
                (NullExpert::Copy, _) => add_scaled(row_mut(&mut gradients.x, t, d), slot.weight, row(dy, t, d)),
                (NullExpert::Constant, Some(constants)) => {
                    add_scaled(row_mut(constants, slot.expert - experts, d), slot.weight, row(dy, t, d));
                }
                (NullExpert::Zero | NullExpert::Constant, _) => {}
            }
        }
    }
}

fn shared_backward(problem: &Problem, forward: &Forward, dy: &[f64], gradients: &mut Gradients) {
    let (Some(shared), Some(rows), Some(d_shared)) = (&problem.shared, &forward.shared, &mut gradients.shared) else {
        return;
    };
    let (d, rows_in) = (problem.config.hidden_size, problem.config.shared_rows_in());
    for (at, t) in problem.unmasked_tokens().enumerate() {
        let kept = (problem.x_row(t), row(&rows.hidden, at, rows_in), row(&rows.activated, at, shared.width));
        let dx = row_backward(shared, problem.config.hidden_act, 0, kept, row(dy, t, d), d_shared);
        add_scaled(row_mut(&mut gradients.x, t, d), 1.0, &dx);
    }
}

/// `dg` back in the caller's order.
fn routing_backward(routing: &[Vec<(usize, f64)>], forward: &Forward, dg: &[Vec<f64>], gradients: &mut Gradients) {
    let Some(d_routing) = &mut gradients.routing else { return };
    let mut first = 0;
    for (t, entries) in routing.iter().enumerate() {
        for (&position, &dg) in forward.ranked[t].iter().zip(&dg[t]) {
            d_routing[first + position] = dg;
        }
        first += entries.len();
    }
}

/// `dg → dz` through the weights and scores, plus the losses; `dW_r = dzᵀ x`, `dx += dz W_r`. A masked token takes part in
/// neither.
fn router_backward(problem: &Problem, forward: &Forward, dg: &[Vec<f64>], gradients: &mut Gradients) {
    let (config, d, candidates) = (&problem.config, problem.config.hidden_size, problem.config.candidates());
    let Some(d_router) = &mut gradients.router else { return };
    for t in (0..problem.tokens).filter(|&t| problem.mask[t]) {
        let z = row(&forward.logits, t, candidates);
        let experts: Vec<usize> = forward.selection[t].iter().map(|slot| slot.expert).collect();
        let mut dz = weights_backward(&config.router, z, &experts, &forward.ranked[t], &dg[t]);
        if config.losses.balance != 0.0 {
            add_scaled(&mut dz, config.losses.balance, &balance_backward(config, z, &forward.load, &problem.mask));
        }
        if config.losses.z != 0.0 {
            add_scaled(&mut dz, config.losses.z, &z_backward(z, &problem.mask));
        }
        for (e, &dz) in dz.iter().enumerate() {
            add_scaled(row_mut(d_router, e, d), dz, problem.x_row(t));
            add_scaled(row_mut(&mut gradients.x, t, d), dz, row(&problem.router, e, d));
        }
    }
}
