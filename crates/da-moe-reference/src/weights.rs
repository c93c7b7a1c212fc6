//! SPEC §3: the weights `g = routed_scaling · s / divisor` of the selected experts; §4: their slot order.

use crate::scores::{log_score_slope, shares_backward};
use crate::select::descending;
use crate::{Slot, scores, shares};
use da_moe_core::{NormalizeWeights, RouterConfig, Scoring};

/// Weights of the `selected` experts, in their order, from the token's logits. `ranked` are its first `k_max` candidates.
pub fn weights(router: &RouterConfig, z: &[f64], selected: &[usize], ranked: &[usize]) -> Vec<f64> {
    let c = router.routed_scaling;
    let Some(members) = divisor_members(router, selected, ranked) else {
        let s = scores(router.scoring, z);
        return selected.iter().map(|&e| c * s[e]).collect();
    };
    let shares = shares(router.scoring, z, members);
    // Those selected are the first of those ranked, or in slot order: each is looked up.
    let share = |expert| members.iter().position(|&e| e == expert).map_or(0.0, |at| shares[at]);
    selected.iter().map(|&e| c * share(e)).collect()
}

/// Whose scores the divisor sums; `None` where weights are not divided.
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

/// Gradient of [`weights`] in the logits: `(∂g/∂z)ᵀ dg`. Without a divisor `ds_e = routed_scaling · dg_e`, and softmax gives
/// `s (ds − ⟨ds, s⟩)`, sigmoid `s (1 − s) ds`, relu `ds` where `z > 0`.
pub(crate) fn weights_backward(
    router: &RouterConfig,
    z: &[f64],
    selected: &[usize],
    ranked: &[usize],
    dg: &[f64],
) -> Vec<f64> {
    let mut ds = vec![0.0; z.len()];
    selected.iter().zip(dg).for_each(|(&e, dg)| ds[e] = router.routed_scaling * dg);
    if let Some(members) = divisor_members(router, selected, ranked) {
        let d_share: Vec<f64> = members.iter().map(|&e| ds[e]).collect();
        return shares_backward(router.scoring, z, members, &d_share);
    }
    let s = scores(router.scoring, z);
    match router.scoring {
        Scoring::Softmax => shares_backward(router.scoring, z, &(0..z.len()).collect::<Vec<_>>(), &ds),
        Scoring::Sigmoid => (0..z.len()).map(|e| s[e] * log_score_slope(router.scoring, z[e]) * ds[e]).collect(),
        Scoring::Relu => (0..z.len()).map(|e| if z[e] > 0.0 { ds[e] } else { 0.0 }).collect(),
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
