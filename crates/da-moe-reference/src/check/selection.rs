//! Stage 2: `k`, selected experts, their order, the ranked candidates and the load, recomputed from the outcome's own
//! importance and logits. Integers must be equal, but for choices that the score error explains.

use super::bounds::exponent_error;
use super::order::{Order, SCORE_ERROR, shifted};
use super::outcome::{Outcome, padded};
use super::report::Report;
use crate::forward::all_scores;
use crate::problem::row;
use crate::{Keys, Problem, decide, experts_per_token, price, slot_order};
use da_moe_core::Policy;

pub(super) fn check(problem: &Problem, outcome: &Outcome, report: &mut Report) {
    let k_max = problem.config.k_max();
    match problem.routing {
        Some(_) => check_routing(problem, outcome, report),
        None => check_gate(problem, outcome, report),
    }
    if !report.is_clean() {
        return;
    }
    let candidates = problem.config.candidates();
    let slots = outcome.slots();
    for (t, slots) in slots.iter().enumerate() {
        if slot_order(slots) != (0..slots.len()).collect::<Vec<_>>() {
            let found = format!("{:?}", slots.iter().map(|s| (s.expert, s.weight)).collect::<Vec<_>>());
            report.mismatch("experts", &[t], found, "descending weight, ties to the lower expert, NaN last");
        }
    }
    // Past k_t: "no expert" and weight 0.
    let experts = slots.iter().map(|slots| slots.iter().map(|s| s.expert as i64).collect());
    report.equal("experts", k_max, &outcome.experts, &padded(experts, k_max, -1));
    let weights = slots.iter().map(|slots| slots.iter().map(|s| s.weight).collect());
    report.equal("weights", k_max, &outcome.weights, &padded(weights, k_max, 0.0));
    let mut load = vec![0; candidates];
    slots.iter().flatten().for_each(|slot| load[slot.expert] += 1);
    report.equal("load", 1, &outcome.load, &load);
}

/// A routing from outside has one right order.
fn check_routing(problem: &Problem, outcome: &Outcome, report: &mut Report) {
    let (k_max, decision) = (problem.config.k_max(), decide(problem));
    let ids =
        |lists: &[Vec<usize>]| padded(lists.iter().map(|list| list.iter().map(|&id| id as i64).collect()), k_max, -1);
    let k: Vec<i64> = decision.experts.iter().map(|experts| experts.len() as i64).collect();
    report.equal("k", 1, &outcome.k, &k);
    report.equal("experts", k_max, &outcome.experts, &ids(&decision.experts));
    report.equal("ranked", k_max, &outcome.ranked, &ids(&decision.ranked));
    let Some(routing) = &problem.routing else { return };
    let weights =
        decision.ranked.iter().zip(routing).map(|(ranked, entries)| ranked.iter().map(|&at| entries[at].1).collect());
    report.equal("weights", k_max, &outcome.weights, &padded(weights, k_max, 0.0));
}

fn check_gate(problem: &Problem, outcome: &Outcome, report: &mut Report) {
    let (config, k_max, candidates) = (&problem.config, problem.config.k_max(), problem.config.candidates());
    let scores = all_scores(problem, &outcome.logits);
    let keys = Keys::of_tokens(config, &outcome.logits, problem.router_bias.as_deref());
    check_k(problem, outcome, &scores, &keys, report);
    if !report.is_clean() {
        return;
    }
    for t in (0..problem.tokens).filter(|&t| problem.mask[t]) {
        let order = Order {
            config,
            logits: row(&outcome.logits, t, candidates),
            scores: row(&scores, t, candidates),
            keys: &keys[t],
            bias: problem.router_bias.as_deref(),
        };
        let slots = t * k_max..(t + 1) * k_max;
        let k = outcome.k[t] as usize;
        let selected = ids(report, "experts", t, &outcome.experts[slots.clone()][..k], candidates);
        let listed: Vec<i64> = outcome.ranked[slots].iter().copied().filter(|&e| e != -1).collect();
        let ranked = ids(report, "ranked", t, &listed, candidates);
        let (Some(selected), Some(ranked)) = (selected, ranked) else { continue };
        let reachable = order.reachable(&[&selected[..], &ranked[..]].concat());
        let left_out = order.left_out(&reachable, k_max, k);
        if ranked.len() + left_out != k_max {
            report.mismatch("ranked", &[t], format!("{} candidates", ranked.len()), format!("{}", k_max - left_out));
        }
        best_first(report, "experts", t, &order, &selected, &reachable);
        best_first(report, "ranked", t, &order, &ranked, &reachable);
        for pair in ranked.windows(2).filter(|pair| order.surely_before(pair[1], pair[0])) {
            report.mismatch("ranked", &[t], format!("{} before {}", pair[0], pair[1]), "the reverse, by key");
        }
    }
}

/// Distinct ids of candidates, or a mismatch.
fn ids(report: &mut Report, name: &'static str, t: usize, found: &[i64], candidates: usize) -> Option<Vec<usize>> {
    let ids: Vec<usize> = found.iter().filter_map(|&id| usize::try_from(id).ok()).filter(|&e| e < candidates).collect();
    let distinct = (1..ids.len()).all(|at| !ids[..at].contains(&ids[at]));
    if ids.len() == found.len() && distinct {
        return Some(ids);
    }
    report.mismatch(name, &[t], format!("{found:?}"), format!("distinct ids below {candidates}"));
    None
}

/// Everything listed can be reached, and nothing that can be reached and is not listed surely belongs before it.
fn best_first(
    report: &mut Report,
    name: &'static str,
    t: usize,
    order: &Order<'_>,
    listed: &[usize],
    reachable: &[usize],
) {
    if let Some(e) = listed.iter().find(|e| !reachable.contains(e)) {
        report.mismatch(name, &[t], format!("expert {e}"), format!("one of the best groups, {reachable:?}"));
    }
    let surely = order.surely_reachable();
    for &missing in reachable.iter().filter(|e| !listed.contains(e) && surely.contains(e)) {
        if let Some(&worse) = listed.iter().find(|&&e| order.surely_before(missing, e)) {
            let found = format!("expert {worse} with key {}", order.keys.sums[worse]);
            report.mismatch(name, &[t], found, format!("expert {missing} with key {}", order.keys.sums[missing]));
            return;
        }
    }
}

/// `k` at slightly easier and harder settings encloses what the score error explains; most policies have no error at
/// all, because importance is the outcome's own.
fn check_k(problem: &Problem, outcome: &Outcome, scores: &[f64], keys: &[Keys], report: &mut Report) {
    let largest = |of: &[f64]| of.iter().filter(|v| v.is_finite()).fold(0.0_f64, |most, v| most.max(v.abs()));
    let error = SCORE_ERROR + 2.0 * exponent_error(&outcome.logits);
    let error = match problem.config.experts_per_token.policy {
        Policy::ScoreThreshold { .. } => {
            let sums = keys.iter().map(|keys| largest(&keys.sums)).fold(0.0, f64::max);
            error * largest(scores) + f64::from(f32::EPSILON) * sums
        }
        _ => error,
    };
    let k_at = |sign: f64| {
        let config = shifted(&problem.config, error, sign);
        let mut state = problem.state;
        if let Policy::BudgetRunning { mean_k, .. } = config.experts_per_token.policy {
            // The price, its quotient with importance, and where it is fresh its formula, are rounded to f32.
            let lambda = f64::from(price(state, mean_k, config.k_min()));
            state[2] = lambda * (1.0 + sign * 2.0 * f64::from(f32::EPSILON));
        }
        let k_given = problem.k_given.as_deref();
        experts_per_token(&config, &outcome.importance, &outcome.logits, keys, &problem.mask, k_given, state)
    };
    // "Easier" asks for fewer experts under top-p and for more under the others.
    for (t, (a, b)) in k_at(-1.0).into_iter().zip(k_at(1.0)).enumerate() {
        let found = usize::try_from(outcome.k[t]).unwrap_or(usize::MAX);
        if !(a.min(b)..=a.max(b)).contains(&found) {
            let expected = if a == b { a.to_string() } else { format!("{} to {}", a.min(b), a.max(b)) };
            report.mismatch("k", &[t], outcome.k[t], expected);
        }
    }
}
