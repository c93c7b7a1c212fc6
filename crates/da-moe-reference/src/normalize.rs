//! SPEC §1, normalisation per sequence: `none`, `max`, `min-max`, `rank`, `affine`, `running`. Only unmasked tokens enter
//! the statistics; masked ones stay 0; NaN and negative importance count as 0.

use crate::{Problem, running_statistics};
use da_moe_core::Normalize;

/// The values brought to a common scale, sequence by sequence.
pub fn normalize(problem: &Problem, rule: &Normalize, measured: &[f64]) -> Vec<f64> {
    let mut normalized = vec![0.0; measured.len()];
    for (start, end) in problem.sequences() {
        let tokens: Vec<usize> = (start..end).filter(|&t| problem.mask[t]).collect();
        let values: Vec<f64> = tokens.iter().map(|&t| counted(measured[t])).collect();
        for (&t, &value) in tokens.iter().zip(&values) {
            normalized[t] = counted(normalize_one(rule, value, &values, problem.state));
        }
    }
    normalized
}

fn normalize_one(rule: &Normalize, value: f64, all: &[f64], state: [f64; 4]) -> f64 {
    let largest = all.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let smallest = all.iter().copied().fold(f64::INFINITY, f64::min);
    match *rule {
        Normalize::None => value,
        Normalize::Max => quotient(value, largest),
        Normalize::MinMax => quotient(value - smallest, largest - smallest),
        Normalize::Rank => {
            let below = all.iter().filter(|&&other| other < value).count() as f64;
            let equal = all.iter().filter(|&&other| other == value).count() as f64;
            (below + (equal + 1.0) / 2.0) / all.len() as f64
        }
        Normalize::Affine { a, b } => (a * value + b).clamp(0.0, 1.0),
        Normalize::Running { .. } => {
            let (low, high) = running_statistics(state);
            quotient(value - low, high - low).clamp(0.0, 1.0)
        }
    }
}

/// NaN and negative importance count as 0 (SPEC §2).
pub(crate) fn counted(importance: f64) -> f64 {
    if importance > 0.0 { importance } else { 0.0 }
}

/// `a / b`, and 0 for 0/0.
fn quotient(a: f64, b: f64) -> f64 {
    if a == 0.0 && b == 0.0 { 0.0 } else { a / b }
}
