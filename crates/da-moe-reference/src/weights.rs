//! SPEC §3: the weights `g = routed_scaling · s / divisor` of the selected experts; §4: their slot order.

use crate::Slot;
use crate::select::descending;
use da_moe_core::{NormalizeWeights, RouterConfig};

/// Weights of the `selected` experts, in their order. `ranked` are the token's first `k_max` candidates.
pub fn weights(router: &RouterConfig, s: &[f64], selected: &[usize], ranked: &[usize]) -> Vec<f64> {
    let weight = |&e: &usize| match divisor(router, s, selected, ranked) {
        None => router.routed_scaling * s[e],
        Some(0.0) => 0.0,
        Some(sum) => router.routed_scaling * s[e] / sum,
    };
    selected.iter().map(weight).collect()
}

/// What the weights are divided by; `None` for nothing.
pub(crate) fn divisor(router: &RouterConfig, s: &[f64], selected: &[usize], ranked: &[usize]) -> Option<f64> {
    divisor_members(router, selected, ranked).map(|members| members.iter().map(|&e| s[e]).sum())
}

/// Whose scores the divisor sums.
pub(crate) fn divisor_members<'a>(
    router: &RouterConfig,
    selected: &'a [usize],
    ranked: &'a [usize],
) -> Option<&'a [usize]> {
    match router.normalize {
        NormalizeWeights::None => None,
        NormalizeWeights::Selected => Some(selected),
        NormalizeWeights::Candidates => Some(ranked),
    }
}

/// Gradient of [`weights`]: adds `(∂g/∂s)ᵀ dg` to `ds`. With `g_i = c s_i / S`, `∂g_i/∂s_j = c (δ_ij / S − s_i / S²)`
/// for every `j` that `S` sums; a divisor of 0 carries no gradient.
pub(crate) fn weights_backward(
    router: &RouterConfig,
    s: &[f64],
    selected: &[usize],
    ranked: &[usize],
    dg: &[f64],
    ds: &mut [f64],
) {
    let sum = divisor(router, s, selected, ranked).unwrap_or(1.0);
    if sum == 0.0 {
        return;
    }
    let c = router.routed_scaling;
    let through_sum: f64 = selected.iter().zip(dg).map(|(&e, dg)| dg * c * s[e] / (sum * sum)).sum();
    for (&e, dg) in selected.iter().zip(dg) {
        ds[e] += dg * c / sum;
    }
    for &e in divisor_members(router, selected, ranked).unwrap_or(&[]) {
        ds[e] -= through_sum;
    }
}

/// Where each given slot goes: descending weight, ties to the lower expert, NaN last (SPEC §4).
pub fn slot_order(slots: &[Slot]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..slots.len()).collect();
    let by = |&a: &usize, &b: &usize| {
        descending(slots[a].weight, slots[b].weight).then(slots[a].expert.cmp(&slots[b].expert))
    };
    order.sort_by(by);
    order
}
