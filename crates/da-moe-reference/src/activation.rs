//! SPEC §5: `a = act(h)`, and `a = act(gate) · up` with `h = [gate; up]` for the gated kinds; §6: their derivatives.

use da_moe_core::Activation;
use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// `a[F]` of `h[F or 2F]`.
pub fn activate(activation: Activation, h: &[f64]) -> Vec<f64> {
    if !activation.is_gated() {
        return h.iter().map(|&h| curve(activation, h).0).collect();
    }
    let (gate, up) = h.split_at(h.len() / 2);
    gate.iter().zip(up).map(|(&gate, up)| curve(activation, gate).0 * up).collect()
}

/// `dh` from `da`: `da ∘ act'(h)`; gated, `[da ∘ act'(gate) ∘ up; da ∘ act(gate)]`.
pub fn activate_backward(activation: Activation, h: &[f64], da: &[f64]) -> Vec<f64> {
    if !activation.is_gated() {
        return h.iter().zip(da).map(|(&h, da)| da * curve(activation, h).1).collect();
    }
    let (gate, up) = h.split_at(h.len() / 2);
    let d_gate = gate.iter().zip(up).zip(da).map(|((&gate, up), da)| da * curve(activation, gate).1 * up);
    let d_up = gate.iter().zip(da).map(|(&gate, da)| da * curve(activation, gate).0);
    d_gate.chain(d_up).collect()
}

/// The elementwise function and its derivative.
fn curve(activation: Activation, h: f64) -> (f64, f64) {
    match activation {
        // A comparison that is false for NaN lets it through, as arithmetic would.
        Activation::Relu | Activation::Reglu => (if h <= 0.0 { 0.0 } else { h }, if h > 0.0 { 1.0 } else { 0.0 }),
        Activation::Gelu | Activation::Geglu => {
            let normal = 0.5 * (1.0 + libm::erf(h * FRAC_1_SQRT_2));
            let density = (-0.5 * h * h).exp() / (2.0 * PI).sqrt();
            (h * normal, normal + h * density)
        }
        Activation::GeluTanh => {
            let slope = (2.0 / PI).sqrt();
            let tanh = (slope * (h + 0.044715 * h * h * h)).tanh();
            let inner = slope * (1.0 + 3.0 * 0.044715 * h * h);
            (0.5 * h * (1.0 + tanh), 0.5 * (1.0 + tanh) + 0.5 * h * (1.0 - tanh * tanh) * inner)
        }
        Activation::Silu | Activation::Swiglu => {
            let sigma = 1.0 / (1.0 + (-h).exp());
            (h * sigma, sigma * (1.0 + h * (1.0 - sigma)))
        }
    }
}
