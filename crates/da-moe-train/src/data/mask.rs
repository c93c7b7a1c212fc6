//! Masks for masked language models (Devlin et al. 2019).

use super::Tokenizer;
use crate::random;

/// A batch with a part of its tokens hidden.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masked {
    /// What the model sees; as long as the ids given.
    pub ids: Vec<u32>,
    /// Which of them are to be predicted, ascending.
    pub positions: Vec<u32>,
    /// What stood there, one for each of `positions`.
    pub targets: Vec<u32>,
}

impl Masked {
    /// With one token hidden where none was, if there is one that can be: a batch that asks nothing has no loss.
    pub(crate) fn or_one(self, draw: u64) -> Self {
        let places: Vec<usize> = (0..self.ids.len()).filter(|&place| self.ids[place] >= Tokenizer::SPECIALS).collect();
        if !self.positions.is_empty() || places.is_empty() {
            return self;
        }
        let place = places[(draw % places.len() as u64) as usize];
        let mut ids = self.ids;
        let target = std::mem::replace(&mut ids[place], Tokenizer::MASK);
        Self { ids, positions: vec![place as u32], targets: vec![target] }
    }
}

/// Keeps these draws apart from others of the same seed.
const MASKING: u64 = 0x6d61_736b;

/// Chooses each token with probability `rate` to be predicted, and of the chosen shows 80 % as [`Tokenizer::MASK`], 10 %
/// as a token at random and 10 % as they are. Special tokens are neither chosen nor drawn. Rates outside of 0 to 1 count
/// as the nearer of the two; not a number, as 0.
pub fn mask_tokens(ids: &[u32], rate: f64, seed: u64, step: u64, vocabulary: usize) -> Masked {
    let mut masked = Masked { ids: ids.to_vec(), positions: Vec::new(), targets: Vec::new() };
    let plain = (vocabulary as u64).saturating_sub(u64::from(Tokenizer::SPECIALS));
    for (position, id) in (0..).zip(&mut masked.ids) {
        let draw = |what| random::unit(&[MASKING, seed, step, u64::from(position), what]);
        if *id < Tokenizer::SPECIALS || draw(0) >= rate || rate.is_nan() {
            continue;
        }
        masked.positions.push(position);
        masked.targets.push(*id);
        let fate = draw(1);
        if fate < 0.8 {
            *id = Tokenizer::MASK;
        } else if fate < 0.9 && plain > 0 {
            *id = Tokenizer::SPECIALS + (draw(2) * plain as f64) as u32;
        }
    }
    masked
}
