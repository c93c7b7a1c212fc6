//! Documents packed into blocks of one length, in an order that any step can ask for.

use super::{DataError, Tokenizer};
use crate::random;

/// Token ids of `n` blocks of `S` tokens each. Every block begins with [`Tokenizer::START`], [`Tokenizer::BREAK`] stands
/// between documents, and a document may go on in the next block. Tokens at the end that do not fill a block are left
/// out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocks {
    ids: Vec<u32>,
    length: usize,
}

impl Blocks {
    /// Packs documents of token ids, in their order, into blocks of `length` tokens.
    ///
    /// # Errors
    ///
    /// If `length` is less than 2, or the documents do not fill one block.
    pub fn pack(documents: &[Vec<u32>], length: usize) -> Result<Self, DataError> {
        let documents = documents.iter().filter(|document| !document.is_empty());
        let parts =
            documents.enumerate().map(|(index, ids)| (if index == 0 { None } else { Some(Tokenizer::BREAK) }, ids));
        let stream: Vec<u32> =
            parts.flat_map(|(between, ids)| between.into_iter().chain(ids.iter().copied())).collect();
        let refused = |problem| Err(DataError::Blocks { length, tokens: stream.len(), problem });
        if length < 2 {
            return refused("a block has at least a start and one token");
        }
        if stream.len() < length - 1 {
            return refused("too little to fill one");
        }
        let blocks = stream.chunks_exact(length - 1);
        let ids = blocks.flat_map(|block| std::iter::once(Tokenizer::START).chain(block.iter().copied())).collect();
        Ok(Self { ids, length })
    }

    /// How many blocks there are, `n`; at least one.
    pub fn count(&self) -> usize {
        self.ids.len() / self.length
    }

    /// Tokens of a block, `S`.
    pub fn length(&self) -> usize {
        self.length
    }

    /// All blocks in the documents' order, `[n, S]`.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The ids `[batch_size, S]` of a step. Steps of one seed visit every block once before any again, in an order of
    /// its own each time; the batch depends on nothing but the arguments.
    pub fn batch(&self, step: u64, batch_size: usize, seed: u64) -> Vec<u32> {
        let count = self.count() as u64;
        let first = step.wrapping_mul(batch_size as u64);
        let mut batch = Vec::with_capacity(batch_size * self.length);
        for row in 0..batch_size as u64 {
            let position = first.wrapping_add(row);
            let (epoch, place) = (position / count, position % count);
            let block = shuffled(place, count, random::bits(&[ORDER, seed, epoch])) as usize;
            batch.extend(self.ids.iter().skip(block * self.length).take(self.length));
        }
        batch
    }
}

/// Keeps these draws apart from others of the same seed.
const ORDER: u64 = 0x6f_7264_6572;

/// Where a permutation of `0..count` takes `place`: a Feistel network over the next power of four, walked until it comes
/// back into range. No list of places, so that any step is as cheap as the next.
fn shuffled(place: u64, count: u64, key: u64) -> u64 {
    let half = (u64::BITS - count.saturating_sub(1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1 << half) - 1;
    let mut place = place;
    loop {
        let (mut left, mut right) = (place >> half, place & mask);
        for round in 0..4 {
            (left, right) = (right, left ^ (random::bits(&[key, round, right]) & mask));
        }
        place = left << half | right;
        if place < count {
            return place;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shuffling_takes_every_place_once() {
        for count in (1..70).chain([1000, 4096, 4097]) {
            let mut places: Vec<u64> = (0..count).map(|place| shuffled(place, count, count ^ 5)).collect();
            places.sort_unstable();
            assert!(places.iter().copied().eq(0..count), "{count} places");
        }
    }

    #[test]
    fn shuffling_leaves_no_trace_of_the_order() {
        let count = 10_000_u64;
        let kept =
            (0..count - 1).filter(|&place| shuffled(place, count, 1) + 1 == shuffled(place + 1, count, 1)).count();
        assert!(kept < 10, "{kept} neighbours are still neighbours");
        let displaced: u64 = (0..count).map(|place| place.abs_diff(shuffled(place, count, 1))).sum();
        let mean = displaced as f64 / count as f64 / count as f64;
        assert!((mean - 1.0 / 3.0).abs() < 0.02, "mean displacement {mean} of the whole, a third if random");
    }
}
