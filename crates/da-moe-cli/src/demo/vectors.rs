//! Token vectors without training: what a word is made of, how rare and how long it is.
//!
//! A word is the sum of pseudo-random vectors, one for each of its character n-grams (as fastText's subwords, but
//! hashed and never trained), so words that share letters are close. For attention the vector is scaled by
//! `a / (a + p)` (Arora et al. 2017), `p` the word's share of the text, and by its length: short words tend to be
//! the predictable ones. Function words and punctuation end up near the origin and attract nobody.

use super::text::{Text, Token};
use crate::draw::Draw;
use std::collections::HashMap;

/// Width of a vector: `D` of the layer, `H · dh` of the attention.
pub(super) const WIDTH: usize = 64;
/// `H`: each head sees its own slice, an independent hashing of the same word.
pub(super) const HEADS: usize = 4;

/// Words rarer than this share of the text are hardly scaled down.
const RARITY: f64 = 0.02;
/// Letters at which a word has half of its weight.
const HALF_LENGTH: f64 = 4.0;
/// How loud punctuation is beside words.
const PUNCTUATION: f64 = 0.25;
/// How much position adds to a unit vector.
const POSITION: f32 = 0.15;
/// Length of a vector of weight 1 as query and key: makes the best match about e^5 times likelier than no match.
const SHARPNESS: f32 = 9.0;

/// The vectors of a text, `[T, WIDTH]` each.
pub(super) struct Vectors {
    /// Direction and position, of root-mean-square 1: the layer's input.
    pub(super) x: Vec<f32>,
    /// Scaled by weight: queries and keys alike.
    pub(super) attention: Vec<f32>,
}

impl Vectors {
    pub(super) fn of(text: &Text) -> Self {
        let mut occurrences: HashMap<String, usize> = HashMap::new();
        for token in &text.tokens {
            *occurrences.entry(token.folded()).or_default() += 1;
        }
        let mut vectors = Self { x: Vec::new(), attention: Vec::new() };
        for sequence in text.sequences() {
            for (position, token) in text.tokens[sequence].iter().enumerate() {
                let word = token.folded();
                let share = occurrences[&word] as f64 / text.tokens.len() as f64;
                let weight = weight(token, share) as f32 * SHARPNESS;
                let mut direction = letters(&word);
                add_position(&mut direction, position);
                let unit = normalized(direction);
                vectors.attention.extend(unit.iter().map(|v| v * weight));
                vectors.x.extend(unit.iter().map(|v| v * (WIDTH as f32).sqrt()));
            }
        }
        vectors
    }
}

/// In (0, 1): how much of the attention a word can draw.
fn weight(token: &Token, share: f64) -> f64 {
    if !token.is_word {
        return PUNCTUATION * RARITY / (RARITY + share);
    }
    // Capped, so that no address or identifier of a hundred letters outshines the words.
    let length = token.text.chars().count().min(12) as f64;
    RARITY / (RARITY + share) * length * length / (length * length + HALF_LENGTH * HALF_LENGTH)
}

/// The unit vector of a word: the sum over its n-grams of three to five characters, its ends marked, and of itself.
fn letters(word: &str) -> [f32; WIDTH] {
    let marked: Vec<char> = format!("<{word}>").chars().collect();
    let mut sum = [0.0; WIDTH];
    for size in 3..=5 {
        for gram in marked.windows(size) {
            add_hashed(&mut sum, gram);
        }
    }
    add_hashed(&mut sum, &marked);
    normalized(sum)
}

fn add_hashed(sum: &mut [f32; WIDTH], gram: &[char]) {
    // FNV-1a: the hash must be the same everywhere, as pictures of the same text must be.
    let hash =
        gram.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, c| (hash ^ u64::from(*c)).wrapping_mul(0x100_0000_01b3));
    for (total, drawn) in sum.iter_mut().zip(Draw::new(hash).normal(WIDTH, 1.0)) {
        *total += drawn;
    }
}

/// Sine and cosine of the position at wavelengths from two to some two thousand tokens, as in the first transformer.
fn add_position(vector: &mut [f32; WIDTH], position: usize) {
    let amplitude = POSITION * (2.0 / WIDTH as f32).sqrt();
    for (pair, values) in vector.chunks_exact_mut(2).enumerate() {
        let angle = position as f32 / 1000f32.powf(2.0 * pair as f32 / WIDTH as f32);
        values[0] += amplitude * angle.sin();
        values[1] += amplitude * angle.cos();
    }
}

fn normalized(mut vector: [f32; WIDTH]) -> [f32; WIDTH] {
    let length = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
    // A sum of hashed normals is never exactly zero, but a division by zero would poison the whole paragraph.
    if length > 0.0 {
        vector.iter_mut().for_each(|v| *v /= length);
    }
    vector
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dot(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    #[test]
    fn words_that_share_letters_are_close() {
        let (token, tokens, comet) = (letters("attention"), letters("attentions"), letters("bridge"));
        assert!(dot(&token, &tokens) > 0.6);
        assert!(dot(&token, &comet) < 0.4);
    }

    #[test]
    fn frequent_and_short_words_are_weak() {
        let text = Text::split("the cat and the elephant and the diagnosis", 100).unwrap();
        let vectors = Vectors::of(&text);
        let norm = |t: usize| dot(&vectors.attention[t * WIDTH..][..WIDTH], &vectors.attention[t * WIDTH..][..WIDTH]);
        assert!(norm(0) < norm(1) && norm(1) < norm(4));
        let x = &vectors.x[..WIDTH];
        assert!((dot(x, x) / WIDTH as f32 - 1.0).abs() < 1e-4);
    }
}
