//! SPEC §5: `h = W_in[e] x (+ b_in)`, `a = act(h)`, `o = W_out[e] a (+ b_out)` for every row of the plan, and for every
//! unmasked token through the shared expert.

use crate::problem::{add_scaled, dot, row, row_mut};
use crate::{Experts, Plan, Problem, activate, activate_backward};
use da_moe_core::Activation;

/// What experts computed, row by row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExpertRows {
    /// `h[rows, F or 2F]`.
    pub hidden: Vec<f64>,
    /// `a[rows, F]`.
    pub activated: Vec<f64>,
    /// `o[rows, D]`, not yet weighted.
    pub out: Vec<f64>,
}

/// The routed experts on the rows of `plan`.
pub fn expert_rows(problem: &Problem, plan: &Plan) -> ExpertRows {
    let rows = plan.row_token.iter().enumerate().map(|(row, &t)| (plan.row_expert(row), t));
    run(&problem.experts, problem, rows)
}

/// The shared expert on every unmasked token.
pub fn shared_rows(problem: &Problem, shared: &Experts) -> ExpertRows {
    run(shared, problem, problem.unmasked_tokens().map(|t| (0, t)))
}

fn run(experts: &Experts, problem: &Problem, rows: impl Iterator<Item = (usize, usize)>) -> ExpertRows {
    let activation = problem.config.hidden_act;
    let mut out = ExpertRows::default();
    for (e, t) in rows {
        let h = project_in(experts, activation, e, problem.x_row(t));
        let a = activate(activation, &h);
        out.out.extend(project_out(experts, problem.config.hidden_size, e, &a));
        out.hidden.extend(h);
        out.activated.extend(a);
    }
    out
}

/// `W_in[e] x (+ b_in)`.
fn project_in(experts: &Experts, activation: Activation, e: usize, x: &[f64]) -> Vec<f64> {
    let rows_in = activation.rows_in(experts.width);
    let bias = |f: usize| experts.b_in.as_ref().map_or(0.0, |b| b[e * rows_in + f]);
    (0..rows_in).map(|f| dot(row(&experts.w_in, e * rows_in + f, x.len()), x) + bias(f)).collect()
}

/// `W_out[e] a (+ b_out)`.
pub(crate) fn project_out(experts: &Experts, hidden: usize, e: usize, a: &[f64]) -> Vec<f64> {
    let bias = |d: usize| experts.b_out.as_ref().map_or(0.0, |b| b[e * hidden + d]);
    (0..hidden).map(|d| dot(row(&experts.w_out, e * hidden + d, a.len()), a) + bias(d)).collect()
}

/// SPEC §6 for one row: with `dO = g·dy`, `dW_out += dO ⊗ a`, `dh = (W_outᵀ dO) ∘ act'`, `dW_in += dh ⊗ x`; returns
/// `dx = W_inᵀ dh`.
pub(crate) fn row_backward(
    experts: &Experts,
    activation: Activation,
    e: usize,
    (x, h, a): (&[f64], &[f64], &[f64]),
    d_out: &[f64],
    gradients: &mut Experts,
) -> Vec<f64> {
    let (hidden, rows_in) = (x.len(), h.len());
    let mut da = vec![0.0; a.len()];
    for (d, &d_out) in d_out.iter().enumerate() {
        let at = e * hidden + d;
        add_scaled(&mut da, d_out, row(&experts.w_out, at, a.len()));
        add_scaled(row_mut(&mut gradients.w_out, at, a.len()), d_out, a);
        if let Some(b_out) = &mut gradients.b_out {
            b_out[at] += d_out;
        }
    }
    let mut dx = vec![0.0; hidden];
    for (f, dh) in activate_backward(activation, h, &da).into_iter().enumerate() {
        let at = e * rows_in + f;
        add_scaled(&mut dx, dh, row(&experts.w_in, at, hidden));
        add_scaled(row_mut(&mut gradients.w_in, at, hidden), dh, x);
        if let Some(b_in) = &mut gradients.b_in {
            b_in[at] += dh;
        }
    }
    dx
}
