//! How much rounding can matter where SPEC §8's relative bounds assume that it cannot: sums that cancel, and kinks of
//! relu, on either side of which the derivative is right.

use crate::backward::weight_gradients;
use crate::problem::{dot, row, row_mut};
use crate::weights::divisor;
use crate::{Experts, Forward, Problem};
use da_moe_core::{Activation, Scoring};

/// What the errors of gradients are at least relative to: half the size that they would have if nothing cancelled.
///
/// A weight's gradient is a dot product and the scores' gradients are differences of those (exactly 0 for one expert
/// under `selected`), so the rounding of the parts remains where the sum is small.
pub(super) struct Cancelled {
    pub x: f64,
    pub router: f64,
    pub routing: f64,
}

pub(super) fn cancelled(problem: &Problem, forward: &Forward, dy: &[f64]) -> Cancelled {
    let d = problem.config.hidden_size;
    let norm = |v: &[f64]| finite(dot(v, v).sqrt());
    let dg = weight_gradients(problem, forward, dy);
    let longest_row = problem.router.chunks(d).map(norm).fold(0.0, f64::max);
    let (mut x, mut router, mut routing) = (0.0, 0.0, 0.0);
    for t in 0..problem.tokens {
        let mut reach = 0.0;
        for (slot, dg) in dg[t].iter().enumerate() {
            let products = forward.plan.token_row[t][slot].map_or(0.0, |at| {
                let o = row(&forward.rows.out, at, d);
                row(dy, t, d).iter().zip(o).map(|(dy, o)| finite(dy * o).powi(2)).sum::<f64>().sqrt()
            });
            let size = finite(dg.abs()) + products;
            routing += size * size;
            reach += size * steepness(problem, forward, t, slot);
        }
        x += (reach * longest_row).powi(2);
        router += (reach * norm(problem.x_row(t))).powi(2);
    }
    let half = |square: f64| square.sqrt() / 2.0;
    // Without a router nothing of this reaches x.
    let x = if problem.routing.is_some() { 0.0 } else { half(x) };
    Cancelled { x, router: half(router), routing: half(routing) }
}

/// Size of `∂g/∂z` for a slot. Softmax and sigmoid: at most `g`. relu: `routed_scaling / S`, and where the divisor `S` is
/// small against the logits it inherits their error, larger by `max |z| / S`.
fn steepness(problem: &Problem, forward: &Forward, t: usize, slot: usize) -> f64 {
    let (router, candidates) = (&problem.config.router, problem.config.candidates());
    if problem.routing.is_some() {
        return 0.0;
    }
    if router.scoring != Scoring::Relu {
        return finite(forward.selection[t][slot].weight.abs());
    }
    let selected: Vec<usize> = forward.selection[t].iter().map(|slot| slot.expert).collect();
    match divisor(router, row(&forward.scores, t, candidates), &selected, &forward.ranked[t]) {
        None => router.routed_scaling.abs(),
        Some(0.0) => 0.0,
        Some(sum) => {
            let largest = row(&forward.logits, t, candidates).iter().fold(0.0_f64, |most, z| most.max(z.abs()));
            finite(router.routed_scaling.abs() / sum * (1.0 + largest / sum))
        }
    }
}

/// Infinite slack for everything that depends on which side of a kink a value fell.
pub(super) struct Kinks {
    pub x: Vec<f64>,
    pub router: Vec<f64>,
    pub experts: Experts,
    pub shared: Option<Experts>,
}

pub(super) fn kinks(problem: &Problem, forward: &Forward) -> Kinks {
    let (d, candidates) = (problem.config.hidden_size, problem.config.candidates());
    let mut kinks = Kinks {
        x: vec![0.0; problem.x.len()],
        router: vec![0.0; problem.router.len()],
        experts: problem.experts.zeros_like(),
        shared: problem.shared.as_ref().map(Experts::zeros_like),
    };
    if problem.config.router.scoring == Scoring::Relu && problem.routing.is_none() {
        for (t, e) in (0..problem.tokens).flat_map(|t| (0..candidates).map(move |e| (t, e))) {
            if near_zero(forward.logits[t * candidates + e], problem.x_row(t), row(&problem.router, e, d), 0.0) {
                row_mut(&mut kinks.router, e, d).fill(f64::INFINITY);
                row_mut(&mut kinks.x, t, d).fill(f64::INFINITY);
            }
        }
    }
    if !matches!(problem.config.hidden_act, Activation::Relu | Activation::Reglu) {
        return kinks;
    }
    let rows = forward.plan.row_token.iter().enumerate().map(|(at, &t)| (at, forward.plan.row_expert(at), t));
    for (at, e, t) in rows {
        kinks_of_row(problem, &problem.experts, (e, t), row(&forward.rows.hidden, at, problem.config.rows_in()), {
            (&mut kinks.experts, &mut kinks.x)
        });
    }
    if let (Some(shared), Some(rows), Some(slack)) = (&problem.shared, &forward.shared, &mut kinks.shared) {
        for t in 0..problem.tokens {
            let h = row(&rows.hidden, t, problem.config.shared_rows_in());
            kinks_of_row(problem, shared, (0, t), h, (slack, &mut kinks.x));
        }
    }
    kinks
}

/// The gate rows of `W_in` come first, so the first `F` values of `h` are those that relu sees, gated or not.
fn kinks_of_row(
    problem: &Problem,
    experts: &Experts,
    (e, t): (usize, usize),
    h: &[f64],
    (slack, x): (&mut Experts, &mut [f64]),
) {
    let d = problem.config.hidden_size;
    for (f, &value) in h.iter().take(experts.width).enumerate() {
        let at = e * h.len() + f;
        let bias = experts.b_in.as_ref().map_or(0.0, |b_in| b_in[at]);
        if near_zero(value, problem.x_row(t), row(&experts.w_in, at, d), bias) {
            row_mut(&mut slack.w_in, at, d).fill(f64::INFINITY);
            row_mut(x, t, d).fill(f64::INFINITY);
            slack.b_in.iter_mut().for_each(|b_in| b_in[at] = f64::INFINITY);
        }
    }
}

/// Whether f32 might give `value = ⟨a, b⟩ + bias` the other sign.
fn near_zero(value: f64, a: &[f64], b: &[f64], bias: f64) -> bool {
    let terms: f64 = a.iter().zip(b).map(|(a, b)| (a * b).abs()).sum();
    value.abs() < 4.0 * f64::from(f32::EPSILON) * (terms + bias.abs())
}

fn finite(value: f64) -> f64 {
    if value.is_finite() { value } else { 0.0 }
}
