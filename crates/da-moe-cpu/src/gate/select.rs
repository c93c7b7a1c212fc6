//! SPEC §3: which experts a token gets, in which order. Every comparison is one integer comparison of a packed key, so
//! ties and NaN are decided in exactly one place.

use super::shares::{largest as largest_logit, relative};
use da_moe_core::{LayerConfig, Policy, Scoring};

/// Maps floats to integers of the same order; NaN below everything, −0 equal to 0.
#[inline(always)]
pub(crate) fn ordered(value: f32) -> u32 {
    if value.is_nan() {
        return 0;
    }
    let bits = (value + 0.0).to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// A number with a bias. Infinite ones count as the largest there are, so that an infinite bias is the sum; NaN passes through.
#[inline(always)]
fn biased(value: f32, bias: f32) -> f32 {
    value.clamp(f32::MIN, f32::MAX) + bias
}

/// `(rank class, value, lower index first)` in one number, the best largest.
#[inline(always)]
fn pack(class: u64, value: f32, index: usize) -> u64 {
    class << 48 | u64::from(ordered(value)) << 16 | (0xFFFF - index as u64)
}

#[inline(always)]
fn index_of(packed: u64) -> usize {
    (0xFFFF - (packed & 0xFFFF)) as usize
}

/// May be selected at all: its group was chosen.
const REACHABLE: u64 = 2;
/// Exceeds its threshold (`score-threshold`).
const ABOVE: u64 = 1;

/// Orders one token's candidates; the buffers are reused from token to token.
pub(super) struct Ranking<'a> {
    config: &'a LayerConfig,
    bias: Option<&'a [f32]>,
    /// Scores that are too small for f32 still rank: by their logits, where biases only allow, forbid or force.
    by_logits: bool,
    packed: Vec<u64>,
    order: Vec<u64>,
    above: usize,
}

impl<'a> Ranking<'a> {
    pub fn new(config: &'a LayerConfig, bias: Option<&'a [f32]>) -> Self {
        let candidates = config.candidates();
        let by_logits = config.router.scoring != Scoring::Relu
            && bias.is_none_or(|bias| bias.iter().all(|&b| b == 0.0 || !b.is_finite()));
        Self { config, bias, by_logits, packed: vec![0; candidates], order: Vec::with_capacity(candidates), above: 0 }
    }

    /// Writes the first `ranked.len()` candidates by selection key `s + b` (SPEC §3).
    pub fn rank(&mut self, logits: &[f32], scores: &[f32], ranked: &mut [i32]) {
        let (config, biases, by_logits) = (self.config, self.bias, self.by_logits);
        let bias = |e: usize| biases.map_or(0.0, |bias| bias[e]);
        let key = |e: usize| biased(scores[e], bias(e));
        let order = |e: usize| if by_logits { biased(logits[e], bias(e)) } else { key(e) };
        self.above = 0;
        for e in 0..scores.len() {
            let above = match &config.experts_per_token.policy {
                Policy::ScoreThreshold { threshold } => key(e) > threshold.of(e) as f32,
                _ => false,
            };
            self.packed[e] = pack(REACHABLE | if above { ABOVE } else { 0 }, order(e), e);
        }
        if config.router.topk_group < config.router.n_group {
            let allowed = |e: &usize| bias(*e) != f32::NEG_INFINITY;
            let origin = largest_logit((0..logits.len()).filter(allowed).map(|e| logits[e]));
            let relative_key = |e: usize| biased(relative(config.router.scoring, logits[e], origin), bias(e));
            self.bar_weak_groups(|e| if by_logits { relative_key(e) } else { key(e) });
        }
        let above = |packed: &&u64| *packed >> 48 == REACHABLE | ABOVE;
        self.above = self.packed.iter().filter(above).count();
        largest(&mut self.packed, ranked.len());
        for (place, packed) in ranked.iter_mut().zip(&self.packed) {
            *place = index_of(*packed) as i32;
        }
    }

    /// Takes [`REACHABLE`] from every candidate outside the `topk_group` best groups.
    fn bar_weak_groups(&mut self, key: impl Fn(usize) -> f32) {
        let (groups, chosen) = (self.config.router.n_group, self.config.router.topk_group);
        let size = self.packed.len() / groups;
        self.order.clear();
        for group in 0..groups {
            let mut best = [f32::NAN; 2];
            for e in group * size..(group + 1) * size {
                let key = key(e);
                if ordered(key) > ordered(best[0]) {
                    best = [key, best[0]];
                } else if ordered(key) > ordered(best[1]) {
                    best[1] = key;
                }
            }
            self.order.push(pack(0, if size == 1 { best[0] } else { best[0] + best[1] }, group));
        }
        largest(&mut self.order, groups);
        for &group in &self.order[chosen..] {
            for packed in &mut self.packed[index_of(group) * size..][..size] {
                *packed &= (1 << 48) - 1;
            }
        }
    }

    /// Candidates above their threshold, of the token last ranked.
    pub fn above_threshold(&self) -> usize {
        self.above
    }

    /// The smallest `k` whose `k` largest `shares` sum, in descending order, to at least `p`; all when none does.
    pub fn top_p(&mut self, shares: &[f32], p: f64) -> usize {
        self.order.clear();
        self.order.extend(shares.iter().enumerate().map(|(e, share)| pack(0, *share, e)));
        let most = self.config.k_max();
        largest(&mut self.order, most);
        let mut sum = 0.0;
        let reached = self.order[..most].iter().position(|&packed| {
            sum += f64::from(shares[index_of(packed)]);
            sum >= p
        });
        reached.map_or(shares.len(), |position| position + 1)
    }

    /// The selected experts in slot order (SPEC §4): descending weight, ties to the lower expert, NaN last.
    pub fn slots(&mut self, selected: &[i32], weight_of: impl Fn(usize) -> f32) -> impl Iterator<Item = (f32, i32)> {
        self.order.clear();
        self.order.extend(selected.iter().map(|&e| pack(0, weight_of(e as usize), e as usize)));
        self.order.sort_unstable_by(|a, b| b.cmp(a));
        self.order.iter().map(move |&packed| (weight_of(index_of(packed)), index_of(packed) as i32))
    }
}

/// Moves the `count` largest to the front, in descending order.
fn largest(packed: &mut [u64], count: usize) {
    if count == 0 {
        return;
    }
    if count < packed.len() {
        packed.select_nth_unstable_by(count - 1, |a, b| b.cmp(a));
    }
    packed[..count].sort_unstable_by(|a, b| b.cmp(a));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_of_floats_is_kept_and_nan_is_last() {
        let ascending = [f32::NAN, f32::NEG_INFINITY, -1.0, -1e-40, 0.0, 1e-40, 1.0, f32::INFINITY];
        assert!(ascending.windows(2).all(|pair| ordered(pair[0]) < ordered(pair[1])));
        assert_eq!(ordered(-0.0), ordered(0.0));
    }

    #[test]
    fn equal_keys_go_to_the_lower_expert() {
        let config = LayerConfig::mixtral(4, 4, 8);
        let mut ranked = [0; 2];
        let logits = [0.5, 1.0, 0.5, 1.0, 1.0, f32::NAN, 0.0, 0.0];
        Ranking::new(&config, None).rank(&logits, &[0.0; 8], &mut ranked);
        assert_eq!(ranked, [1, 3]);
        let bias = [0.25; 8];
        Ranking::new(&config, Some(&bias)).rank(&[0.0; 8], &logits, &mut ranked);
        assert_eq!(ranked, [1, 3]);
    }
}
