//! SPEC §2: `k_t` from importance. Comparisons are in f32, as the specification says, so that integers are exact.

use crate::importance::sane;
use crate::views::unmasked_count;
use da_moe_core::{LayerConfig, Policy};
use rayon::prelude::*;

/// Place of the price `λ` in the carried state; 0 before it was ever set.
const PRICE: usize = 2;

/// Everything that decides how many experts each token asks for before its scores are looked at.
pub(super) struct Demand<'a> {
    pub config: &'a LayerConfig,
    pub importance: &'a [f32],
    pub mask: Option<&'a [u8]>,
    pub given: Option<&'a [i32]>,
}

impl Demand<'_> {
    /// Writes `k_t` in `[k_min, k_max]` for unmasked tokens and 0 for masked ones. Policies that read scores
    /// (`top-p`, `score-threshold`) overwrite it later.
    pub fn decide(&self, k: &mut [i32], state: &mut [f32], training: bool) {
        let (k_min, k_max) = (self.config.k_min(), self.config.k_max());
        let clamp = |k: usize| k.clamp(k_min, k_max) as i32;
        let importance = |t: usize| sane(self.importance[t]);
        match &self.config.experts_per_token.policy {
            Policy::Fixed { k: fixed } => self.fill(k, |_| clamp(*fixed)),
            Policy::Proportional { scale } => {
                let scale = scale.unwrap_or(self.config.num_experts as f64) as f32;
                self.fill(k, |t| clamp((importance(t) * scale).ceil() as usize));
            }
            Policy::Thresholds { thresholds } => {
                self.fill(k, |t| clamp(k_min + thresholds.iter().filter(|&&c| importance(t) >= c as f32).count()))
            }
            Policy::Budget { mean_k } => self.apportion(k, *mean_k),
            Policy::BudgetRunning { mean_k, momentum } => self.buy(k, *mean_k, *momentum, state, training),
            Policy::TopP { .. } | Policy::ScoreThreshold { .. } => self.fill(k, |_| clamp(0)),
            Policy::Given => {
                let given = self.given.unwrap_or_default();
                self.fill(k, |t| clamp(given.get(t).map_or(0, |&k| usize::try_from(k).unwrap_or(0))));
            }
        }
    }

    fn unmasked(&self, t: usize) -> bool {
        self.mask.is_none_or(|mask| mask[t] != 0)
    }

    fn fill(&self, k: &mut [i32], rule: impl Fn(usize) -> i32) {
        for (t, k) in k.iter_mut().enumerate() {
            *k = if self.unmasked(t) { rule(t) } else { 0 };
        }
    }

    /// `N`: levels above `k_min` to give away, clamped to what fits.
    fn levels(&self, mean_k: f64) -> usize {
        let (k_min, k_max) = (self.config.k_min(), self.config.k_max());
        let tokens = unmasked_count(self.mask, self.importance.len());
        let wanted = (mean_k * tokens as f64).round() - (k_min * tokens) as f64;
        // Saturates below at 0.
        (wanted as usize).min((k_max - k_min) * tokens)
    }

    /// `budget`: the `N` largest keys `I_t / m` win, ties to lower `m`, then lower token.
    ///
    /// The key that the last winner has is found by bisection over the bits of non-negative floats, whose order is that
    /// of the integers; counting keys above a price needs no list of pairs.
    fn apportion(&self, k: &mut [i32], mean_k: f64) {
        let (k_min, k_max) = (self.config.k_min(), self.config.k_max());
        let (tokens, levels, wanted) = (k.len(), k_max - k_min, self.levels(mean_k));
        // Levels of a token whose key is at least `price`; keys fall with the level.
        let won = |t: usize, price: f32| {
            let (mut low, mut high) = (0, levels);
            while low < high {
                let level = (low + high).div_ceil(2);
                if sane(self.importance[t]) / level as f32 >= price { low = level } else { high = level - 1 }
            }
            low
        };
        let count = |price: f32| -> usize {
            (0..tokens).into_par_iter().with_min_len(512).filter(|&t| self.unmasked(t)).map(|t| won(t, price)).sum()
        };
        if wanted == 0 {
            return self.fill(k, |_| k_min as i32);
        }
        let (mut low, mut high) = (0, f32::INFINITY.to_bits());
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if count(f32::from_bits(middle)) >= wanted { low = middle } else { high = middle - 1 }
        }
        let last = f32::from_bits(low);
        let above = if last.is_infinite() { None } else { Some(last.next_up()) };
        self.fill(k, |t| (k_min + above.map_or(0, |price| won(t, price))) as i32);
        let mut left = wanted - above.map_or(0, count);
        for level in 1..=levels {
            for (t, k) in k.iter_mut().enumerate() {
                if left == 0 {
                    return;
                }
                if self.unmasked(t) && sane(self.importance[t]) / level as f32 == last {
                    *k += 1;
                    left -= 1;
                }
            }
        }
    }

    /// `budget-running`: `k_t = k_min + floor(I_t / λ)`, then `λ` follows what this step used.
    fn buy(&self, k: &mut [i32], mean_k: f64, momentum: f64, state: &mut [f32], training: bool) {
        let (k_min, k_max) = (self.config.k_min(), self.config.k_max());
        // Not stored: evaluation leaves the state as it is, a fresh one too.
        let start = (1.0 / (2.0 * (mean_k - k_min as f64).max(0.0) + 1.0)) as f32;
        let price = if state[PRICE] > 0.0 && state[PRICE].is_finite() { state[PRICE] } else { start };
        self.fill(k, |t| {
            let levels = (sane(self.importance[t]) / price).floor() as usize;
            (k_min + levels.min(k_max - k_min)) as i32
        });
        if training && unmasked_count(self.mask, self.importance.len()) > 0 {
            let tokens = (0..k.len()).filter(|&t| self.unmasked(t));
            let used: usize = tokens.map(|t| k[t] as usize - k_min).sum();
            let ratio = (used as f64 + 1.0) / (self.levels(mean_k) as f64 + 1.0);
            // Neither 0, which means "never set", nor infinity, which it could never leave.
            let next = (f64::from(price) * ratio.powf(1.0 - momentum)) as f32;
            state[PRICE] = next.clamp(f32::MIN_POSITIVE, f32::MAX);
        }
    }
}
