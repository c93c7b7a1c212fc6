//! SPEC §3 capacity and §4: a stable counting sort of (token, slot) by expert; and the way back, a gather-and-sum.

use crate::gate::ordered;
use crate::simd::{add_scaled, vectorized};
use crate::views::{SharedRows, by_storage, check_below, output, rows, vector};
use da_moe_core::{
    Drop, LayerConfig, NullExpert, PermuteArgs, PermuteBackwardArgs, Result, SharedPermute, Storage, expert_id,
};
use rayon::prelude::*;
use std::cmp::Reverse;

/// Tokens that one task takes.
const CHUNK: usize = 32;

pub(crate) fn forward(args: PermuteArgs<'_>) -> Result<()> {
    args.check()?;
    let op = "permute";
    let config = args.config;
    let (experts, candidates) = (config.num_experts, config.candidates());
    let chosen = rows::<i32>(op, "selection.experts", &args.selection.experts)?;
    let weights = rows::<f32>(op, "selection.weights", &args.selection.weights)?;
    let [tokens, slots] = args.selection.experts.shape();
    let counts = output::<i32, 1>(op, "plan.counts", args.plan.counts)?;
    let offsets = output::<i32, 1>(op, "plan.offsets", args.plan.offsets)?;
    let row_token = output::<i32, 1>(op, "plan.row_token", args.plan.row_token)?;
    let row_weight = output::<f32, 1>(op, "plan.row_weight", args.plan.row_weight)?;
    let token_row = output::<i32, 2>(op, "plan.token_row", args.plan.token_row)?;
    let dropped = output::<i32, 1>(op, "plan.dropped", args.plan.dropped)?;
    // `token_row` first says who stays: 0 or −1.
    counts.fill(0);
    for t in 0..tokens {
        for (slot, &id) in chosen.row(t).iter().enumerate() {
            let expert = expert_id(id, candidates);
            if let Some(e) = expert {
                counts[e] += 1;
            }
            token_row[t * slots + slot] = if expert.is_some_and(|e| e < experts) { 0 } else { -1 };
        }
    }
    dropped[0] = match capacity(config, counts) {
        Some(limit) => {
            drop_rows(config, limit, [tokens, slots], |t| (chosen.row(t), weights.row(t)), counts, token_row)
        }
        None => 0,
    };
    offsets[0] = 0;
    for e in 0..experts {
        offsets[e + 1] = offsets[e] + counts[e];
    }
    let mut next: Vec<i32> = offsets[..experts].to_vec();
    for t in 0..tokens {
        let (chosen, weights) = (chosen.row(t), weights.row(t));
        for slot in 0..slots {
            let place = &mut token_row[t * slots + slot];
            if *place == 0 {
                let row = &mut next[chosen[slot] as usize];
                *place = *row;
                row_token[*row as usize] = t as i32;
                row_weight[*row as usize] = weights[slot];
                *row += 1;
            }
        }
    }
    args.shared.map_or(Ok(()), shared_rows)
}

/// The tokens that are not masked, in order.
fn shared_rows(args: SharedPermute<'_>) -> Result<()> {
    let op = "permute";
    let mask: &[u8] = vector(op, "mask", &args.mask)?;
    let offsets = output::<i32, 1>(op, "shared_plan.offsets", args.plan.offsets)?;
    let row_token = output::<i32, 1>(op, "shared_plan.row_token", args.plan.row_token)?;
    let token_row = output::<i32, 1>(op, "shared_plan.token_row", args.plan.token_row)?;
    let mut rows = 0;
    for (t, (&token, row)) in mask.iter().zip(token_row).enumerate() {
        *row = if token == 0 { -1 } else { rows };
        if token != 0 {
            row_token[rows as usize] = t as i32;
            rows += 1;
        }
    }
    offsets.copy_from_slice(&[0, rows]);
    Ok(())
}

/// `ceil(capacity_factor · R / E)` rows, where some expert has more.
fn capacity(config: &LayerConfig, counts: &[i32]) -> Option<i32> {
    let factor = config.router.capacity_factor?;
    let total: i64 = counts.iter().map(|&count| i64::from(count)).sum();
    let limit = (factor * total as f64 / config.num_experts as f64).ceil();
    let limit = if limit >= f64::from(i32::MAX) { i32::MAX } else { limit as i32 };
    counts[..config.num_experts].iter().any(|&count| count > limit).then_some(limit)
}

/// Marks the rows over `limit` with −1, corrects `counts`, and returns how many there were.
fn drop_rows<'a>(
    config: &LayerConfig,
    limit: i32,
    [tokens, slots]: [usize; 2],
    row: impl Fn(usize) -> (&'a [i32], &'a [f32]),
    counts: &mut [i32],
    token_row: &mut [i32],
) -> i32 {
    let mut segments: Vec<Vec<(f32, usize)>> =
        counts[..config.num_experts].iter().map(|&count| Vec::with_capacity(count as usize)).collect();
    for t in 0..tokens {
        let (chosen, weights) = row(t);
        for slot in 0..slots {
            if token_row[t * slots + slot] == 0 {
                segments[chosen[slot] as usize].push((weights[slot], t * slots + slot));
            }
        }
    }
    let mut dropped = 0;
    for (segment, count) in segments.iter_mut().zip(counts) {
        if *count <= limit {
            continue;
        }
        if config.router.drop == Drop::Weight {
            // Stable: equal weights stay in token order.
            segment.sort_by_key(|&(weight, _)| Reverse(ordered(weight)));
        }
        segment[limit as usize..].iter().for_each(|&(_, place)| token_row[place] = -1);
        dropped += *count - limit;
        *count = limit;
    }
    dropped
}

pub(crate) fn backward(args: PermuteBackwardArgs<'_>) -> Result<()> {
    args.check()?;
    check_below("permute_backward", "plan.token_row", &args.plan.token_row, args.dx_rows.shape()[0])?;
    by_storage!("permute_backward", "dy", args.dy.dtype(), S => run_backward::<S>(args))
}

fn run_backward<S: Storage>(args: PermuteBackwardArgs<'_>) -> Result<()> {
    let op = "permute_backward";
    let width = args.dy.shape()[1];
    let slots = args.selection.experts.shape()[1];
    let chosen = rows::<i32>(op, "selection.experts", &args.selection.experts)?;
    let weights = rows::<f32>(op, "selection.weights", &args.selection.weights)?;
    let token_row = rows::<i32>(op, "plan.token_row", &args.plan.token_row)?;
    let dx_rows = rows::<f32>(op, "dx_rows", &args.dx_rows)?;
    let d_row_weight: &[f32] = vector(op, "d_row_weight", &args.d_row_weight)?;
    let shared = SharedRows::new(op, "shared_dx", &args.shared_dx, &args.shared_row)?;
    let dy = rows::<S>(op, "dy", &args.dy)?;
    let d_weights = output::<f32, 2>(op, "d_weights", args.d_weights)?;
    let dx = output::<f32, 2>(op, "dx", args.dx)?;
    let copies = args.null_expert == NullExpert::Copy;
    let first_null = args.experts as i32;
    let token = |t: usize, dx: &mut [f32], d_weights: &mut [f32]| {
        dx.fill(0.0);
        for (slot, d_weight) in d_weights.iter_mut().enumerate() {
            let (expert, row) = (chosen.row(t)[slot], token_row.row(t)[slot]);
            if let Ok(row) = usize::try_from(row) {
                *d_weight = d_row_weight[row];
                add_scaled(dx, 1.0, dx_rows.row(row));
            } else if copies && expert >= first_null {
                add_scaled(dx, weights.row(t)[slot], dy.row(t));
            }
        }
        if let Some(shared) = shared.of_token(t) {
            add_scaled(dx, 1.0, shared);
        }
    };
    let chunks = dx.par_chunks_mut(CHUNK * width).zip(d_weights.par_chunks_mut(CHUNK * slots.max(1)));
    if slots == 0 {
        // No slots: nothing to zip with, and only the shared expert contributes.
        dx.chunks_exact_mut(width).enumerate().for_each(|(t, dx)| token(t, dx, &mut []));
        return Ok(());
    }
    chunks.enumerate().for_each(|(chunk, (dx, d_weights))| {
        vectorized(
            #[inline(always)]
            || {
                for (i, (dx, d_weights)) in
                    dx.chunks_exact_mut(width).zip(d_weights.chunks_exact_mut(slots)).enumerate()
                {
                    token(chunk * CHUNK + i, dx, d_weights);
                }
            },
        );
    });
    Ok(())
}
