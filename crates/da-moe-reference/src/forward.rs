//! The forward pass: logits, importance, `k`, selection, weights, plan, experts, combine, losses (SPEC §1 to §5). The
//! discrete choices can be forced by a [`Decision`], so that a backend's own reading of a tie is followed.

use crate::problem::row;
use crate::{
    ExpertRows, Keys, Plan, Problem, Slot, balance_loss, capacity_drops, combine, expert_rows, experts_per_token,
    importance, logits, measure, next_state, plan, scores, selection_order, shared_rows, slot_order, weights, z_loss,
};

/// Everything discrete about a forward pass. Constant under small changes of the inputs, hence without gradient.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// Per token its experts in slot order.
    pub experts: Vec<Vec<usize>>,
    /// Per token its first `k_max` candidates, without those that are forbidden and not selected; for a routing from outside, each slot's position in the caller's order.
    pub ranked: Vec<Vec<usize>>,
    /// Per token and slot, whether capacity dropped it.
    pub dropped: Vec<Vec<bool>>,
}

/// Everything that a forward pass computes.
#[derive(Clone, Debug, PartialEq)]
pub struct Forward {
    /// `I[T]`; zeros for a routing from outside.
    pub importance: Vec<f64>,
    /// `z[T, E + Z]`; empty for a routing from outside.
    pub logits: Vec<f64>,
    /// `s[T, E + Z]`; empty for a routing from outside.
    pub scores: Vec<f64>,
    /// `k_t`.
    pub k: Vec<usize>,
    /// Per token its experts and weights in slot order, before any drop.
    pub selection: Vec<Vec<Slot>>,
    /// See [`Decision::ranked`].
    pub ranked: Vec<Vec<usize>>,
    /// See [`Decision::dropped`].
    pub dropped: Vec<Vec<bool>>,
    /// `[E + Z]`: selections of each candidate before any drop.
    pub load: Vec<usize>,
    /// The dispatch plan.
    pub plan: Plan,
    /// What the routed experts computed.
    pub rows: ExpertRows,
    /// What the shared expert computed.
    pub shared: Option<ExpertRows>,
    /// `y[T, D]`.
    pub y: Vec<f64>,
    /// Without its coefficient; 0 for a routing from outside.
    pub balance_loss: f64,
    /// Without its coefficient; 0 for a routing from outside.
    pub z_loss: f64,
    /// After a training step.
    pub next_state: Option<[f64; 4]>,
}

impl Forward {
    /// The discrete choices of this pass.
    pub fn decision(&self) -> Decision {
        let experts = self.selection.iter().map(|slots| slots.iter().map(|slot| slot.expert).collect()).collect();
        Decision { experts, ranked: self.ranked.clone(), dropped: self.dropped.clone() }
    }
}

/// The forward pass.
pub fn forward(problem: &Problem) -> Forward {
    forward_with(problem, &decide(problem))
}

/// What the gate decides, or the order of a routing from outside.
pub fn decide(problem: &Problem) -> Decision {
    let selected = match &problem.routing {
        Some(routing) => order_routing(problem, routing),
        None => gate(problem),
    };
    let (slots, ranked): (Vec<Vec<Slot>>, Vec<Vec<usize>>) = selected.into_iter().unzip();
    let dropped = capacity_drops(&problem.config, &slots);
    Decision { experts: slots.iter().map(|slots| slots.iter().map(|s| s.expert).collect()).collect(), ranked, dropped }
}

/// Per token its slots in order, and its first `k_max` candidates.
fn gate(problem: &Problem) -> Vec<(Vec<Slot>, Vec<usize>)> {
    let config = &problem.config;
    let candidates = config.candidates();
    let z = logits(problem);
    let keys = Keys::of_tokens(config, &z, problem.router_bias.as_deref());
    let (importance, k_given) = (importance(problem, &z), problem.k_given.as_deref());
    let k = experts_per_token(config, &importance, &z, &keys, &problem.mask, k_given, problem.state);
    let of_token = |t: usize| {
        let mut ranked = selection_order(config, &keys[t]);
        ranked.truncate(config.k_max());
        let forbidden = |e: &usize| problem.router_bias.as_ref().is_some_and(|bias| bias[*e] == f64::NEG_INFINITY);
        let selected = ranked[..k[t]].to_vec();
        ranked.retain(|e| selected.contains(e) || !forbidden(e));
        let weights = weights(&config.router, row(&z, t, candidates), &selected, &ranked);
        let slots: Vec<Slot> = selected.iter().zip(weights).map(|(&expert, weight)| Slot { expert, weight }).collect();
        (slot_order(&slots).into_iter().map(|i| slots[i]).collect(), ranked)
    };
    (0..problem.tokens).map(of_token).collect()
}

/// A routing from outside in slot order, with each slot's position among the caller's entries.
fn order_routing(problem: &Problem, routing: &[Vec<(usize, f64)>]) -> Vec<(Vec<Slot>, Vec<usize>)> {
    let candidates = problem.config.candidates();
    let of_token = |(entries, &token): (&Vec<(usize, f64)>, &bool)| {
        let named = |&(_, &(expert, _)): &(usize, &(usize, f64))| token && expert < candidates;
        let (positions, slots): (Vec<usize>, Vec<Slot>) = entries
            .iter()
            .enumerate()
            .filter(named)
            .map(|(position, &(expert, weight))| (position, Slot { expert, weight }))
            .unzip();
        slot_order(&slots).into_iter().map(|i| (slots[i], positions[i])).unzip()
    };
    routing.iter().zip(&problem.mask).map(of_token).collect()
}

/// The forward pass with the discrete choices given.
pub fn forward_with(problem: &Problem, decision: &Decision) -> Forward {
    let config = &problem.config;
    let gated = problem.routing.is_none();
    let logits = if gated { logits(problem) } else { Vec::new() };
    let scores = all_scores(problem, &logits);
    let importance = if gated { importance(problem, &logits) } else { vec![0.0; problem.tokens] };
    let selection = selection(problem, &logits, decision);
    let k: Vec<usize> = selection.iter().map(Vec::len).collect();
    let mut load = vec![0; config.candidates()];
    selection.iter().flatten().for_each(|slot| load[slot.expert] += 1);
    let plan = plan(config, &selection, &decision.dropped);
    let rows = expert_rows(problem, &plan);
    let shared = problem.shared.as_ref().map(|shared| shared_rows(problem, shared));
    let y = combine(problem, &selection, &plan, &rows.out, shared.as_ref().map(|shared| &shared.out[..]));
    let next_state = problem.training.then(|| match gated {
        true => next_state(problem, &measure(problem, &config.importance.source, &logits), &k),
        false => problem.state,
    });
    let (balance_loss, z_loss) = match gated {
        true => (balance_loss(config, &logits, &load, &problem.mask), z_loss(config, &logits, &problem.mask)),
        false => (0.0, 0.0),
    };
    let (ranked, dropped) = (decision.ranked.clone(), decision.dropped.clone());
    Forward {
        importance,
        logits,
        scores,
        k,
        selection,
        ranked,
        dropped,
        load,
        plan,
        rows,
        shared,
        y,
        balance_loss,
        z_loss,
        next_state,
    }
}

/// The decided slots with their weights: the caller's, or computed from the logits.
fn selection(problem: &Problem, logits: &[f64], decision: &Decision) -> Vec<Vec<Slot>> {
    let of_token = |(t, (experts, ranked)): (usize, (&Vec<usize>, &Vec<usize>))| {
        let weights = match &problem.routing {
            Some(routing) => ranked.iter().map(|&position| routing[t][position].1).collect(),
            None => weights(&problem.config.router, row(logits, t, problem.config.candidates()), experts, ranked),
        };
        experts.iter().zip(weights).map(|(&expert, weight)| Slot { expert, weight }).collect()
    };
    decision.experts.iter().zip(&decision.ranked).enumerate().map(of_token).collect()
}

/// `s[T, E + Z]` of `z[T, E + Z]`.
pub(crate) fn all_scores(problem: &Problem, logits: &[f64]) -> Vec<f64> {
    let scoring = problem.config.router.scoring;
    logits.chunks(problem.config.candidates()).flat_map(|z| scores(scoring, z)).collect()
}
