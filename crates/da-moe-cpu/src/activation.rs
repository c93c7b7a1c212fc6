//! The activations of SPEC §5 on whole rows, and their derivatives.

use crate::simd::{normal, sigmoid};
use da_moe_core::{Activation, Storage};

/// `√(2/π)`, of GELU's tanh approximation.
const TANH_SCALE: f32 = 0.797_884_6;
const TANH_CUBIC: f32 = 0.044_715;

/// Value and derivative of an ungated activation.
type Curve = (f32, f32);

#[inline(always)]
fn relu(h: f32) -> Curve {
    // Written so that NaN passes through.
    (if h <= 0.0 { 0.0 } else { h }, if h > 0.0 { 1.0 } else { 0.0 })
}

#[inline(always)]
fn gelu(h: f32) -> Curve {
    let (distribution, density) = normal(h);
    (h * distribution, distribution + h * density)
}

#[inline(always)]
fn gelu_tanh(h: f32) -> Curve {
    // (1 + tanh u) / 2 = σ(2u), which is exactly 0 or 1 long before h³ could overflow in the slope.
    let c = h.clamp(-64.0, 64.0);
    let s = sigmoid(2.0 * TANH_SCALE * (c + TANH_CUBIC * c * c * c));
    let slope = 2.0 * TANH_SCALE * (1.0 + 3.0 * TANH_CUBIC * c * c);
    (h * s, s + c * s * (1.0 - s) * slope)
}

#[inline(always)]
fn silu(h: f32) -> Curve {
    let s = sigmoid(h);
    (h * s, s + h * s * (1.0 - s))
}

/// Calls `$body` with `$curve` naming the curve of `$activation`'s gate.
macro_rules! with_curve {
    ($activation:expr, $curve:ident => $body:expr) => {
        match $activation {
            Activation::Relu | Activation::Reglu => {
                let $curve = relu;
                $body
            }
            Activation::Gelu | Activation::Geglu => {
                let $curve = gelu;
                $body
            }
            Activation::GeluTanh => {
                let $curve = gelu_tanh;
                $body
            }
            Activation::Silu | Activation::Swiglu => {
                let $curve = silu;
                $body
            }
        }
    };
}

/// `a = act(h)` for one row: `h` holds `F` values, or `2F` with the gate's first.
#[inline(always)]
pub(crate) fn forward<H: Storage>(activation: Activation, h: &[H], a: &mut [f32]) {
    with_curve!(activation, curve => {
        if activation.is_gated() {
            let (gate, up) = h.split_at(a.len());
            for ((a, gate), up) in a.iter_mut().zip(gate).zip(up) {
                *a = curve(gate.to_f32()).0 * up.to_f32();
            }
        } else {
            a.iter_mut().zip(h).for_each(|(a, h)| *a = curve(h.to_f32()).0);
        }
    });
}

/// One row of SPEC §6: given `da = W_outᵀ dy`, forms `dh = (g·da) ∘ act'`;
/// `a` receives the activation itself, computed again from `h`.
#[inline(always)]
pub(crate) fn backward(activation: Activation, h: &[f32], g: f32, da: &[f32], a: &mut [f32], dh: &mut [f32]) {
    with_curve!(activation, curve => {
        if activation.is_gated() {
            let (gate, up) = h.split_at(a.len());
            let (d_gate, d_up) = dh.split_at_mut(a.len());
            for i in 0..a.len() {
                let (value, slope) = curve(gate[i]);
                a[i] = value * up[i];
                d_gate[i] = g * da[i] * slope * up[i];
                d_up[i] = g * da[i] * value;
            }
        } else {
            for i in 0..a.len() {
                let (value, slope) = curve(h[i]);
                a[i] = value;
                dh[i] = g * da[i] * slope;
            }
        }
    });
}
