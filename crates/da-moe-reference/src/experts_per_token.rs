//! SPEC §2: `k_t`. Comparisons of importance, its product with `scale`, budget keys and thresholds are made in f32, so
//! that a backend's own f32 importance gives exactly the same integers here.

use crate::problem::row;
use crate::select::{Keys, above_threshold, descending, reachable};
use crate::{price, probabilities};
use da_moe_core::{LayerConfig, Policy};

/// `k_t` of every token, in `[k_min, k_max]`, 0 where masked. `logits` are `[T, E + Z]`, `keys` are of each token.
pub fn experts_per_token(
    config: &LayerConfig,
    importance: &[f64],
    logits: &[f64],
    keys: &[Keys],
    mask: &[bool],
    k_given: Option<&[i64]>,
    state: [f64; 4],
) -> Vec<usize> {
    let (k_min, k_max) = (config.k_min(), config.k_max());
    let candidates = config.candidates();
    let in_f32: Vec<f32> = importance.iter().map(|&importance| counted(importance)).collect();
    let levels = match config.experts_per_token.policy {
        Policy::Budget { mean_k } => budget(config, &in_f32, mask, mean_k),
        _ => Vec::new(),
    };
    let of_token = |t: usize| match &config.experts_per_token.policy {
        Policy::Fixed { k } => *k,
        Policy::Proportional { scale } => {
            // Float to integer conversion saturates: infinite importance asks for more than k_max.
            (in_f32[t] * scale.unwrap_or(config.num_experts as f64) as f32).ceil() as usize
        }
        Policy::Thresholds { thresholds } => k_min + thresholds.iter().filter(|&&c| in_f32[t] >= c as f32).count(),
        Policy::Budget { .. } => k_min + levels[t],
        Policy::BudgetRunning { mean_k, .. } => {
            k_min.saturating_add((in_f32[t] / price(state, *mean_k, k_min)).floor() as usize)
        }
        Policy::TopP { p } => top_p(&probabilities(config.router.scoring, row(logits, t, candidates)), *p),
        Policy::ScoreThreshold { .. } => {
            let above = |e: &usize| above_threshold(&config.experts_per_token.policy, keys[t].sums[*e], *e);
            reachable(config, &keys[t]).into_iter().filter(above).count()
        }
        Policy::Given => k_given.and_then(|k| usize::try_from(k[t]).ok()).unwrap_or(0),
    };
    (0..mask.len()).map(|t| if mask[t] { of_token(t).clamp(k_min, k_max) } else { 0 }).collect()
}

/// NaN and negative importance count as 0.
fn counted(importance: f64) -> f32 {
    let importance = importance as f32;
    if importance > 0.0 { importance } else { 0.0 }
}

/// `N = round(mean_k · T_unmasked) − k_min · T_unmasked`, clamped to what fits.
pub fn levels_to_share(config: &LayerConfig, mean_k: f64, unmasked: usize) -> usize {
    let (k_min, k_max) = (config.k_min(), config.k_max());
    let wanted = (mean_k * unmasked as f64).round() as usize;
    wanted.saturating_sub(k_min * unmasked).min((k_max - k_min) * unmasked)
}

/// Levels won by each token: the `N` largest keys `I_t / m`, ties to the lower level, then to the lower token.
fn budget(config: &LayerConfig, importance: &[f32], mask: &[bool], mean_k: f64) -> Vec<usize> {
    let tokens: Vec<usize> = (0..mask.len()).filter(|&t| mask[t]).collect();
    let levels = 1..=config.k_max() - config.k_min();
    let mut pairs: Vec<(f32, usize, usize)> =
        levels.flat_map(|level| tokens.iter().map(move |&t| (importance[t] / level as f32, level, t))).collect();
    // Stable: pairs were made in order of level, then token.
    pairs.sort_by(|a, b| descending(a.0.into(), b.0.into()));
    let mut won = vec![0; mask.len()];
    for &(_, _, t) in pairs.iter().take(levels_to_share(config, mean_k, tokens.len())) {
        won[t] += 1;
    }
    won
}

/// The smallest number of largest probabilities that reach `p`; all when none does.
fn top_p(probabilities: &[f64], p: f64) -> usize {
    let mut sorted = probabilities.to_vec();
    sorted.sort_by(|a, b| descending(*a, *b));
    let mut sum = 0.0;
    for (count, probability) in sorted.iter().enumerate() {
        sum += probability;
        if sum >= p {
            return count + 1;
        }
    }
    sorted.len()
}
