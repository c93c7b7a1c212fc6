//! SPEC §2 and §3: scores, `k_t`, selection, weights and losses, token by token; sums over tokens in fixed chunks, added
//! in order, so that every pool computes the same bits.

mod backward;
mod policy;
mod routing;
mod scores;
mod select;
mod shares;

pub(crate) use backward::backward;
pub(crate) use routing::{check_routing, routing, routing_backward};
pub(crate) use select::ordered;

use crate::views::{Rows, optional, output, rows, unmasked_count, vector};
use da_moe_core::{GateArgs, LayerConfig, NormalizeWeights, Policy, Result};
use rayon::prelude::*;
use scores::Scores;
use select::Ranking;
use shares::Whole;

/// Tokens that one task takes, and whose contributions to the losses are one partial sum.
const CHUNK: usize = 128;

/// What one chunk of tokens adds to the losses and the load.
struct Partial {
    /// `Σ_t p[t, e]`.
    shares: Vec<f64>,
    /// Selections of each candidate.
    load: Vec<i32>,
    /// `Σ_t (logsumexp z_t)²`.
    z: f64,
}

/// One chunk of tokens and where its decisions go.
struct Task<'a> {
    first: usize,
    k: &'a mut [i32],
    experts: &'a mut [i32],
    weights: &'a mut [f32],
    ranked: &'a mut [i32],
}

/// What every task reads.
struct Gate<'a> {
    config: &'a LayerConfig,
    logits: Rows<'a, f32>,
    bias: Option<&'a [f32]>,
    mask: Option<&'a [u8]>,
    bounds: (usize, usize),
}

pub(crate) fn forward(args: GateArgs<'_>) -> Result<()> {
    args.check()?;
    let op = "gate";
    let config = args.config;
    let [tokens, candidates] = args.logits.shape();
    let mask = optional::<u8>(op, "mask", &args.mask)?;
    let k = output::<i32, 1>(op, "k", args.selection.k)?;
    let state = output::<f32, 1>(op, "state", args.state)?;
    let demand = policy::Demand {
        config,
        importance: vector(op, "importance", &args.importance)?,
        mask,
        given: optional(op, "k_given", &args.k_given)?,
    };
    demand.decide(k, state, args.training);
    let gate = Gate {
        config,
        logits: rows(op, "logits", &args.logits)?,
        bias: optional(op, "bias", &args.bias)?,
        mask,
        bounds: (config.k_min(), config.k_max()),
    };
    let slots = gate.bounds.1;
    let experts = output::<i32, 2>(op, "experts", args.selection.experts)?;
    let weights = output::<f32, 2>(op, "weights", args.selection.weights)?;
    let ranked = output::<i32, 2>(op, "ranked", args.selection.ranked)?;
    let partials: Vec<Partial> =
        tasks(k, experts, weights, ranked, slots).into_par_iter().map(|task| gate.chunk(task)).collect();

    let load = output::<i32, 1>(op, "load", args.load)?;
    let losses = output::<f32, 1>(op, "losses", args.losses)?;
    load.fill(0);
    partials.iter().for_each(|part| load.iter_mut().zip(&part.load).for_each(|(sum, count)| *sum += count));
    let unmasked = unmasked_count(mask, tokens);
    output::<i32, 1>(op, "unmasked", args.unmasked)?[0] = unmasked as i32;
    let mean = |sum: f64| if unmasked == 0 { 0.0 } else { sum / unmasked as f64 };
    let selections = load.iter().map(|&count| f64::from(count)).sum::<f64>();
    let balance = (0..candidates).map(|e| {
        let share = mean(partials.iter().map(|part| part.shares[e]).sum());
        if selections == 0.0 { 0.0 } else { f64::from(load[e]) / selections * share }
    });
    losses[0] = (config.num_experts as f64 * balance.sum::<f64>()) as f32;
    losses[1] = mean(partials.iter().map(|part| part.z).sum()) as f32;
    Ok(())
}

fn tasks<'a>(
    mut k: &'a mut [i32],
    mut experts: &'a mut [i32],
    mut weights: &'a mut [f32],
    mut ranked: &'a mut [i32],
    slots: usize,
) -> Vec<Task<'a>> {
    use crate::experts::take;
    let tokens = k.len();
    (0..tokens)
        .step_by(CHUNK)
        .map(|first| {
            let count = CHUNK.min(tokens - first);
            Task {
                first,
                k: take(&mut k, count),
                experts: take(&mut experts, count * slots),
                weights: take(&mut weights, count * slots),
                ranked: take(&mut ranked, count * slots),
            }
        })
        .collect()
}

impl Gate<'_> {
    fn chunk(&self, task: Task<'_>) -> Partial {
        let candidates = self.logits.cols;
        let slots = self.bounds.1;
        let mut partial = Partial { shares: vec![0.0; candidates], load: vec![0; candidates], z: 0.0 };
        let mut scores = Scores::new(self.config.router.scoring, candidates);
        let mut ranking = Ranking::new(self.config, self.bias);
        for i in 0..task.k.len() {
            let token = task.first + i;
            let experts = &mut task.experts[i * slots..][..slots];
            let weights = &mut task.weights[i * slots..][..slots];
            let ranked = &mut task.ranked[i * slots..][..slots];
            experts.fill(-1);
            weights.fill(0.0);
            let logits = self.logits.row(token);
            scores.compute(logits);
            ranking.rank(logits, scores.values(), ranked);
            if self.mask.is_some_and(|mask| mask[token] == 0) {
                task.k[i] = 0;
                self.leave_out_forbidden(ranked);
                continue;
            }
            partial.z += f64::from(scores.log_sum_exp()) * f64::from(scores.log_sum_exp());
            partial.shares.iter_mut().zip(scores.shares()).for_each(|(sum, share)| *sum += f64::from(*share));
            match self.config.experts_per_token.policy {
                Policy::TopP { p } => task.k[i] = self.clamp(ranking.top_p(scores.shares(), p)),
                Policy::ScoreThreshold { .. } => task.k[i] = self.clamp(ranking.above_threshold()),
                _ => {}
            }
            let count = task.k[i] as usize;
            self.leave_out_forbidden(&mut ranked[count..]);
            for &expert in &ranked[..count] {
                partial.load[expert as usize] += 1;
            }
            let weight_of = self.weight_of(logits, scores.values(), ranked, count);
            for (slot, (weight, expert)) in ranking.slots(&ranked[..count], weight_of).enumerate() {
                (weights[slot], experts[slot]) = (weight, expert);
            }
        }
        partial
    }

    /// Those that are not selected are in no divisor either.
    fn leave_out_forbidden(&self, ranked: &mut [i32]) {
        if let Some(bias) = self.bias {
            ranked.iter_mut().filter(|e| bias[**e as usize] == f32::NEG_INFINITY).for_each(|e| *e = -1);
        }
    }

    fn clamp(&self, k: usize) -> i32 {
        k.clamp(self.bounds.0, self.bounds.1) as i32
    }

    /// `g` of a candidate: `routed_scaling` times its score, or its share of what the divisor sums.
    fn weight_of<'s>(
        &self,
        logits: &'s [f32],
        scores: &'s [f32],
        ranked: &[i32],
        count: usize,
    ) -> impl Fn(usize) -> f32 + use<'s> {
        let router = &self.config.router;
        let scaling = router.routed_scaling as f32;
        let summed = summed(router.normalize, ranked, count);
        let whole = summed.map(|summed| Whole::new(router.scoring, logits, members(summed)));
        move |e| scaling * whole.map_or(scores[e], |whole| whole.share(logits[e], scores[e]))
    }
}

/// The candidates, in ranked order, whose scores weights are divided by (SPEC §3); `None` when they are not divided.
fn summed(normalize: NormalizeWeights, ranked: &[i32], count: usize) -> Option<&[i32]> {
    match normalize {
        NormalizeWeights::None => None,
        NormalizeWeights::Selected => Some(&ranked[..count]),
        NormalizeWeights::Candidates => Some(ranked),
    }
}

fn members(ids: &[i32]) -> impl Iterator<Item = usize> + Clone + '_ {
    ids.iter().filter_map(|&id| usize::try_from(id).ok())
}
