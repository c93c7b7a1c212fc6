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

/// `s_e / Σ s` over the `members`: 0 where every score of theirs is 0, NaN where the score or the sum is no number. Found from
/// logarithms, because scores that are too small for any number still have a ratio.
pub fn shares(scoring: Scoring, z: &[f64], members: &[usize]) -> Vec<f64> {
    let s = scores(scoring, z);
    let logarithms: Vec<f64> = members.iter().map(|&e| log_score(scoring, z[e])).collect();
    let total = log_sum_exp(&logarithms);
    let of_member = |(&e, logarithm): (&usize, &f64)| {
        if s[e].is_nan() || total == f64::INFINITY {
            f64::NAN
        } else if total == f64::NEG_INFINITY {
            0.0
        } else {
            (logarithm - total).exp()
        }
    };
    members.iter().zip(&logarithms).map(of_member).collect()
}

/// `s` over its row sum: the probabilities of `top-p` and of the balance loss.
pub fn probabilities(scoring: Scoring, z: &[f64]) -> Vec<f64> {
    shares(scoring, z, &(0..z.len()).collect::<Vec<_>>())
}

/// `ln s`, for softmax but for the logarithm of its divisor, which no ratio of scores depends on.
pub(crate) fn log_score(scoring: Scoring, z: f64) -> f64 {
    match scoring {
        Scoring::Softmax => z,
        // Not f64::min, which would hide a NaN.
        Scoring::Sigmoid => (if z > 0.0 { 0.0 } else { z }) - (-z.abs()).exp().ln_1p(),
        Scoring::Relu if z <= 0.0 => f64::NEG_INFINITY,
        Scoring::Relu => z.ln(),
    }
}

/// `d ln s / dz`, for softmax but for what moves with its divisor; 0 for a score that relu holds at 0.
pub(crate) fn log_score_slope(scoring: Scoring, z: f64) -> f64 {
    match scoring {
        Scoring::Softmax => 1.0,
        // `1 − s`, without the difference.
        Scoring::Sigmoid => 1.0 / (1.0 + z.exp()),
        Scoring::Relu if z <= 0.0 => 0.0,
        Scoring::Relu => 1.0 / z,
    }
}

/// Gradient in the logits of one token from the gradient `d_share` in the [`shares`] of `members`:
/// `dz_e = p_e (d_share_e − Σ_j p_j d_share_j) · d ln s_e / dz_e`, 0 for everyone else.
pub(crate) fn shares_backward(scoring: Scoring, z: &[f64], members: &[usize], d_share: &[f64]) -> Vec<f64> {
    let p = shares(scoring, z, members);
    let mean = dot(&p, d_share);
    let mut dz = vec![0.0; z.len()];
    for ((&e, p), d_share) in members.iter().zip(&p).zip(d_share) {
        dz[e] = p * (d_share - mean) * log_score_slope(scoring, z[e]);
    }
    dz
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
