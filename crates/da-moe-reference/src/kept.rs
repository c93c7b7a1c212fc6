//! SPEC §6: what backward has of a forward. In bf16 its `h` is rounded, and what it takes of `a` and `o` is of that.

use crate::experts::project_out;
use crate::problem::row;
use crate::{ExpertRows, Experts, Forward, Problem, activate};
use da_moe_core::{Activation, DType, bf16, hidden_type};

/// A forward as [`backward`](crate::backward) has it in a call with this storage type.
pub fn kept(problem: &Problem, forward: &Forward, storage: DType) -> Forward {
    let mut kept = forward.clone();
    if hidden_type(storage) != DType::Bf16 {
        return kept;
    }
    let (activation, d) = (problem.config.hidden_act, problem.config.hidden_size);
    kept.rows = rounded(&forward.rows, &problem.experts, activation, d, |at| forward.plan.row_expert(at));
    if let (Some(shared), Some(rows)) = (&problem.shared, &forward.shared) {
        kept.shared = Some(rounded(rows, shared, activation, d, |_| 0));
    }
    kept
}

/// The same rows from rounded `h`.
fn rounded(
    rows: &ExpertRows,
    experts: &Experts,
    activation: Activation,
    d: usize,
    expert: impl Fn(usize) -> usize,
) -> ExpertRows {
    let hidden: Vec<f64> = rows.hidden.iter().map(|h| bf16::from_f64(*h).to_f64()).collect();
    let activated: Vec<f64> =
        hidden.chunks(activation.rows_in(experts.width)).flat_map(|h| activate(activation, h)).collect();
    let of_row = |at| project_out(experts, d, expert(at), row(&activated, at, experts.width));
    let out = (0..activated.len() / experts.width).flat_map(of_row).collect();
    ExpertRows { hidden, activated, out }
}
