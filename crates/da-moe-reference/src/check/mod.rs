//! Holds what a backend produced against the oracle (SPEC §8), in four stages: importance and logits within the f32
//! bound; `k`, selection and order recomputed from the outcome's own importance and logits; the plan recomputed from the
//! outcome's own selection; weights, `y`, losses and gradients against the oracle forced to the outcome's decision.

mod bounds;
mod conditioning;
mod importance;
mod order;
mod outcome;
mod plan;
mod report;
mod selection;
mod tensors;

pub use outcome::Outcome;
pub use report::{Figure, Mismatch};

use crate::Problem;
use da_moe_core::DType;
use report::Report;

/// Compares an outcome with the oracle. `dtype` is the storage type; `dy` is needed for the outcome's gradients.
///
/// # Errors
/// Everything that is wrong in the first stage that finds anything.
pub fn verify(
    problem: &Problem,
    outcome: &Outcome,
    dtype: DType,
    dy: Option<&[f64]>,
) -> Result<Vec<Figure>, Vec<Mismatch>> {
    let mut report = Report::default();
    outcome.check_lengths(problem, &mut report);
    if report.is_clean() && problem.routing.is_none() {
        importance::check(problem, outcome, &mut report);
    }
    if report.is_clean() {
        selection::check(problem, outcome, &mut report);
    }
    if !report.is_clean() {
        return report.finish();
    }
    let slots = outcome.slots();
    plan::check(problem, outcome, &slots, &mut report);
    if report.is_clean() {
        tensors::check(problem, outcome, &slots, dtype, dy, &mut report);
    }
    report.finish()
}
