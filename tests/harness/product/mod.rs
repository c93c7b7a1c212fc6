//! Hopper's products by themselves, each one launch with as many rows for each expert as is asked for, held against f64.
#![allow(unsafe_code, reason = "launches take the addresses of their parameters")]

mod hidden;
mod memory;
mod rows;
mod weight;

pub use hidden::HiddenProduct;
pub use rows::{Product, Run};
pub use weight::WeightProduct;

/// Where groups of so many members start, and where the last one ends.
pub fn offsets(counts: &[usize]) -> Vec<i32> {
    let mut offsets = vec![0];
    counts.iter().for_each(|count| offsets.push(offsets[offsets.len() - 1] + *count as i32));
    offsets
}

/// Number `i` of a tensor, between -1 and 1.
fn number(i: usize, seed: u64) -> f32 {
    let mut z = (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ seed.wrapping_mul(0xD1B5_4A32_D192_ED03);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (z >> 40) as f32 / (1 << 23) as f32 - 1.0
}

/// What was found is off by no more than a bound of what was expected.
fn close(what: &str, found: &[f32], expected: &[f64], bound: f64) -> Result<(), String> {
    if found.len() != expected.len() {
        return Err(format!("{what} has {} elements, not {}", found.len(), expected.len()));
    }
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let apart = norm(&mut found.iter().zip(expected).map(|(found, expected)| f64::from(*found) - expected));
    let of = norm(&mut expected.iter().copied());
    if apart <= bound * of { Ok(()) } else { Err(format!("{what} is off by {:e}", apart / of)) }
}

/// Which rows take part, and where those come from that are found by token.
#[derive(Clone, Debug)]
pub struct Routing {
    /// Rows of each expert.
    pub counts: Vec<usize>,
    /// Rows are found among those of so many tokens; 0 where they lie as the plan has them.
    pub tokens: usize,
    /// One such row in so many has a token that there is not, and is zeros; 0 for none.
    pub astray: usize,
}

impl Routing {
    /// Rows that lie as the plan has them.
    pub fn packed(counts: impl Into<Vec<usize>>) -> Self {
        Self { counts: counts.into(), tokens: 0, astray: 0 }
    }

    /// Rows that are found among those of so many tokens.
    pub fn found(counts: impl Into<Vec<usize>>, tokens: usize) -> Self {
        Self { tokens, ..Self::packed(counts) }
    }

    pub fn rows(&self) -> usize {
        self.counts.iter().sum()
    }

    /// Rows that there is room for: more than there are.
    fn room(&self) -> usize {
        self.rows() + 70
    }

    /// Rows to find them among.
    fn sources(&self) -> usize {
        if self.tokens == 0 { self.room() } else { self.tokens }
    }

    /// The row that a row takes, if there is one.
    fn source(&self, row: usize, seed: u64) -> Option<usize> {
        match self.tokens {
            0 => Some(row),
            _ if self.astray > 0 && row.is_multiple_of(self.astray) => None,
            tokens => Some((row * 7 + seed as usize) % tokens),
        }
    }

    /// What says so for every row that there is room for: nothing that could be taken for a row where there is none.
    fn row_token(&self, seed: u64) -> Vec<i32> {
        let token = |row: usize| {
            let none = if row.is_multiple_of(2) { -1 } else { self.tokens as i32 };
            if row < self.rows() { self.source(row, seed).map_or(none, |source| source as i32) } else { i32::MAX }
        };
        (0..self.room()).map(token).collect()
    }

    /// Whether some row takes this one.
    fn taken(&self, seed: u64) -> Vec<bool> {
        let mut taken = vec![false; self.sources()];
        (0..self.rows()).filter_map(|row| self.source(row, seed)).for_each(|source| taken[source] = true);
        taken
    }

    /// Every row with its expert.
    fn experts(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let experts = self.counts.iter().enumerate();
        experts.flat_map(|(expert, count)| std::iter::repeat_n(expert, *count)).enumerate()
    }
}
