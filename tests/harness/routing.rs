//! A finished routing from the caller, in both layouts.

use super::case::Case;
use super::data::Numbers;
use da_moe::{Buffer, Error, Routing, TensorRef};

/// The caller's experts and weights.
#[derive(Clone)]
pub enum RoutingData {
    Padded { slots: usize, experts: Buffer, weights: Buffer },
    Csr { offsets: Buffer, experts: Buffer, weights: Buffer },
}

impl RoutingData {
    /// Some distinct experts for every token, with random weights.
    pub fn new(case: &Case, n: &mut Numbers) -> Option<Self> {
        let (tokens, candidates, slots) = (case.tokens(), case.config.candidates(), case.config.k_max());
        let mut chosen: Vec<Vec<(i32, f32)>> = Vec::new();
        for _ in 0..tokens {
            let (first, count) = (n.below(candidates), n.below(slots + 1));
            chosen.push((0..count).map(|i| (((first + i) % candidates) as i32, n.unit())).collect());
        }
        match case.routing {
            0 => None,
            1 => {
                let mut experts = vec![candidates as i32; tokens * slots];
                let mut weights = vec![f32::NAN; tokens * slots];
                for (t, row) in chosen.iter().enumerate() {
                    for (slot, (expert, weight)) in row.iter().enumerate() {
                        // From the back, so that sentinels come first.
                        let place = (t + 1) * slots - 1 - slot;
                        (experts[place], weights[place]) = (*expert, *weight);
                    }
                }
                Some(RoutingData::Padded { slots, experts: experts.into(), weights: weights.into() })
            }
            _ => {
                let mut offsets = vec![0];
                chosen.iter().for_each(|row| offsets.push(offsets[offsets.len() - 1] + row.len() as i32));
                let entries = chosen.concat();
                Some(RoutingData::Csr {
                    offsets: offsets.into(),
                    experts: entries.iter().map(|(e, _)| *e).collect::<Vec<i32>>().into(),
                    weights: entries.iter().map(|(_, w)| *w).collect::<Vec<f32>>().into(),
                })
            }
        }
    }

    pub fn entries(&self) -> usize {
        match self {
            RoutingData::Padded { weights, .. } | RoutingData::Csr { weights, .. } => weights.len(),
        }
    }

    pub fn view(&self, tokens: usize) -> Result<Routing<'_>, Error> {
        Ok(match self {
            RoutingData::Padded { slots, experts, weights } => Routing::Padded {
                experts: TensorRef::new(experts, [tokens, *slots])?,
                weights: TensorRef::new(weights, [tokens, *slots])?,
            },
            RoutingData::Csr { offsets, experts, weights } => Routing::Csr {
                offsets: TensorRef::new(offsets, [tokens + 1])?,
                experts: TensorRef::new(experts, [experts.len()])?,
                weights: TensorRef::new(weights, [weights.len()])?,
            },
        })
    }
}
