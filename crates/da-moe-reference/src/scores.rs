//! SPEC §3: `z = x W_rᵀ` and `s = softmax(z)`, `sigmoid(z)` or `relu(z)`.

use crate::Problem;
use crate::problem::{dot, row};
use da_moe_core::Scoring;

/// `z[T, E + Z]`.
pub fn logits(problem: &Problem) -> Vec<f64> {
    let (d, candidates) = (problem.config.hidden_size, problem.config.candidates());
    let z = |t, e| dot(problem.x_row(t), row(&problem.router, e, d));
    (0..problem.tokens).flat_map(|t| (0..candidates).map(move |e| z(t, e))).collect()
}

/// `s` of one token.
pub fn scores(scoring: Scoring, z: &[f64]) -> Vec<f64> {
    match scoring {
        Scoring::Softmax => softmax(z),
        Scoring::Sigmoid => z.iter().map(|z| 1.0 / (1.0 + (-z).exp())).collect(),
        // Not f64::max, which would hide a NaN.
        Scoring::Relu => z.iter().map(|&z| if z <= 0.0 { 0.0 } else { z }).collect(),
    }
}

/// `s` over its row sum unless softmax, which sums to 1 already; 0 where the sum is 0.
pub fn probabilities(scoring: Scoring, s: &[f64]) -> Vec<f64> {
    let sum: f64 = s.iter().sum();
    match scoring {
        Scoring::Softmax => s.to_vec(),
        Scoring::Sigmoid | Scoring::Relu if sum == 0.0 => vec![0.0; s.len()],
        Scoring::Sigmoid | Scoring::Relu => s.iter().map(|s| s / sum).collect(),
    }
}

/// `exp(z − max) / Σ exp(z − max)`.
pub fn softmax(z: &[f64]) -> Vec<f64> {
    let largest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = z.iter().map(|z| (z - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|power| power / sum).collect()
}

/// `ln Σ exp z`.
pub fn log_sum_exp(z: &[f64]) -> f64 {
    let largest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if largest.is_infinite() {
        return largest;
    }
    largest + z.iter().map(|z| (z - largest).exp()).sum::<f64>().ln()
}
