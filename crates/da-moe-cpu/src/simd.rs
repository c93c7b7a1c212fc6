//! Elementwise arithmetic written so that the compiler vectorises it, run with the widest vectors of this machine.
//!
//! Only additions, multiplications, divisions and selections, no fused multiply-add: this code computes the same bits at
//! every vector width. (Matrix products and `ln` do not promise that across machines.)

use da_moe_core::{DType, Storage};

/// Runs `body` compiled for the best instruction set found at run time. `body` must be `#[inline(always)]` code.
#[inline(always)]
pub(crate) fn vectorized<R>(body: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(body)
}

const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// Adding and subtracting 1.5 · 2^23 rounds to an integer, which is then also in the low bits.
const ROUND: f32 = 12_582_912.0;

/// `e^x`, relative error below 3e-7; results below `e^-87`, about 1.6e-38, are 0.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let clamped = if x > 88.8 { 88.8 } else { x };
    let clamped = if clamped < -87.0 { -87.0 } else { clamped };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    // Taylor's series to r^7 on |r| ≤ ln(2)/2: the next term is below 6e-9.
    let mut p = 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    // 2^n in two factors, so that neither n = 128 nor n = -126 leaves the exponent field.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    let result = p * power_of_two(half) * power_of_two(n.wrapping_sub(half));
    let result = if x < -87.0 { 0.0 } else { result };
    if x.is_nan() { x } else { result }
}

/// `2^n` for `-126 ≤ n ≤ 127`.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The normal distribution function `Φ(x)` and its density `φ(x)`.
///
/// `erfc(z) = e^{-z²} t P(t)`, `t = 1 / (1 + z/2)`, with `P` a minimax fit (relative error 4.4e-8) on `0 ≤ z ≤ 10.5`;
/// beyond, `e^{-z²}` is 0 in f32.
#[inline(always)]
pub(crate) fn normal(x: f32) -> (f32, f32) {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.5 * z);
    let mut p = -0.059_193_33;
    p = p * t + 0.285_182_83;
    p = p * t - 0.488_460_9;
    p = p * t + 0.279_512_6;
    p = p * t - 0.027_623_456;
    p = p * t + 0.203_109_94;
    p = p * t + 0.242_996_6;
    p = p * t + 0.282_390_06;
    p = p * t + 0.282_085_57;
    let gauss = exp(-0.5 * x * x);
    let tail = 0.5 * gauss * t * p;
    (if x > 0.0 { 1.0 - tail } else { tail }, gauss * 0.398_942_3)
}

/// `Σ a_i b_i` in sixteen lanes, added pairwise: an order that depends on the length only.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (whole_a, whole_b) = (a.chunks_exact(16), b.chunks_exact(16));
    let tail: f32 = whole_a.remainder().iter().zip(whole_b.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in whole_a.zip(whole_b) {
        for lane in 0..16 {
            lanes[lane] += x[lane] * y[lane];
        }
    }
    fold(lanes) + tail
}

/// Sum of sixteen lanes, pairwise.
#[inline(always)]
pub(crate) fn fold(lanes: [f32; 16]) -> f32 {
    let mut width = 8;
    let mut lanes = lanes;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// `to = from` widened.
#[inline(always)]
pub(crate) fn widen<S: Storage>(from: &[S], to: &mut [f32]) {
    match S::as_f32(from) {
        Some(from) => to.copy_from_slice(from),
        None => to.iter_mut().zip(from).for_each(|(to, from)| *to = from.to_f32()),
    }
}

/// `to = from`, or `to += from`, rounded to nearest even.
#[inline(always)]
pub(crate) fn write<S: Storage>(from: &[f32], to: &mut [S], accumulate: bool) {
    if accumulate {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = S::from_f32(to.to_f32() + *from));
    } else {
        narrow(from, to);
    }
}

/// `to = from` rounded to nearest even.
#[inline(always)]
pub(crate) fn narrow<S: Storage>(from: &[f32], to: &mut [S]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = S::from_f32(*from));
}

/// Rounds to nearest even to what the type has, in f32 still.
#[inline(always)]
pub(crate) fn round<S: Storage>(values: &mut [f32]) {
    if S::DTYPE != DType::F32 {
        values.iter_mut().for_each(|value| *value = S::from_f32(*value).to_f32());
    }
}

/// `sum += factor · x`.
#[inline(always)]
pub(crate) fn add_scaled<S: Storage>(sum: &mut [f32], factor: f32, x: &[S]) {
    sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += factor * x.to_f32());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_three_ulps_and_exact_at_the_ends() {
        for i in -86_999..88_700 {
            let x = i as f32 * 1e-3;
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 3e-7, "exp({x}) = {}, exactly {exact}", exp(x));
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn normal_distribution_is_within_a_few_ulps_of_one() {
        for i in -20_000..20_000 {
            let x = i as f32 * 1e-3;
            let exact = 0.5 * libm::erfc(-f64::from(x) * std::f64::consts::FRAC_1_SQRT_2);
            let (value, _) = normal(x);
            // Rounding x² moves e^{-x²/2} by half its relative error times x².
            let bound = (4e-7 + 6e-8 * f64::from(x) * f64::from(x)) * exact + 1e-37;
            assert!((f64::from(value) - exact).abs() <= bound, "Φ({x}) = {value}, exactly {exact}");
        }
    }

    #[test]
    fn dot_of_every_length_is_exact_on_small_integers() {
        for length in 0..70 {
            let a: Vec<f32> = (0..length).map(|i| (i % 7) as f32 - 3.0).collect();
            let b: Vec<f32> = (0..length).map(|i| (i % 5) as f32 - 2.0).collect();
            let exact: f32 = a.iter().zip(&b).map(|(x, y)| x * y).sum();
            assert_eq!(dot(&a, &b), exact);
        }
    }
}
