//! How much rounding can matter where SPEC §8's relative bounds assume that it cannot: sums that cancel, and kinks of
//! relu, on either side of which the derivative is right.

use crate::backward::weight_gradients;
use crate::losses::{balance_backward, balance_slope};
use crate::problem::{add_scaled, dot, row, row_mut};
use crate::weights::divisor_members;
use crate::{ExpertRows, Experts, Forward, Problem, activate_backward, softmax};
use da_moe_core::{Activation, Scoring};

/// What the errors of gradients are at least relative to: half the size that they would have if nothing cancelled.
///
/// A weight's gradient is a dot product and the scores' gradients are differences of those (exactly 0 for one expert
/// under `selected`), so the rounding of the parts remains where the sum is small. An expert's gradients are sums over
/// its rows, in a narrow expert of few enough elements that all may cancel.
pub(super) struct Cancelled {
    pub x: f64,
    pub router: f64,
    pub routing: f64,
    pub constants: f64,
    /// `w_in`, `w_out`, `b_in`, `b_out`.
    pub experts: [f64; 4],
    pub shared: [f64; 4],
}

pub(super) fn cancelled(problem: &Problem, forward: &Forward, dy: &[f64]) -> Cancelled {
    let d = problem.config.hidden_size;
    let norm = |v: &[f64]| finite(dot(v, v).sqrt());
    let plan = &forward.plan;
    let activated = |rows: &ExpertRows, at| row(&rows.activated, at, problem.experts.width).to_vec();
    let dg = weight_gradients(problem, forward, dy);
    let longest_row = problem.router.chunks(d).map(norm).fold(0.0, f64::max);
    let (mut x, mut router, mut routing) = (0.0, 0.0, 0.0);
    for t in 0..problem.tokens {
        let mut reach = balance_reach(problem, forward, t);
        for (slot, dg) in dg[t].iter().enumerate() {
            let products = forward.plan.token_row[t][slot].map_or(0.0, |at| {
                let o = uncancelled_out(&problem.experts, d, plan.row_expert(at), &activated(&forward.rows, at));
                row(dy, t, d).iter().zip(&o).map(|(dy, o)| finite(dy * o).powi(2)).sum::<f64>().sqrt()
            });
            let size = finite(dg.abs()) + products;
            routing += size * size;
            reach += size * steepness(problem, forward, t, slot);
        }
        x += (reach * longest_row).powi(2);
        router += (reach * norm(problem.x_row(t))).powi(2);
    }
    let half = |square: f64| square.sqrt() / 2.0;
    let routed = plan.row_token.iter().zip(&plan.row_weight).enumerate();
    let routed = routed.map(|(at, (&t, &g))| (plan.row_expert(at), t, g));
    let (experts, experts_x) = summands(problem, &problem.experts, &forward.rows, routed, dy);
    let (shared, shared_x) = match (&problem.shared, &forward.shared) {
        (Some(shared), Some(rows)) => {
            summands(problem, shared, rows, problem.unmasked_tokens().map(|t| (0, t, 1.0)), dy)
        }
        _ => ([0.0; 4], 0.0),
    };
    // Without a router nothing of it reaches x.
    let x = experts_x + shared_x + if problem.routing.is_some() { 0.0 } else { x };
    let nulls = forward.selection.iter().enumerate().flat_map(|(t, slots)| slots.iter().map(move |slot| (t, slot)));
    let nulls = nulls.filter(|(_, slot)| slot.expert >= problem.config.num_experts);
    let constants = nulls.map(|(t, slot)| (slot.weight * norm(row(dy, t, d))).powi(2)).map(finite).sum();
    Cancelled {
        constants: half(constants),
        x: half(x),
        router: half(router),
        routing: half(routing),
        experts: experts.map(half),
        shared: shared.map(half),
    }
}

/// What the error of `y` is at least relative to: half the size that it would have if nothing cancelled, neither in the
/// experts' products nor in the sum over slots.
pub(super) fn cancelled_output(problem: &Problem, forward: &Forward) -> f64 {
    let (d, plan) = (problem.config.hidden_size, &forward.plan);
    let square = |experts: &Experts, e: usize, rows: &ExpertRows, at: usize, g: f64| {
        let o = uncancelled_out(experts, d, e, row(&rows.activated, at, experts.width));
        finite(g * g * dot(&o, &o))
    };
    let routed = plan.row_weight.iter().enumerate();
    let routed = routed.map(|(at, &g)| square(&problem.experts, plan.row_expert(at), &forward.rows, at, g));
    let shared = problem.shared.as_ref().zip(forward.shared.as_ref());
    let shared =
        shared.map_or(0.0, |(shared, rows)| (0..problem.unmasked()).map(|at| square(shared, 0, rows, at, 1.0)).sum());
    (routed.sum::<f64>() + shared).sqrt() / 2.0
}

/// `Σ_d |x[t, d]| |W_r[e, d]|` of every logit.
pub(super) fn uncancelled_logits(problem: &Problem) -> Vec<f64> {
    let experts = || problem.router.chunks(problem.config.hidden_size);
    let size = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(x, w)| (x * w).abs()).sum();
    (0..problem.tokens).flat_map(|t| experts().map(move |w| size(problem.x_row(t), w))).collect()
}

/// What the error of the logits is at least relative to: half the size that they would have if their products did not cancel, which all of
/// the few of one token and one expert may do.
pub(super) fn cancelled_logits(problem: &Problem) -> f64 {
    let experts = || problem.router.chunks(problem.config.hidden_size);
    let square = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(x, w)| finite((x * w).powi(2))).sum::<f64>();
    let all = (0..problem.tokens).flat_map(|t| experts().map(move |w| square(problem.x_row(t), w)));
    all.sum::<f64>().sqrt() / 2.0
}

/// `|W_out[e]| |a| (+ |b_out|)`.
fn uncancelled_out(experts: &Experts, d: usize, e: usize, a: &[f64]) -> Vec<f64> {
    let bias = |i: usize| experts.b_out.as_ref().map_or(0.0, |b| b[e * d + i].abs());
    let product =
        |i: usize| row(&experts.w_out, e * d + i, a.len()).iter().zip(a).map(|(w, a)| (w * a).abs()).sum::<f64>();
    (0..d).map(|i| product(i) + bias(i)).collect()
}

/// Size of what the balance loss adds to `dz` before an even load makes it cancel (SPEC §3: it is smallest then).
fn balance_reach(problem: &Problem, forward: &Forward, t: usize) -> f64 {
    let config = &problem.config;
    if problem.routing.is_some() || !problem.mask[t] || config.losses.balance == 0.0 {
        return 0.0;
    }
    let z = row(&forward.logits, t, config.candidates());
    let slopes = match config.router.scoring {
        Scoring::Softmax => {
            let slopes = balance_slope(config, &forward.load, &problem.mask);
            slopes.iter().zip(softmax(z)).map(|(slope, p)| slope * p).collect()
        }
        Scoring::Sigmoid | Scoring::Relu => balance_backward(config, z, &forward.load, &problem.mask),
    };
    let size = slopes.iter().map(|slope| finite(*slope).powi(2)).sum::<f64>().sqrt();
    config.losses.balance.abs() * size
}

/// Squared sizes of what the rows (expert, token, weight) add to the gradients of `w_in`, `w_out`, `b_in` and `b_out`, and
/// to that of `x`: `|W_in|ᵀ |dh|`.
fn summands(
    problem: &Problem,
    experts: &Experts,
    rows: &ExpertRows,
    of: impl Iterator<Item = (usize, usize, f64)>,
    dy: &[f64],
) -> ([f64; 4], f64) {
    let (d, width) = (problem.config.hidden_size, experts.width);
    let rows_in = problem.config.hidden_act.rows_in(width);
    let square = |v: &[f64]| finite(dot(v, v));
    let (mut sums, mut of_x) = ([0.0; 4], 0.0);
    for (at, (e, t, g)) in of.enumerate() {
        let (dy, a) = (row(dy, t, d), row(&rows.activated, at, width));
        let mut da = vec![0.0; width];
        for (o, dy) in dy.iter().enumerate() {
            add_scaled(&mut da, g * dy, row(&experts.w_out, e * d + o, width));
        }
        let hidden = row(&rows.hidden, at, rows_in);
        let slopes = activate_backward(problem.config.hidden_act, hidden, &da);
        // `|W_outᵀ| |dy|`: what `da` would be if nothing cancelled.
        let w_out = |o: usize, f: usize| experts.w_out[(e * d + o) * width + f];
        let reach = |f: usize| dy.iter().enumerate().map(|(o, dy)| (g * dy * w_out(o, f)).abs()).sum::<f64>();
        // Near a flat spot of the activation its derivative is itself a difference; count it as 1 there.
        let steepest = |(j, slope): (usize, &f64)| {
            let factor = match (problem.config.hidden_act.is_gated(), hidden.get(width + j)) {
                (false, _) => 1.0,
                (true, up) => up.map_or(0.0, |up| up.abs()),
            };
            slope.abs().max(reach(j % width) * factor)
        };
        let slopes: Vec<f64> = slopes.iter().enumerate().map(steepest).collect();
        let (d_out, dh) = (g * g * square(dy), square(&slopes));
        let parts = [dh * square(problem.x_row(t)), d_out * square(a), dh, d_out];
        sums.iter_mut().zip(parts).for_each(|(sum, part)| *sum += finite(part));
        let mut dx = vec![0.0; d];
        for (j, slope) in slopes.iter().enumerate() {
            let w = row(&experts.w_in, e * rows_in + j, d);
            dx.iter_mut().zip(w).for_each(|(dx, w)| *dx += (slope * w).abs());
        }
        of_x += square(&dx);
    }
    (sums, of_x)
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
    let s = row(&forward.scores, t, candidates);
    let members = divisor_members(router, &selected, &forward.ranked[t]);
    match members.map(|members| members.iter().map(|&e| s[e]).sum::<f64>()) {
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
        for (at, t) in problem.unmasked_tokens().enumerate() {
            let h = row(&rows.hidden, at, problem.config.shared_rows_in());
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
