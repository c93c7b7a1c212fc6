//! SPEC §3: balance loss `E · Σ_e f_e p_e` with `f_e = count_e / R` (no gradient) and `p_e = mean_t` of the probabilities;
//! z-loss `mean_t (logsumexp z_t)²`. Means run over unmasked tokens; with none, and for `f` with `R = 0`, they are 0.

use crate::problem::{dot, row};
use crate::scores::shares_backward;
use crate::{log_sum_exp, probabilities, softmax};
use da_moe_core::LayerConfig;

/// `E · Σ_e f_e p_e` of `logits[T, E + Z]` and the selections of each candidate before any drop.
pub fn balance_loss(config: &LayerConfig, logits: &[f64], load: &[usize], mask: &[bool]) -> f64 {
    let slope = balance_slope(config, load, mask);
    let of_token = |t| dot(&slope, &probabilities(config.router.scoring, row(logits, t, load.len())));
    unmasked(mask).map(of_token).sum()
}

/// `mean_t (logsumexp z_t)²` of `logits[T, E + Z]`.
pub fn z_loss(config: &LayerConfig, logits: &[f64], mask: &[bool]) -> f64 {
    let square = |t| log_sum_exp(row(logits, t, config.candidates())).powi(2);
    unmasked(mask).map(square).sum::<f64>() / unmasked(mask).count().max(1) as f64
}

/// Gradient of the balance loss in the logits of one unmasked token.
pub(crate) fn balance_backward(config: &LayerConfig, z: &[f64], load: &[usize], mask: &[bool]) -> Vec<f64> {
    let all: Vec<usize> = (0..z.len()).collect();
    shares_backward(config.router.scoring, z, &all, &balance_slope(config, load, mask))
}

/// Gradient of the z-loss in the logits of one unmasked token: `2 logsumexp(z) softmax(z) / n`.
pub(crate) fn z_backward(z: &[f64], mask: &[bool]) -> Vec<f64> {
    let factor = 2.0 * log_sum_exp(z) / unmasked(mask).count().max(1) as f64;
    softmax(z).iter().map(|p| factor * p).collect()
}

/// `∂L/∂p[t,e] = E · f_e / n`, the same for every unmasked token.
pub(crate) fn balance_slope(config: &LayerConfig, load: &[usize], mask: &[bool]) -> Vec<f64> {
    let selections = load.iter().sum::<usize>().max(1) as f64;
    let tokens = unmasked(mask).count().max(1) as f64;
    load.iter().map(|&count| config.num_experts as f64 * count as f64 / selections / tokens).collect()
}

fn unmasked(mask: &[bool]) -> impl Iterator<Item = usize> + '_ {
    mask.iter().enumerate().filter(|(_, token)| **token).map(|(t, _)| t)
}
