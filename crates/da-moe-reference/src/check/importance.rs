//! Stage 1: logits and importance within the f32 bound. Where a normalisation amplifies (a narrow range under `min-max`,
//! two nearly equal values under `rank`), the error it may make of the f32 bound does not count.

use super::bounds::{bound, exponent_error};
use super::conditioning::cancelled_logits;
use super::outcome::Outcome;
use super::report::{Report, Tolerance};
use crate::attention::attention_score;
use crate::normalize::counted;
use crate::{Attention, Problem, importance, logits, measure, normalize, running_statistics};
use da_moe_core::{AttentionSource, DType, Normalize, Source};

pub(super) fn check(problem: &Problem, outcome: &Outcome, report: &mut Report) {
    let (config, z) = (&problem.config, logits(problem));
    let tolerance = Tolerance::new(bound(DType::F32, config.hidden_size), DType::F32);
    let of_logits = Tolerance { floor: cancelled_logits(problem), ..tolerance };
    report.close("logits", config.candidates(), &outcome.logits, &z, of_logits);
    let slack = slack_of_source(problem, &config.importance.source, &z);
    let measured = measure(problem, &config.importance.source, &z);
    let slack = slack_of_normalized(problem, &config.importance.normalize, &measured, &slack);
    let longest = problem.sequences().map(|(start, end)| end - start).max().unwrap_or(0);
    let width = match &problem.attention {
        Some(Attention::QueryKey { width, .. }) => *width,
        _ => 0,
    };
    let bound = bound(DType::F32, longest.max(width).max(config.hidden_size));
    let count = |values: &[f64]| values.iter().copied().map(counted).collect::<Vec<f64>>();
    let (found, expected) = (count(&outcome.importance), count(&importance(problem, &z)));
    report.close(
        "importance",
        1,
        &found,
        &expected,
        Tolerance { slack: Some(&slack), ..Tolerance::new(bound, DType::F32) },
    );
}

/// Absolute error of a source's values that f32 explains: rounded exponents, and entropies as differences.
fn slack_of_source(problem: &Problem, source: &Source, z: &[f64]) -> Vec<f64> {
    let values = measure(problem, source, z);
    let epsilon = f64::from(f32::EPSILON);
    match source {
        Source::External | Source::TokenFrequency => vec![0.0; problem.tokens],
        Source::RouterEntropy => vec![4.0 * epsilon + exponent_error(z); problem.tokens],
        Source::Attention { measure, scale, .. } => {
            let error = 2.0 * epsilon + 2.0 * exponent_error(&attention_scores(problem, *scale));
            match measure {
                AttentionSource::GivenEntropy => vec![2.0 * error; problem.tokens],
                _ => values.iter().map(|value| error * value).collect(),
            }
        }
        Source::Mix(parts) => {
            let mut slack = vec![0.0; problem.tokens];
            for part in parts {
                let values = measure(problem, &part.source, z);
                let of_source = slack_of_source(problem, &part.source, z);
                let of_part = slack_of_normalized(problem, &part.normalize, &values, &of_source);
                let normalized = normalize(problem, &part.normalize, &values);
                for (t, slack) in slack.iter_mut().enumerate() {
                    // The parts' own rounding counts because they may cancel.
                    *slack += part.weight.abs() * (of_part[t] + 2.0 * epsilon * normalized[t].abs());
                }
            }
            slack
        }
    }
}

fn attention_scores(problem: &Problem, scale: Option<f64>) -> Vec<f64> {
    let Some(Attention::QueryKey { heads, lse, .. }) = &problem.attention else { return Vec::new() };
    let mut scores = lse.clone().unwrap_or_default();
    for (start, end) in problem.sequences() {
        for (i, j) in (start..end).flat_map(|i| (start..end).map(move |j| (i, j))) {
            scores.extend((0..*heads).map(|head| attention_score(problem, head, i, j, scale)));
        }
    }
    scores
}

/// What a normalisation makes of errors up to `slack`.
fn slack_of_normalized(problem: &Problem, rule: &Normalize, values: &[f64], slack: &[f64]) -> Vec<f64> {
    let mut normalized = vec![0.0; values.len()];
    let epsilon = f64::from(f32::EPSILON);
    for (start, end) in problem.sequences() {
        let tokens: Vec<usize> = (start..end).filter(|&t| problem.mask[t]).collect();
        let largest = tokens.iter().map(|&t| counted(values[t])).fold(0.0, f64::max);
        let smallest = tokens.iter().map(|&t| counted(values[t])).fold(f64::INFINITY, f64::min);
        let most = tokens.iter().map(|&t| slack[t]).fold(0.0, f64::max);
        for &t in &tokens {
            let amplified = |error: f64, range: f64| match error {
                0.0 => 0.0,
                error => (2.0 * error / range.abs()).min(1.0),
            };
            normalized[t] = match rule {
                Normalize::None => slack[t],
                Normalize::Max => amplified(most, largest),
                Normalize::MinMax => amplified(most, largest - smallest),
                Normalize::Affine { a, b } => a.abs() * slack[t] + epsilon * ((a * values[t]).abs() + b.abs()),
                Normalize::Running { .. } => {
                    let (low, high) = running_statistics(problem.state);
                    amplified(slack[t] + epsilon * (values[t] - low).abs(), high - low)
                }
                Normalize::Rank => {
                    let near = |&&u: &&usize| u != t && (values[u] - values[t]).abs() <= slack[u] + slack[t];
                    // Values that are equal for certain, such as external ones, tie for certain.
                    let unsure = tokens.iter().filter(near).filter(|&&u| slack[u] + slack[t] > 0.0).count();
                    unsure as f64 / tokens.len() as f64
                }
            };
        }
    }
    normalized
}
