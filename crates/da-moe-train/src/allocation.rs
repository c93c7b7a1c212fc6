//! Where a layer's importance comes from: its own measure, or one of the controls that it is compared with.
//!
//! Ranks put every way to allocate on the same histogram of `k`, and rank masked tokens among masked ones, the others among
//! the others, so that no way is better or worse only because it finds out where the masks are.

use crate::measure;
use crate::random::{self, bits};
use crate::tokens::Tokens;
use candle_core::{Result, Tensor};
use da_moe::{ImportanceConfig, LayerConfig, Source};
use serde::{Deserialize, Serialize};

/// What says how important a token is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Signal {
    /// The layer's configured source.
    #[default]
    Layer,
    /// A number drawn for each token of each batch in each layer.
    Random,
    /// A number drawn once for each token of the vocabulary.
    Type,
    /// Rare tokens of the training text first.
    Frequency,
    /// Masked tokens before all others, in random order among themselves: a bound, since masks exist in training only.
    MaskFirst,
    /// Masked tokens after all others.
    MaskLast,
}

/// Whether importance is replaced by ranks in (0, 1] within a sequence. Equal values rank in random order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rank {
    /// Importance as it is.
    #[default]
    None,
    /// Among all tokens of the sequence.
    Sequence,
    /// Among the masked tokens of the sequence, or among the others.
    Groups,
}

/// How a variant's importance is made outside the layer, where it is.
#[derive(Clone, Debug)]
pub(crate) struct Allocation {
    pub signal: Signal,
    pub rank: Rank,
    /// The layer as it is configured, whose measure is ranked.
    pub measured: LayerConfig,
    /// How rare each token of the vocabulary is in the training text: a larger number is rarer.
    pub rarity: Vec<f32>,
}

impl Allocation {
    /// Whether the layer is handed its importance.
    pub fn is_external(&self) -> bool {
        self.signal != Signal::Layer || self.rank != Rank::None
    }

    /// The importance of layer number `index`, `[B, S]`, from its queries and keys, where the layer is handed it.
    pub fn decide(&self, query_key: [&Tensor; 2], tokens: &Tokens, index: u64) -> Result<Option<Tensor>> {
        if !self.is_external() {
            return Ok(None);
        }
        let values = match self.signal {
            Signal::Layer => measure::importance(&self.measured, query_key, tokens)?,
            _ => self.control(tokens, index),
        };
        let values = match self.rank {
            Rank::None => values,
            Rank::Sequence => ranks(&values, tokens, |_| false, index),
            Rank::Groups => ranks(&values, tokens, |t| tokens.masked[t], index),
        };
        Tensor::from_vec(values, tokens.ids.shape(), tokens.ids.device()).map(Some)
    }

    fn control(&self, tokens: &Tokens, index: u64) -> Vec<f32> {
        let drawn = |t: usize| random::unit(&[tokens.key, index, t as u64]) as f32;
        let of_token = |(t, &id): (usize, &u32)| match self.signal {
            Signal::Type => random::unit(&[random::name("type"), u64::from(id)]) as f32,
            Signal::Frequency => self.rarity.get(id as usize).copied().unwrap_or(0.0),
            Signal::MaskFirst => 0.5 * (drawn(t) + f32::from(u8::from(tokens.masked[t]))),
            Signal::MaskLast => 0.5 * (drawn(t) + f32::from(u8::from(!tokens.masked[t]))),
            Signal::Random | Signal::Layer => drawn(t),
        };
        // Every mask is the same token to `type` and `frequency`: among masks they say nothing, and ranks break the tie.
        tokens.host_ids.iter().enumerate().map(of_token).collect()
    }
}

/// `(place in ascending order) / n` among the `n` tokens of the same sequence and group; 0 for padding.
fn ranks(values: &[f32], tokens: &Tokens, group: impl Fn(usize) -> bool, index: u64) -> Vec<f32> {
    let mut ranked = vec![0.0; values.len()];
    let count = values.len();
    for first in (0..count).step_by(tokens.length.max(1)) {
        for side in [false, true] {
            let sequence = first..(first + tokens.length).min(count);
            let mut members: Vec<usize> = sequence.filter(|&t| tokens.is_present(t) && group(t) == side).collect();
            let tie = |t: usize| bits(&[tokens.key, index, t as u64, random::name("tie")]);
            members.sort_by(|&a, &b| values[a].total_cmp(&values[b]).then_with(|| tie(a).cmp(&tie(b))));
            let size = members.len() as f32;
            members.iter().enumerate().for_each(|(place, &t)| ranked[t] = (place + 1) as f32 / size);
        }
    }
    ranked
}

/// What an external importance is configured as.
pub(crate) fn external(measured: &ImportanceConfig) -> ImportanceConfig {
    ImportanceConfig { causal: measured.causal, ..ImportanceConfig::new(Source::External) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn tokens(masked: Vec<bool>) -> Tokens {
        let ids: Vec<u32> = (0..masked.len() as u32).collect();
        Tokens::new(&ids, masked.len() / 2, 3, &Device::Cpu).unwrap().with_masked(masked)
    }

    #[test]
    fn ranks_are_within_sequence_and_group() {
        let tokens = tokens(vec![true, false, true, false, false, false, false, true]);
        let values = [9.0, 1.0, 8.0, 2.0, 5.0, 7.0, 6.0, 0.0];
        let ranked = ranks(&values, &tokens, |t| tokens.masked[t], 0);
        assert_eq!(ranked, [1.0, 0.5, 0.5, 1.0, 1.0 / 3.0, 1.0, 2.0 / 3.0, 1.0]);
        let ranked = ranks(&values, &tokens, |_| false, 0);
        assert_eq!(ranked, [1.0, 0.25, 0.75, 0.5, 0.5, 1.0, 0.75, 0.25]);
    }

    #[test]
    fn equal_values_rank_in_an_order_of_their_own_each_time() {
        let masked = vec![false; 64];
        let once = ranks(&[1.0; 64], &tokens(masked.clone()), |_| false, 0);
        assert_eq!(once, ranks(&[1.0; 64], &tokens(masked.clone()), |_| false, 0));
        assert_ne!(once, ranks(&[1.0; 64], &tokens(masked), |_| false, 1));
        let mut first: Vec<f32> = once[..32].to_vec();
        first.sort_by(f32::total_cmp);
        assert_eq!(first, (1..=32).map(|place| place as f32 / 32.0).collect::<Vec<_>>());
    }

    #[test]
    fn padding_ranks_nowhere() {
        let there = vec![true, true, false, false, true, false, false, false];
        let tokens = tokens(vec![false; 8]).with_present(there).unwrap();
        assert_eq!(ranks(&[1.0; 8], &tokens, |_| false, 0).iter().filter(|&&rank| rank == 0.0).count(), 5);
    }

    #[test]
    fn masks_are_first_or_last() {
        let masked = vec![true, false, false, true, false, false, true, false];
        let tokens = tokens(masked.clone());
        for (signal, first) in [(Signal::MaskFirst, true), (Signal::MaskLast, false)] {
            let measured = LayerConfig::mixtral(8, 8, 4);
            let allocation = Allocation { signal, rank: Rank::Sequence, measured, rarity: Vec::new() };
            let values = allocation.control(&tokens, 0);
            let least = (0..8).filter(|&t| masked[t] == first).map(|t| values[t]).fold(f32::INFINITY, f32::min);
            let most = (0..8).filter(|&t| masked[t] != first).map(|t| values[t]).fold(0.0, f32::max);
            assert!(least > most, "{signal:?}: {values:?}");
        }
    }
}
