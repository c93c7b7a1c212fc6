//! What is carried between steps (SPEC §1 `running`, §2 `budget-running`): minimum, maximum, price `λ`, and the
//! training steps that moved minimum and maximum.
//! `stat ← momentum · stat + (1 − momentum) · (the batch's)`, the first step setting them outright;
//! `λ ← λ · ((Σ (k_t − k_min) + 1) / (N + 1))^(1 − momentum)`.

use crate::normalize::counted;
use crate::{Problem, levels_to_share};
use da_moe_core::{ExpertsPerToken, Normalize, Policy};

/// Minimum and maximum of earlier training steps; (0, 1) before the first.
pub fn running_statistics(state: [f64; 4]) -> (f64, f64) {
    if is_fresh(state) { (0.0, 1.0) } else { (state[0], state[1]) }
}

/// Whether no step has left these statistics.
fn is_fresh(state: [f64; 4]) -> bool {
    let [low, high, _, steps] = state;
    !(steps > 0.0 && steps.is_finite() && low >= 0.0 && low <= high && high.is_finite())
}

/// `λ` in f32, as it is stored; `1 / (2 (mean_k − k_min) + 1)` while fresh.
pub fn price(state: [f64; 4], mean_k: f64, k_min: usize) -> f32 {
    let start = 1.0 / (2.0 * (mean_k - k_min as f64).max(0.0) + 1.0);
    let lambda = if state[2] > 0.0 && state[2].is_finite() { state[2] } else { start };
    lambda as f32
}

/// The state after a training step with this importance before the outer normalisation and these `k_t`.
pub fn next_state(problem: &Problem, measured: &[f64], k: &[usize]) -> [f64; 4] {
    let mut state = problem.state;
    let unmasked = || problem.mask.iter().enumerate().filter(|(_, token)| **token).map(|(t, _)| t);
    if unmasked().count() == 0 {
        return state;
    }
    if let Normalize::Running { momentum } = problem.config.importance.normalize
        && problem.missing_for_importance().is_none()
    {
        // An average never leaves infinity again.
        let finite = || unmasked().map(|t| counted(measured[t])).filter(|value| value.is_finite());
        if finite().count() > 0 {
            let (low, high) = (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max));
            let fresh = is_fresh(state);
            let old = running_statistics(state);
            let keep = if fresh { 0.0 } else { momentum };
            state[0] = keep * old.0 + (1.0 - keep) * low;
            state[1] = keep * old.1 + (1.0 - keep) * high;
            state[3] = if fresh { 1.0 } else { state[3] + 1.0 };
        }
    }
    let ExpertsPerToken { policy, .. } = &problem.config.experts_per_token;
    if let Policy::BudgetRunning { mean_k, momentum } = policy {
        let k_min = problem.config.k_min();
        let given: usize = unmasked().map(|t| k[t].saturating_sub(k_min)).sum();
        let wanted = levels_to_share(&problem.config, *mean_k, unmasked().count());
        let ratio = (given as f64 + 1.0) / (wanted as f64 + 1.0);
        let next = f64::from(price(state, *mean_k, k_min)) * ratio.powf(1.0 - momentum);
        state[2] = next.clamp(f64::from(f32::MIN_POSITIVE), f64::from(f32::MAX));
    }
    state
}
