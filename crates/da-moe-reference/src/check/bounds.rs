//! SPEC §8: `f32 ≤ 2e-6 · sqrt(reduction length) / 8`, never above 1e-4; bf16 ≤ 8e-3; f16 ≤ 1e-3. And what the oracle
//! itself would lose by rounding `a`, `o` and `y` to the storage type.

use crate::experts::project_out;
use crate::problem::row;
use crate::{Experts, Forward, Problem, combine};
use da_moe_core::{DType, bf16, f16};

/// Largest relative error of a tensor of this type whose elements sum `length` products.
pub(super) fn bound(dtype: DType, length: usize) -> f64 {
    match dtype {
        DType::Bf16 => 8e-3,
        DType::F16 => 1e-3,
        DType::F32 | DType::I32 | DType::U8 => (2e-6 * (length.max(64) as f64).sqrt() / 8.0).min(1e-4),
    }
}

/// Relative error that exponentials and their ratios have because their f32 arguments are rounded.
pub(super) fn exponent_error(arguments: &[f64]) -> f64 {
    let largest = arguments.iter().filter(|z| z.is_finite()).fold(0.0_f64, |largest, z| largest.max(z.abs()));
    f64::from(f32::EPSILON) * largest
}

/// `value` rounded to the type.
pub(super) fn round(dtype: DType, value: f64) -> f64 {
    match dtype {
        DType::Bf16 => bf16::from_f64(value).to_f64(),
        DType::F16 => f16::from_f64(value).to_f64(),
        DType::F32 | DType::I32 | DType::U8 => f64::from(value as f32),
    }
}

/// The oracle's `y` with `y` rounded to the type, and with `a`, `o` or both rounded before.
pub(super) fn rounded_outputs(problem: &Problem, forward: &Forward, dtype: DType) -> [Vec<f64>; 4] {
    let plan = &forward.plan;
    let to_type = |value: f64| round(dtype, value);
    let exact = |value: f64| value;
    let output = |round_a: &dyn Fn(f64) -> f64, round_o: &dyn Fn(f64) -> f64| {
        let rows = rounded_rows(problem, &problem.experts, &forward.rows.activated, |at| plan.row_expert(at), round_a);
        let rows: Vec<f64> = rows.into_iter().map(round_o).collect();
        let shared: Option<Vec<f64>> = problem.shared.as_ref().zip(forward.shared.as_ref()).map(|(shared, rows)| {
            rounded_rows(problem, shared, &rows.activated, |_| 0, round_a).into_iter().map(round_o).collect()
        });
        let y = combine(problem, &forward.selection, plan, &rows, shared.as_deref());
        y.into_iter().map(to_type).collect()
    };
    [output(&exact, &exact), output(&exact, &to_type), output(&to_type, &exact), output(&to_type, &to_type)]
}

/// `o` of rounded `a`.
fn rounded_rows(
    problem: &Problem,
    experts: &Experts,
    activated: &[f64],
    expert: impl Fn(usize) -> usize,
    round_a: &dyn Fn(f64) -> f64,
) -> Vec<f64> {
    let of_row = |at: usize| {
        let a: Vec<f64> = row(activated, at, experts.width).iter().map(|&a| round_a(a)).collect();
        project_out(experts, problem.config.hidden_size, expert(at), &a)
    };
    (0..activated.len() / experts.width).flat_map(of_row).collect()
}
