//! SPEC §5: `y_t = Σ_slots g · o_row`, null experts among the slots (`zero` nothing, `copy` `x_t`, `constant` `c_e`), in
//! slot order, then the shared expert.

use crate::problem::{add_scaled, row, row_mut};
use crate::{Plan, Problem, Slot};
use da_moe_core::NullExpert;

/// `y[T, D]` of a selection, its plan, the rows' outputs and the shared expert's.
pub fn combine(
    problem: &Problem,
    selection: &[Vec<Slot>],
    plan: &Plan,
    rows: &[f64],
    shared: Option<&[f64]>,
) -> Vec<f64> {
    let d = problem.config.hidden_size;
    let mut y = vec![0.0; problem.tokens * d];
    for (t, slots) in selection.iter().enumerate() {
        let y = row_mut(&mut y, t, d);
        for (slot, at) in slots.iter().zip(&plan.token_row[t]) {
            match (at, null_output(problem, t, slot.expert)) {
                (Some(at), _) => add_scaled(y, slot.weight, row(rows, *at, d)),
                (None, Some(output)) => add_scaled(y, slot.weight, output),
                (None, None) => {}
            }
        }
    }
    if let Some(shared) = shared {
        let rows = problem.unmasked_tokens().zip(shared.chunks(d));
        rows.for_each(|(t, shared)| add_scaled(row_mut(&mut y, t, d), 1.0, shared));
    }
    y
}

/// What the null expert with this id returns for token `t`: none for `zero` and for routed experts.
pub(crate) fn null_output(problem: &Problem, t: usize, expert: usize) -> Option<&[f64]> {
    let null = expert.checked_sub(problem.config.num_experts)?;
    match problem.config.null_expert {
        NullExpert::Zero => None,
        NullExpert::Copy => Some(problem.x_row(t)),
        NullExpert::Constant => problem.constants.as_ref().map(|c| row(c, null, problem.config.hidden_size)),
    }
}
