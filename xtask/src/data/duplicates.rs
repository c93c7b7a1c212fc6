//! Texts that say nearly the same: of such only one may stay, or a model would be measured on what it has seen.

use std::collections::{HashMap, HashSet};

/// Words of a shingle.
const SHINGLE: usize = 3;

/// From this share of common shingles (Jaccard) on, texts are near-duplicates.
const SAME: f64 = 0.7;

/// Signatures are compared in bands of rows; two texts meet if all rows of a band agree. With 8 bands of 4 rows, texts
/// that share 0.7 of their shingles meet nine times of ten, and nearly equal ones always.
const BANDS: u64 = 8;
const ROWS: u64 = 4;

/// Whether each text stays: the first `fixed` do, any other unless it is a near-duplicate of one that stays before it.
pub(super) fn unique(texts: &[&str], fixed: usize) -> Vec<bool> {
    let shingles: Vec<HashSet<u64>> = texts.iter().map(|text| shingles(text)).collect();
    let mut bands: HashMap<(u64, u64), Vec<usize>> = HashMap::new();
    let mut stays = Vec::with_capacity(texts.len());
    for (index, own) in shingles.iter().enumerate() {
        let keys: Vec<(u64, u64)> = (0..BANDS).map(|band| (band, signature(own, band))).collect();
        let met = keys.iter().filter_map(|key| bands.get(key)).flatten();
        let known = index >= fixed && met.copied().any(|other| similarity(own, &shingles[other]) >= SAME);
        stays.push(!known);
        if !known {
            for key in keys {
                bands.entry(key).or_default().push(index);
            }
        }
    }
    stays
}

/// Hashes of each few words in a row, of all words if there are fewer. Letters alone count, in lower case.
fn shingles(text: &str) -> HashSet<u64> {
    let letters = |word: &str| -> String {
        word.chars().filter(|character| character.is_alphabetic()).flat_map(char::to_lowercase).collect()
    };
    let words = text.split_whitespace().map(letters).filter(|word| !word.is_empty());
    let words: Vec<u64> = words.map(|word| word.bytes().fold(0, |state, byte| mix(state ^ u64::from(byte)))).collect();
    let size = SHINGLE.min(words.len()).max(1);
    words.windows(size).map(|words| words.iter().fold(0, |state, word| mix(state ^ word))).collect()
}

/// The least hashes of the shingles by each of the band's functions, as one (Broder 1997).
fn signature(shingles: &HashSet<u64>, band: u64) -> u64 {
    let least = |row| shingles.iter().map(|shingle| mix(shingle ^ mix(band * ROWS + row + 1))).min().unwrap_or(0);
    (0..ROWS).map(least).fold(0, |state, least| mix(state ^ least))
}

fn similarity(one: &HashSet<u64>, other: &HashSet<u64>) -> f64 {
    let common = one.intersection(other).count();
    let all = one.len() + other.len() - common;
    if all == 0 { 1.0 } else { common as f64 / all as f64 }
}

/// SplitMix64's next number.
fn mix(state: u64) -> u64 {
    let z = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_of_near_duplicates_stays() {
        let long: Vec<String> = (0..40).map(|number| format!("w{}", "abcdefghij".repeat(number + 1))).collect();
        let text = long.join(" ");
        let edited = text.replacen("wabcdefghij ", "something ", 1).to_uppercase() + ", 1961!";
        let half = long[..20].join(" ");
        assert_eq!(unique(&[&text, "another", &edited, &half, "Another."], 0), [true, true, false, true, false]);
        assert_eq!(unique(&[&text, &text, &text], 2), [true, true, false]);
        assert_eq!(unique(&["", "1 2"], 0), [true, false]);
    }
}
