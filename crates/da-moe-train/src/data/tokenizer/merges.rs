//! Learning of byte pairs (Sennrich et al. 2016).

use super::split::pieces;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

pub(super) type Pair = (u32, u32);

/// A distinct piece of the texts, as ids, and how often it is there.
struct Piece {
    ids: Vec<u32>,
    count: u64,
}

/// The pieces, and for each pair of neighbours how often it is there and in which pieces it ever was.
struct Learner {
    pieces: Vec<Piece>,
    counts: HashMap<Pair, u64>,
    places: HashMap<Pair, Vec<usize>>,
}

/// At most `most` merges, the most frequent pair of its time each, of equally frequent ones that with the least ids;
/// merge `i` makes the id `first + i`. Pairs that occur once are not merged. `bytes` gives each byte's id.
pub(super) fn learn(texts: &[String], most: usize, first: u32, bytes: impl Fn(u8) -> u32) -> Vec<Pair> {
    let mut learner = Learner::new(texts, bytes);
    // Counts fall without notice to the heap: what is on top is put back if it is out of date.
    let mut heap: BinaryHeap<(u64, Reverse<Pair>)> =
        learner.counts.iter().map(|(&pair, &count)| (count, Reverse(pair))).collect();
    let mut merges = Vec::new();
    while let Some((count, Reverse(pair))) = heap.pop() {
        let now = learner.counts.get(&pair).copied().unwrap_or(0);
        if now != count {
            heap.push((now, Reverse(pair)));
        } else if merges.len() == most || count < 2 {
            break;
        } else {
            let id = first + merges.len() as u32;
            merges.push(pair);
            heap.extend(learner.merge(pair, id).into_iter().map(|(pair, count)| (count, Reverse(pair))));
        }
    }
    merges
}

impl Learner {
    fn new(texts: &[String], bytes: impl Fn(u8) -> u32) -> Self {
        let mut distinct: HashMap<&str, u64> = HashMap::new();
        for piece in texts.iter().flat_map(|text| pieces(text)) {
            *distinct.entry(piece).or_default() += 1;
        }
        let ids = |piece: &str| piece.bytes().map(&bytes).collect();
        let pieces = distinct.into_iter().map(|(piece, count)| Piece { ids: ids(piece), count }).collect();
        let mut learner = Self { pieces, counts: HashMap::new(), places: HashMap::new() };
        for (index, piece) in learner.pieces.iter().enumerate() {
            for pair in pairs(&piece.ids) {
                *learner.counts.entry(pair).or_default() += piece.count;
                learner.places.entry(pair).or_default().push(index);
            }
        }
        learner
    }

    /// Replaces the pair by an id everywhere; returns the new pairs, which are those with the id, and their counts.
    fn merge(&mut self, pair: Pair, id: u32) -> HashMap<Pair, u64> {
        let mut new = HashMap::new();
        for index in self.places.remove(&pair).unwrap_or_default() {
            let Some(piece) = self.pieces.get_mut(index) else { continue };
            let merged = merged(&piece.ids, pair, id);
            if merged.len() == piece.ids.len() {
                continue;
            }
            for old in pairs(&piece.ids) {
                let count = self.counts.entry(old).or_default();
                *count = count.saturating_sub(piece.count);
            }
            for pair in pairs(&merged) {
                let count = self.counts.entry(pair).or_default();
                *count += piece.count;
                if pair.0 == id || pair.1 == id {
                    new.insert(pair, *count);
                    self.places.entry(pair).or_default().push(index);
                }
            }
            piece.ids = merged;
        }
        new
    }
}

fn pairs(ids: &[u32]) -> impl Iterator<Item = Pair> {
    ids.iter().copied().zip(ids.iter().copied().skip(1))
}

/// The ids with each occurrence of the pair, from the left, as one id.
pub(super) fn merged(ids: &[u32], pair: Pair, id: u32) -> Vec<u32> {
    let mut merged = Vec::with_capacity(ids.len());
    for &next in ids {
        if next == pair.1 && merged.last() == Some(&pair.0) {
            merged.pop();
            merged.push(id);
        } else {
            merged.push(next);
        }
    }
    merged
}
