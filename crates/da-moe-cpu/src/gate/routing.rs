//! A finished routing from the caller (SPEC §2 `given`): put into slot order, and its gradient put back.

use super::select::ordered;
use crate::views::{check_offsets, optional, output, rows, unmasked_count, vector};
use da_moe_core::{Error, Result, Routing, RoutingArgs, RoutingBackwardArgs, TensorRef, expert_id};
use std::cmp::Reverse;

/// The caller's entries of each token, whatever the layout.
enum Entries<'a> {
    Padded { experts: crate::views::Rows<'a, i32>, weights: crate::views::Rows<'a, f32> },
    Csr { offsets: &'a [i32], experts: &'a [i32], weights: &'a [f32] },
}

impl<'a> Entries<'a> {
    fn new(op: &'static str, routing: &Routing<'a>) -> Result<Self> {
        Ok(match routing {
            Routing::Padded { experts, weights } => Self::Padded {
                experts: rows(op, "routing.experts", experts)?,
                weights: rows(op, "routing.weights", weights)?,
            },
            Routing::Csr { offsets, experts, weights } => Self::Csr {
                offsets: vector(op, "routing.offsets", offsets)?,
                experts: vector(op, "routing.experts", experts)?,
                weights: vector(op, "routing.weights", weights)?,
            },
        })
    }

    /// Place of token `t`'s first entry in the flattened weights, its ids and its weights.
    fn of(&self, t: usize) -> (usize, &'a [i32], &'a [f32]) {
        match self {
            Self::Padded { experts, weights } => (t * experts.cols, experts.row(t), weights.row(t)),
            Self::Csr { offsets, experts, weights } => {
                let range = offsets[t] as usize..offsets[t + 1] as usize;
                (range.start, &experts[range.clone()], &weights[range])
            }
        }
    }
}

/// Refuses ids and offsets that are out of range (SPEC §7).
pub(crate) fn check_routing(
    op: &'static str,
    routing: &Routing<'_>,
    tokens: usize,
    candidates: usize,
    k_max: usize,
) -> Result<()> {
    let refuse = |argument, problem| Err(Error::Value { op, argument, problem });
    let sentinel = match routing {
        Routing::Padded { .. } => candidates as i32,
        Routing::Csr { offsets, experts, .. } => {
            let (offsets, count) = (vector::<i32>(op, "routing.offsets", offsets)?, experts.shape()[0]);
            check_offsets(op, "routing.offsets", offsets, count)?;
            if let Some(t) = offsets.windows(2).position(|pair| (pair[1] - pair[0]) as usize > k_max) {
                let problem = format!("token {t} has {} experts, k_max is {k_max}", offsets[t + 1] - offsets[t]);
                return refuse("routing.offsets", problem);
            }
            candidates as i32 - 1
        }
    };
    let padded = matches!(routing, Routing::Padded { .. });
    let entries = Entries::new(op, routing)?;
    for t in 0..tokens {
        let (_, experts, _) = entries.of(t);
        if let Some(&id) = experts.iter().find(|&&id| id > sentinel || (id < 0 && !padded)) {
            return refuse("routing.experts", format!("token {t} names expert {id} of {candidates}"));
        }
    }
    Ok(())
}

pub(crate) fn routing(args: RoutingArgs<'_>) -> Result<()> {
    args.check()?;
    let op = "routing";
    let [tokens, slots] = args.selection.experts.shape();
    check_routing(op, &args.routing, tokens, args.candidates, slots)?;
    let entries = Entries::new(op, &args.routing)?;
    let mask = optional::<u8>(op, "mask", &args.mask)?;
    let k = output::<i32, 1>(op, "k", args.selection.k)?;
    let chosen = output::<i32, 2>(op, "experts", args.selection.experts)?;
    let weights = output::<f32, 2>(op, "weights", args.selection.weights)?;
    let positions = output::<i32, 2>(op, "ranked", args.selection.ranked)?;
    let load = output::<i32, 1>(op, "load", args.load)?;
    output::<i32, 1>(op, "unmasked", args.unmasked)?[0] = unmasked_count(mask, tokens) as i32;
    output::<f32, 1>(op, "losses", args.losses)?.fill(0.0);
    chosen.fill(-1);
    weights.fill(0.0);
    positions.fill(-1);
    load.fill(0);
    let mut order = Vec::with_capacity(slots);
    for t in 0..tokens {
        order.clear();
        if mask.is_none_or(|mask| mask[t] != 0) {
            let (_, ids, given) = entries.of(t);
            let named = ids.iter().zip(given).enumerate();
            order.extend(named.filter_map(|(at, (&id, &w))| Some((w, expert_id(id, args.candidates)?, at))));
        }
        // Descending weight, NaN last, ties to the lower expert and then to the earlier entry.
        order.sort_by_key(|&(weight, expert, _)| (Reverse(ordered(weight)), expert));
        k[t] = order.len() as i32;
        for (slot, &(weight, expert, position)) in order.iter().enumerate() {
            let place = t * slots + slot;
            (chosen[place], weights[place], positions[place]) = (expert as i32, weight, position as i32);
            load[expert] += 1;
        }
    }
    Ok(())
}

pub(crate) fn routing_backward(args: RoutingBackwardArgs<'_>) -> Result<()> {
    args.check()?;
    let op = "routing_backward";
    let [tokens, slots] = args.selection.experts.shape();
    check_routing(op, &args.routing, tokens, i32::MAX as usize, slots)?;
    let entries = Entries::new(op, &args.routing)?;
    let positions: TensorRef<'_, 2> = args.selection.ranked;
    let positions = rows::<i32>(op, "ranked", &positions)?;
    let d_weights = rows::<f32>(op, "d_weights", &args.d_weights)?;
    let d_routing = output::<f32, 1>(op, "d_routing", args.d_routing)?;
    d_routing.fill(0.0);
    for t in 0..tokens {
        let (first, ids, _) = entries.of(t);
        let of_token = &mut d_routing[first..first + ids.len()];
        for (&position, &gradient) in positions.row(t).iter().zip(d_weights.row(t)) {
            if let Some(place) = usize::try_from(position).ok().and_then(|position| of_token.get_mut(position)) {
                *place = gradient;
            }
        }
    }
    Ok(())
}
