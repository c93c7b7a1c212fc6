//! SPEC §4: the dispatch plan, a stable counting sort of (token, slot) by expert; §3: capacity,
//! `ceil(capacity_factor · R / E)` rows per routed expert.

use crate::select::descending;
use da_moe_core::{Drop, LayerConfig};

/// One of a token's experts with its weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slot {
    /// Expert id; `E` and above are null experts.
    pub expert: usize,
    /// `g`.
    pub weight: f64,
}

/// Which rows go through which expert.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// `[E + Z]`: rows of each routed expert after drops, selections of each null expert.
    pub counts: Vec<usize>,
    /// `[E + 1]`: first row of each expert.
    pub offsets: Vec<usize>,
    /// `[R]`: token of each row.
    pub row_token: Vec<usize>,
    /// `[R]`: weight of each row.
    pub row_weight: Vec<f64>,
    /// Per token and slot its row; none when dropped or a null expert.
    pub token_row: Vec<Vec<Option<usize>>>,
    /// Selections dropped by capacity.
    pub dropped: usize,
}

impl Plan {
    /// The expert of a row.
    pub fn row_expert(&self, row: usize) -> usize {
        self.offsets.iter().skip(1).take_while(|&&end| end <= row).count()
    }
}

/// Per token and slot, whether capacity drops it.
pub fn capacity_drops(config: &LayerConfig, selection: &[Vec<Slot>]) -> Vec<Vec<bool>> {
    let mut drops: Vec<Vec<bool>> = selection.iter().map(|slots| vec![false; slots.len()]).collect();
    let Some(factor) = config.router.capacity_factor else { return drops };
    let selections: usize = selection.iter().map(Vec::len).sum();
    let capacity = (factor * selections as f64 / config.num_experts as f64).ceil() as usize;
    for expert in 0..config.num_experts {
        let mut asking = rows_of(selection, expert);
        if config.router.drop == Drop::Weight {
            // Stable: equal weights stay in token order.
            asking.sort_by(|&(t, i), &(u, j)| descending(selection[t][i].weight, selection[u][j].weight));
        }
        for &(t, slot) in asking.iter().skip(capacity) {
            drops[t][slot] = true;
        }
    }
    drops
}

/// The plan of a selection in which some slots are dropped.
pub fn plan(config: &LayerConfig, selection: &[Vec<Slot>], drops: &[Vec<bool>]) -> Plan {
    let mut plan = Plan {
        counts: vec![0; config.candidates()],
        offsets: vec![0],
        row_token: Vec::new(),
        row_weight: Vec::new(),
        token_row: selection.iter().map(|slots| vec![None; slots.len()]).collect(),
        dropped: drops.iter().flatten().filter(|&&dropped| dropped).count(),
    };
    for expert in 0..config.candidates() {
        for (t, slot) in rows_of(selection, expert).into_iter().filter(|&(t, slot)| !drops[t][slot]) {
            plan.counts[expert] += 1;
            if expert < config.num_experts {
                plan.token_row[t][slot] = Some(plan.row_token.len());
                plan.row_token.push(t);
                plan.row_weight.push(selection[t][slot].weight);
            }
        }
        if expert < config.num_experts {
            plan.offsets.push(plan.row_token.len());
        }
    }
    plan
}

/// (token, slot) of every selection of `expert`, in order.
fn rows_of(selection: &[Vec<Slot>], expert: usize) -> Vec<(usize, usize)> {
    let slots = |t: usize| selection[t].iter().enumerate().filter(move |(_, s)| s.expert == expert);
    (0..selection.len()).flat_map(|t| slots(t).map(move |(slot, _)| (t, slot))).collect()
}
