//! SPEC §1: importance `I[T]`, by source, then normalised.

use crate::problem::row;
use crate::{Problem, attention_importance, normalize, softmax};
use da_moe_core::Source;

/// `I[T]`: the configured source under the configured normalisation. `logits` are for `router-entropy`.
/// 0 when the source's input is not there, which only policies that ask for no importance allow.
pub fn importance(problem: &Problem, logits: &[f64]) -> Vec<f64> {
    let config = &problem.config.importance;
    if problem.missing_for_importance().is_some() {
        return vec![0.0; problem.tokens];
    }
    normalize(problem, &config.normalize, &measure(problem, &config.source, logits))
}

/// One source before normalisation (the parts of a mix are normalised each by their own rule); 0 where masked.
pub fn measure(problem: &Problem, source: &Source, logits: &[f64]) -> Vec<f64> {
    let measured = match source {
        Source::Attention { measure, heads, scale } => attention_importance(problem, *measure, *heads, *scale),
        Source::External => problem.importance.clone().unwrap_or_else(|| vec![0.0; problem.tokens]),
        Source::TokenFrequency => (0..problem.tokens).map(|t| frequency(problem, t).unwrap_or(0.0)).collect(),
        Source::RouterEntropy => (0..problem.tokens).map(|t| router_entropy(problem, logits, t)).collect(),
        Source::Mix(parts) => {
            let mut sum = vec![0.0; problem.tokens];
            for part in parts {
                let values = normalize(problem, &part.normalize, &measure(problem, &part.source, logits));
                sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += part.weight * value);
            }
            sum
        }
    };
    measured.into_iter().zip(&problem.mask).map(|(value, &token)| if token { value } else { 0.0 }).collect()
}

/// The table's entry for token `t`.
fn frequency(problem: &Problem, t: usize) -> Option<f64> {
    let id = usize::try_from(*problem.token_ids.as_ref()?.get(t)?).ok()?;
    problem.token_frequency.as_ref()?.get(id).copied()
}

/// `H(softmax z_t) / ln E`; 0 with one expert.
fn router_entropy(problem: &Problem, logits: &[f64], t: usize) -> f64 {
    let config = &problem.config;
    if config.num_experts == 1 {
        return 0.0;
    }
    let p = softmax(row(logits, t, config.candidates()));
    // p ln p is 0 at p = 0; a NaN row stays NaN.
    let entropy: f64 = p.iter().map(|&p| if p == 0.0 { 0.0 } else { -p * p.ln() }).sum();
    entropy / (config.num_experts as f64).ln()
}
