//! SPEC §1: normalisation per sequence, over unmasked tokens, which arrive packed. A quotient 0/0 is 0.

use super::{Sequences, sane};
use crate::experts::take;
use da_moe_core::Normalize;
use rayon::prelude::*;

/// Places of the running minimum, maximum and step count in the carried state.
const MINIMUM: usize = 0;
const MAXIMUM: usize = 1;
const STEPS: usize = 3;

/// Every rule that needs no carried statistics.
pub(super) fn normalize(rule: &Normalize, sequences: &Sequences, values: &mut [f32]) {
    let mut rest = values;
    let mut parts: Vec<&mut [f32]> = sequences.parts.iter().map(|(part, _)| take(&mut rest, part.len())).collect();
    parts.par_iter_mut().for_each(|part| sequence(rule, part));
}

/// Every rule; `running` reads `state`, and moves it after a training step.
pub(super) fn with_state(
    rule: &Normalize,
    sequences: &Sequences,
    values: &mut [f32],
    state: &mut [f32],
    training: bool,
) {
    let Normalize::Running { momentum } = rule else {
        return normalize(rule, sequences, values);
    };
    let (low, high, steps) = (state[MINIMUM], state[MAXIMUM], state[STEPS]);
    // What no step leaves counts as none.
    let fresh = !(steps > 0.0 && steps.is_finite() && low >= 0.0 && low <= high && high.is_finite());
    let (low, high) = if fresh { (0.0, 1.0) } else { (low, high) };
    values.iter_mut().for_each(|value| *value = sane(*value));
    // An average would never leave infinity again.
    let (least, most) = extremes(values.iter().copied().filter(|value| value.is_finite()));
    values.iter_mut().for_each(|value| *value = sane((*value - low) / (high - low)).min(1.0));
    if training && least <= most {
        let keep = if fresh { 0.0 } else { *momentum as f32 };
        state[MINIMUM] = (keep * low + (1.0 - keep) * least).min(f32::MAX);
        state[MAXIMUM] = (keep * high + (1.0 - keep) * most).min(f32::MAX);
        state[STEPS] = if fresh { 1.0 } else { steps + 1.0 };
    }
}

/// Of nothing, a smallest value above the largest.
fn extremes(values: impl Iterator<Item = f32>) -> (f32, f32) {
    values.fold((f32::INFINITY, 0.0), |(low, high), value| (value.min(low), value.max(high)))
}

fn sequence(rule: &Normalize, values: &mut [f32]) {
    values.iter_mut().for_each(|value| *value = sane(*value));
    match rule {
        Normalize::None | Normalize::Running { .. } => {}
        Normalize::Max => {
            let (_, high) = extremes(values.iter().copied());
            values.iter_mut().for_each(|value| *value = sane(*value / high));
        }
        Normalize::MinMax => {
            let (low, high) = extremes(values.iter().copied());
            values.iter_mut().for_each(|value| *value = sane((*value - low) / (high - low)));
        }
        Normalize::Rank => rank(values),
        Normalize::Affine { a, b } => {
            let (a, b) = (*a as f32, *b as f32);
            values.iter_mut().for_each(|value| *value = sane(a * *value + b).min(1.0));
        }
    }
}

/// Average rank over `n`: equal values share the mean of the ranks `1 ..= n` they occupy.
fn rank(values: &mut [f32]) {
    let n = values.len();
    let mut order: Vec<u32> = (0..n as u32).collect();
    order.sort_by(|&a, &b| values[a as usize].total_cmp(&values[b as usize]));
    let sorted: Vec<f32> = order.iter().map(|&i| values[i as usize]).collect();
    let mut start = 0;
    for group in sorted.chunk_by(|a, b| a == b) {
        let end = start + group.len();
        let average = (start + 1 + end) as f32 / 2.0;
        order[start..end].iter().for_each(|&i| values[i as usize] = average / n as f32);
        start = end;
    }
}
