//! SPEC §1, the attention sources: `S_h[i,j] = scale · q[i,h]·k[j,g(h)]`, `P_h[i,j] = exp(S_h[i,j] − lse[h,i])`, each
//! head reduced over positions, then the heads by mean or max.

use crate::normalize::counted;
use crate::problem::dot;
use crate::{Attention, Problem, log_sum_exp};
use da_moe_core::{AttentionSource, Heads};

/// One query's view of its sequence: probabilities of the keys it may see, and its entropy in nats.
struct Row {
    /// (token, probability); NaN already counts as 0.
    keys: Vec<(usize, f64)>,
    entropy: f64,
}

/// Importance of every token from the attention of its sequence; 0 where masked.
pub fn attention_importance(problem: &Problem, measure: AttentionSource, heads: Heads, scale: Option<f64>) -> Vec<f64> {
    let mut importance = vec![0.0; problem.tokens];
    let count = match &problem.attention {
        Some(Attention::QueryKey { heads, .. } | Attention::Probabilities { heads, .. }) => *heads,
        None => return importance,
    };
    if importance.is_empty() {
        return importance;
    }
    for head in 0..count {
        let per_head = head_importance(problem, measure, head, scale);
        for (token, value) in importance.iter_mut().zip(per_head) {
            // NaN counts as 0 head by head, so that one bad head cannot silence a token.
            let value = counted(value);
            *token = match heads {
                Heads::Mean => *token + value / count as f64,
                Heads::Max => token.max(value),
            };
        }
    }
    importance
}

fn head_importance(problem: &Problem, measure: AttentionSource, head: usize, scale: Option<f64>) -> Vec<f64> {
    let mut value = vec![0.0_f64; problem.tokens];
    let mut queries = vec![0usize; problem.tokens];
    for (sequence, (start, end)) in problem.sequences().enumerate() {
        for i in (start..end).filter(|&i| problem.mask[i]) {
            let row = attention_row(problem, (sequence, start, end), head, i, scale);
            let n = row.keys.len();
            match measure {
                AttentionSource::GivenPeak => value[i] = row.keys.iter().fold(0.0, |peak, &(_, p)| peak.max(p)),
                AttentionSource::GivenEntropy if n == 1 => value[i] = 0.0,
                AttentionSource::GivenEntropy => value[i] = row.entropy / (n as f64).ln(),
                AttentionSource::GivenSelf => {
                    value[i] = row.keys.iter().find(|&&(j, _)| j == i).map_or(0.0, |&(_, p)| p);
                }
                AttentionSource::ReceivedMax => row.keys.iter().for_each(|&(j, p)| value[j] = value[j].max(p)),
                AttentionSource::ReceivedSum => row.keys.iter().for_each(|&(j, p)| value[j] += p),
                AttentionSource::ReceivedMean => row.keys.iter().for_each(|&(j, p)| {
                    value[j] += p;
                    queries[j] += 1;
                }),
            }
        }
    }
    for (value, queries) in value.iter_mut().zip(queries).filter(|(_, queries)| *queries > 0) {
        *value /= queries as f64;
    }
    value
}

fn attention_row(
    problem: &Problem,
    (sequence, start, end): (usize, usize, usize),
    head: usize,
    i: usize,
    scale: Option<f64>,
) -> Row {
    let last = if problem.config.importance.causal { i + 1 } else { end };
    let visible: Vec<usize> = (start..last).filter(|&j| problem.mask[j]).collect();
    let counted = |p: f64| if p.is_nan() { 0.0 } else { p };
    match &problem.attention {
        None => Row { keys: Vec::new(), entropy: 0.0 },
        Some(Attention::Probabilities { p, heads, side }) => {
            let base = ((sequence * heads + head) * side + (i - start)) * side;
            let keys: Vec<_> = visible.iter().map(|&j| (j, counted(p[base + j - start]))).collect();
            let entropy = keys.iter().filter(|(_, p)| *p > 0.0).map(|(_, p)| -p * p.ln()).sum();
            Row { keys, entropy }
        }
        Some(Attention::QueryKey { lse, .. }) => {
            let score: Vec<f64> = visible.iter().map(|&j| attention_score(problem, head, i, j, scale)).collect();
            let lse = lse.as_ref().map_or_else(|| log_sum_exp(&score), |lse| lse[head * problem.tokens + i]);
            let p: Vec<f64> = score.iter().map(|s| counted((s - lse).exp())).collect();
            let terms = p.iter().zip(&score).filter(|(p, _)| **p > 0.0);
            let entropy = lse - terms.map(|(p, s)| p * s).sum::<f64>();
            Row { keys: visible.into_iter().zip(p).collect(), entropy }
        }
    }
}

/// `scale · q[i,h]·k[j,g(h)]`; 0 when there are no queries and keys.
pub(crate) fn attention_score(problem: &Problem, head: usize, i: usize, j: usize, scale: Option<f64>) -> f64 {
    let Some(Attention::QueryKey { q, k, heads, key_heads, width, .. }) = &problem.attention else { return 0.0 };
    let scale = scale.unwrap_or(1.0 / (*width as f64).sqrt());
    let group = head / (heads / key_heads);
    let (query, key) = ((i * heads + head) * width, (j * key_heads + group) * width);
    scale * dot(&q[query..query + width], &k[key..key + width])
}
