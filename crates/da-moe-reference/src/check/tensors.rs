//! Stage 4: weights, losses, `y` and gradients against the oracle forced to the outcome's decision, within SPEC §8.

use super::bounds::{bound, exponent_error, rounded_outputs};
use super::conditioning::{cancelled, cancelled_output, kinks, uncancelled_logits};
use super::outcome::Outcome;
use super::report::{Report, Tolerance};
use crate::{Decision, Experts, Forward, Gradients, Problem, Slot, backward, capacity_drops, forward_with, kept};
use da_moe_core::DType;

pub(super) fn check(
    problem: &Problem,
    outcome: &Outcome,
    slots: &[Vec<Slot>],
    dtype: DType,
    dy: Option<&[f64]>,
    report: &mut Report,
) {
    let config = &problem.config;
    let forward = forward_with(problem, &decision(problem, outcome, slots));
    let widest = config.hidden_size.max(config.moe_intermediate_size).max(config.shared_intermediate_size);
    // Scores are exponentials of differences of two f32 logits, so weights inherit the rounding of both.
    let score = 2.0 * exponent_error(&uncancelled_logits(problem));
    let in_f32 = |length: usize| Tolerance::new(bound(DType::F32, length) + score, DType::F32);
    let flat = |slots: &[Vec<Slot>]| slots.iter().flatten().map(|slot| slot.weight).collect::<Vec<f64>>();
    report.close("weights", 1, &flat(slots), &flat(&forward.selection), in_f32(config.candidates().max(widest)));
    if problem.routing.is_none() {
        let may_overflow = !all_finite(&problem.x);
        let tolerance = Tolerance { may_overflow, ..in_f32(problem.tokens.max(widest)) };
        report.close("balance_loss", 1, &outcome.losses[..1], &[forward.balance_loss], tolerance);
        // A logsumexp near 0 has the absolute error of the logits around it.
        let slack = [2.0 * forward.z_loss.sqrt() * (2.0 * score + 2.0 * f64::from(f32::EPSILON))];
        let tolerance = Tolerance { slack: Some(&slack), ..tolerance };
        report.close("z_loss", 1, &outcome.losses[1..], &[forward.z_loss], tolerance);
    }
    report.close("y", config.hidden_size, &outcome.y, &forward.y, y_tolerance(problem, &forward, dtype, widest, score));
    match (&outcome.gradients, dy) {
        (Some(found), Some(dy)) if dy.len() == problem.x.len() => {
            let scale = Scale { dtype, length: widest.max(problem.tokens).max(config.candidates()), score };
            check_gradients(problem, &forward, found, dy, &scale, report);
        }
        (Some(_), given) => {
            let found = given.map_or("none".into(), |dy| format!("{} elements", dy.len()));
            report.mismatch("dy", &[], found, format!("{} elements, to check gradients with", problem.x.len()));
        }
        (None, _) => {}
    }
}

/// The outcome's own choices; what capacity drops has just been compared with the plan.
fn decision(problem: &Problem, outcome: &Outcome, slots: &[Vec<Slot>]) -> Decision {
    let k_max = problem.config.k_max();
    let ranked = |t: usize| {
        let filled = if problem.routing.is_some() { slots[t].len() } else { k_max };
        let filled = if problem.mask[t] { filled } else { 0 };
        outcome.ranked[t * k_max..t * k_max + filled].iter().filter_map(|&e| usize::try_from(e).ok()).collect()
    };
    Decision {
        experts: slots.iter().map(|slots| slots.iter().map(|slot| slot.expert).collect()).collect(),
        ranked: (0..problem.tokens).map(ranked).collect(),
        dropped: capacity_drops(&problem.config, slots),
    }
}

/// In half precision `y` also has to be within 1.5 times what rounding the oracle's own `a`, `o` and `y` costs, at worst
/// over the subsets of them that a fused kernel may round: in a small tensor one rounding may undo another.
fn y_tolerance(problem: &Problem, forward: &Forward, dtype: DType, widest: usize, score: f64) -> Tolerance<'static> {
    let in_f32 = bound(DType::F32, widest) + score;
    let floor = cancelled_output(problem, forward);
    if dtype == DType::F32 {
        return Tolerance { floor, ..Tolerance::new(in_f32, dtype) };
    }
    let finite = |(a, b): &(&f64, &f64)| a.is_finite() && b.is_finite();
    let error = |rounded: Vec<f64>| {
        let pairs = || rounded.iter().zip(&forward.y).filter(finite);
        let error = pairs().map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt();
        let size = pairs().map(|(_, b)| b * b).sum::<f64>().sqrt();
        if size > 0.0 { error / size } else { 0.0 }
    };
    let baseline = rounded_outputs(problem, forward, dtype).into_iter().map(error).fold(0.0, f64::max);
    Tolerance { floor, ..Tolerance::new(bound(dtype, widest).min(1.5 * baseline + in_f32), dtype) }
}

/// What decides the tolerance of gradients.
struct Scale {
    dtype: DType,
    length: usize,
    score: f64,
}

fn check_gradients(
    problem: &Problem,
    forward: &Forward,
    found: &Gradients,
    dy: &[f64],
    scale: &Scale,
    report: &mut Report,
) {
    let d = problem.config.hidden_size;
    let expected = backward(problem, &kept(problem, forward, scale.dtype), dy);
    let (cancelled, kinks) = (cancelled(problem, forward, dy), kinks(problem, forward));
    let tolerance = Tolerance::new(bound(scale.dtype, scale.length) + scale.score, scale.dtype);
    let summed = Tolerance { may_overflow: !all_finite(&problem.x) || !all_finite(dy), ..tolerance };
    let of_x = Tolerance { floor: cancelled.x, slack: Some(&kinks.x), ..tolerance };
    report.close("d.x", d, &found.x, &expected.x, of_x);
    let of_router = Tolerance { floor: cancelled.router, slack: Some(&kinks.router), ..summed };
    optional(report, "d.router.weight", d, &found.router, &expected.router, of_router);
    let names = ["d.experts.w_in", "d.experts.w_out", "d.experts.b_in", "d.experts.b_out"];
    experts(report, names, d, (&found.experts, &expected.experts, Some(&kinks.experts)), (summed, cancelled.experts));
    let names = ["d.shared.w_in", "d.shared.w_out", "d.shared.b_in", "d.shared.b_out"];
    match (&found.shared, &expected.shared) {
        (Some(found), Some(expected)) => {
            experts(report, names, d, (found, expected, kinks.shared.as_ref()), (summed, cancelled.shared));
        }
        (found, expected) => presence(report, names[0], found.is_some(), expected.is_some()),
    }
    let of_constants = Tolerance { floor: cancelled.constants, ..summed };
    optional(report, "d.null.constants", d, &found.constants, &expected.constants, of_constants);
    // The gradient of a routing from outside is the caller's choice.
    if found.routing.is_some() {
        let of_routing = Tolerance { floor: cancelled.routing, ..tolerance };
        optional(report, "d.routing.weights", 1, &found.routing, &expected.routing, of_routing);
    }
}

fn experts(
    report: &mut Report,
    names: [&'static str; 4],
    d: usize,
    (found, expected, kinks): (&Experts, &Experts, Option<&Experts>),
    (tolerance, floors): (Tolerance<'_>, [f64; 4]),
) {
    let [w_in, w_out, b_in, b_out] = floors.map(|floor| Tolerance { floor, ..tolerance });
    let of_w_in = Tolerance { slack: kinks.map(|kinks| &kinks.w_in[..]), ..w_in };
    let of_b_in = Tolerance { slack: kinks.and_then(|kinks| kinks.b_in.as_deref()), ..b_in };
    report.close(names[0], d, &found.w_in, &expected.w_in, of_w_in);
    report.close(names[1], expected.width, &found.w_out, &expected.w_out, w_out);
    let rows_in = expected.b_in.as_ref().map_or(1, |b_in| b_in.len() / expected.count.max(1));
    optional(report, names[2], rows_in, &found.b_in, &expected.b_in, of_b_in);
    optional(report, names[3], d, &found.b_out, &expected.b_out, b_out);
}

fn optional(
    report: &mut Report,
    name: &'static str,
    width: usize,
    found: &Option<Vec<f64>>,
    expected: &Option<Vec<f64>>,
    tolerance: Tolerance<'_>,
) {
    match (found, expected) {
        (Some(found), Some(expected)) => report.close(name, width, found, expected, tolerance),
        (found, expected) => presence(report, name, found.is_some(), expected.is_some()),
    }
}

fn presence(report: &mut Report, name: &'static str, found: bool, expected: bool) {
    let word = |there| if there { "a gradient" } else { "no gradient" };
    if found != expected {
        report.mismatch(name, &[], word(found), word(expected));
    }
}

fn all_finite(values: &[f64]) -> bool {
    values.iter().all(|value| value.is_finite())
}
