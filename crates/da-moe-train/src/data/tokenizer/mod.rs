//! A byte-level byte-pair tokenizer, learnt from the training text alone.

mod merges;
mod split;

use super::DataError;
use merges::{Pair, learn, merged};
use serde::{Deserialize, Serialize};
use split::{LONGEST, pieces};
use std::collections::HashMap;

/// Text to token ids and back. The special tokens have the first ids, then come the 256 bytes, then the learnt merges,
/// so that any text can be encoded, and no text encodes to a special token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokenizer {
    merges: Vec<Pair>,
    /// The id that a pair becomes. Earlier merges have lesser ids and come first.
    merged: HashMap<Pair, u32>,
    /// The bytes that an id stands for; none for a special token.
    bytes: Vec<Vec<u8>>,
}

/// How a tokenizer is saved.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    byte_pairs: Vec<Pair>,
}

const NAMES: [&str; Tokenizer::SPECIALS as usize] = ["[PAD]", "[MASK]", "[START]", "[BREAK]"];

impl Tokenizer {
    /// Fills up a batch; is no text.
    pub const PAD: u32 = 0;
    /// Hides a token.
    pub const MASK: u32 = 1;
    /// Begins every block.
    pub const START: u32 = 2;
    /// Stands between documents, and between the texts of a pair.
    pub const BREAK: u32 = 3;
    /// How many special tokens there are; ids below are special.
    pub const SPECIALS: u32 = 4;
    /// The smallest vocabulary: special tokens and bytes.
    pub const LEAST: usize = Self::SPECIALS as usize + 256;

    /// Learns a vocabulary of at most so many tokens, fewer where the texts have no more pairs that occur twice. The same
    /// texts in any order give the same tokenizer, on every machine.
    ///
    /// # Errors
    ///
    /// If `vocabulary` is less than [`Tokenizer::LEAST`].
    pub fn train(texts: &[String], vocabulary: usize) -> Result<Self, DataError> {
        let Some(most) = vocabulary.checked_sub(Self::LEAST) else {
            return Err(DataError::Vocabulary { asked: vocabulary, least: Self::LEAST });
        };
        Self::from_merges(learn(texts, most, Self::LEAST as u32, byte_id))
    }

    /// The ids of a text; never a special one.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        pieces(text).flat_map(|piece| self.encode_piece(piece)).collect()
    }

    fn encode_piece(&self, piece: &str) -> Vec<u32> {
        let mut ids: Vec<u32> = piece.bytes().map(byte_id).collect();
        loop {
            let pairs = ids.iter().copied().zip(ids.iter().copied().skip(1));
            let earliest = pairs.filter_map(|pair| Some((*self.merged.get(&pair)?, pair))).min();
            let Some((id, pair)) = earliest else { return ids };
            ids = merged(&ids, pair, id);
        }
    }

    /// The text of ids: what was encoded, if they are its ids. Special and unknown ids are no text, and bytes that are
    /// not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.bytes(id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// How many tokens there are; ids are less.
    pub fn vocabulary(&self) -> usize {
        self.bytes.len()
    }

    /// A token to show: special ones as `[MASK]`, an unknown id as `[1234]`, text as it is but for control characters as
    /// `\n`, and bytes that are no characters as `\xE2`.
    pub fn token(&self, id: u32) -> String {
        if let Some(name) = NAMES.get(id as usize) {
            return (*name).into();
        }
        if id as usize >= self.bytes.len() {
            return format!("[{id}]");
        }
        let mut shown = String::new();
        for chunk in self.bytes(id).utf8_chunks() {
            for character in chunk.valid().chars() {
                if character.is_control() { shown.extend(character.escape_default()) } else { shown.push(character) }
            }
            shown.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02X}")));
        }
        shown
    }

    /// The tokenizer as JSON.
    pub fn to_json(&self) -> String {
        let pairs: Vec<String> = self.merges.iter().map(|(left, right)| format!("[{left},{right}]")).collect();
        format!("{{\"byte_pairs\":[{}]}}", pairs.join(","))
    }

    /// The tokenizer that [`Tokenizer::to_json`] saved.
    ///
    /// # Errors
    ///
    /// If the JSON is not of that form, or its merges could not have been learnt.
    pub fn from_json(json: &str) -> Result<Self, DataError> {
        let saved: Saved = serde_json::from_str(json).map_err(|error| DataError::Tokenizer(error.to_string()))?;
        Self::from_merges(saved.byte_pairs)
    }

    fn from_merges(merges: Vec<Pair>) -> Result<Self, DataError> {
        let mut bytes: Vec<Vec<u8>> = vec![Vec::new(); Self::SPECIALS as usize];
        bytes.extend((0..=u8::MAX).map(|byte| vec![byte]));
        let mut ids = HashMap::with_capacity(merges.len());
        for (index, &pair) in merges.iter().enumerate() {
            let refused = |problem| Err(DataError::Tokenizer(format!("merge {index} of {pair:?} {problem}")));
            let parts = [pair.0, pair.1].map(|id| bytes.get(id as usize).cloned().unwrap_or_default());
            if parts.iter().any(Vec::is_empty) {
                return refused("is not of two earlier tokens");
            }
            let joined = parts.concat();
            if joined.len() > LONGEST {
                return refused("makes a token longer than any piece of text");
            }
            if ids.insert(pair, bytes.len() as u32).is_some() {
                return refused("is there twice");
            }
            bytes.push(joined);
        }
        Ok(Self { merges, merged: ids, bytes })
    }

    fn bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id as usize).map_or(&[], Vec::as_slice)
    }
}

fn byte_id(byte: u8) -> u32 {
    Tokenizer::SPECIALS + u32::from(byte)
}
