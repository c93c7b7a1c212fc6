//! SPEC §2 to §4 as invariants of the numbers themselves, without the oracle's plan.

use da_moe::{DType, ExpertsPerToken, Keep, LayerConfig, Policy};
use da_moe_harness::case::{Case, case};
use da_moe_harness::data::Data;
use da_moe_harness::routing::RoutingData;
use da_moe_harness::subjects;
use da_moe_reference::check::Outcome;
use proptest::prelude::*;
use std::cmp::Ordering;

/// Descending weight, ties to the lower expert, NaN last.
fn before(a: (f64, i64), b: (f64, i64)) -> bool {
    match (a.0.is_nan(), b.0.is_nan()) {
        (false, true) => true,
        (true, false) => false,
        (true, true) => a.1 < b.1,
        (false, false) => b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal).then(a.1.cmp(&b.1)) == Ordering::Less,
    }
}

/// `k_t` experts in slot order, then nothing.
fn check_slots(config: &LayerConfig, outcome: &Outcome, mask: &[bool], routed_outside: bool) {
    let (slots, candidates) = (config.k_max(), config.candidates() as i64);
    for (t, &k) in outcome.k.iter().enumerate() {
        let k = usize::try_from(k).unwrap();
        if !mask[t] {
            assert_eq!(k, 0, "a masked token gets no expert");
        } else if !routed_outside {
            assert!((config.k_min()..=slots).contains(&k), "k in [k_min, k_max]");
        }
        let (experts, weights) = (&outcome.experts[t * slots..][..slots], &outcome.weights[t * slots..][..slots]);
        assert!(experts[..k].iter().all(|e| (0..candidates).contains(e)));
        assert!(experts[k..].iter().all(|e| *e == -1) && weights[k..].iter().all(|w| *w == 0.0));
        let pairs: Vec<(f64, i64)> = weights[..k].iter().copied().zip(experts[..k].iter().copied()).collect();
        assert!(pairs.windows(2).all(|pair| before(pair[0], pair[1])), "slot order: {pairs:?}");
    }
}

/// Counts, offsets and both directions of the permutation agree with each other and with the slots.
fn check_plan(config: &LayerConfig, outcome: &Outcome) {
    let (slots, experts) = (config.k_max(), config.num_experts);
    let rows = *outcome.offsets.last().unwrap() as usize;
    assert_eq!(outcome.offsets[0], 0);
    for e in 0..experts {
        assert_eq!(outcome.offsets[e + 1] - outcome.offsets[e], outcome.counts[e], "offsets are sums of counts");
    }
    assert_eq!(outcome.counts[experts..], outcome.load[experts..], "null experts have no capacity");
    let selected: i64 = outcome.k.iter().sum();
    assert_eq!(outcome.load.iter().sum::<i64>(), selected, "the load counts every selection");
    let dropped: i64 = (0..experts).map(|e| outcome.load[e] - outcome.counts[e]).sum();
    assert_eq!(outcome.dropped, [dropped], "every selection without a row was counted as dropped");

    let mut seen = vec![false; rows];
    for (at, &row) in outcome.token_row.iter().enumerate() {
        let (token, expert) = (at / slots, outcome.experts[at]);
        let Ok(row) = usize::try_from(row) else {
            assert_eq!(row, -1);
            continue;
        };
        assert!((0..experts as i64).contains(&expert), "only routed experts have rows");
        let e = expert as usize;
        assert!((outcome.offsets[e]..outcome.offsets[e + 1]).contains(&(row as i64)), "the row is its expert's");
        assert_eq!(outcome.row_token[row], token as i64, "row_token undoes token_row");
        assert_eq!(outcome.row_weight[row].to_bits(), outcome.weights[at].to_bits(), "the row's weight is the slot's");
        assert!(!std::mem::replace(&mut seen[row], true), "a row belongs to one slot");
    }
    assert!(seen.iter().all(|seen| *seen), "every row belongs to a slot");
    for e in 0..experts {
        let segment = &outcome.row_token[outcome.offsets[e] as usize..outcome.offsets[e + 1] as usize];
        assert!(segment.windows(2).all(|pair| pair[0] < pair[1]), "ascending tokens within an expert");
    }
}

/// No expert keeps more than its capacity, and none drops below it.
fn check_capacity(config: &LayerConfig, outcome: &Outcome) {
    let experts = config.num_experts;
    let selected: i64 = outcome.k.iter().sum();
    let limit = match config.router.capacity_factor {
        Some(factor) => (factor * selected as f64 / experts as f64).ceil() as i64,
        None => i64::MAX,
    };
    for e in 0..experts {
        assert_eq!(outcome.counts[e], outcome.load[e].min(limit), "expert {e} keeps what fits, no more and no less");
    }
}

proptest! {
    #![proptest_config(da_moe_harness::cases(300))]

    #[test]
    fn every_plan_is_a_stable_counting_sort(case in case()) {
        let case = Case { keep: Keep::Nothing, ..case };
        let data = Data::new(&case);
        let mask: Vec<bool> = match &data.mask {
            Some(mask) => mask.as_slice::<u8>().unwrap().iter().map(|m| *m != 0).collect(),
            None => vec![true; data.tokens],
        };
        for subject in subjects() {
            let outcome = subject.run(&data, &case).unwrap();
            check_slots(&case.config, &outcome, &mask, data.routing.is_some());
            check_plan(&case.config, &outcome);
            check_capacity(&case.config, &outcome);
        }
    }

    #[test]
    fn a_budget_is_held_exactly(
        case in case(),
        min in 0usize..3,
        above in 0usize..5,
        share in 0.0f64..=1.0,
        dtype in prop::sample::select(vec![DType::F32, DType::Bf16]),
    ) {
        let mut config = case.config.clone();
        (config.router.n_group, config.router.topk_group) = (1, 1);
        let max = (min + above).min(config.candidates());
        let min = min.min(max);
        // Any mean that fits.
        let mean_k = min as f64 + share * (max - min) as f64;
        config.experts_per_token = ExpertsPerToken::between(Policy::Budget { mean_k }, min, max);
        let case = Case { config, dtype, routing: 0, keep: Keep::Nothing, ..case };
        let data = Data::new(&case);
        let tokens = match &data.mask {
            Some(mask) => mask.as_slice::<u8>().unwrap().iter().filter(|m| **m != 0).count(),
            None => data.tokens,
        };
        for subject in subjects() {
            let outcome = subject.run(&data, &case).unwrap();
            let total: i64 = outcome.k.iter().sum();
            prop_assert_eq!(total, (mean_k * tokens as f64).round() as i64, "{}", subject.name());
        }
    }

    #[test]
    fn both_layouts_of_a_given_routing_are_the_same_routing(case in case()) {
        let padded = Case { routing: 1, ..case.clone() };
        let compressed = Case { routing: 2, ..case };
        let (of_padded, of_compressed) = (Data::new(&padded), Data::new(&compressed));
        for subject in subjects() {
            let mut a = subject.run(&of_padded, &padded).unwrap();
            let mut b = subject.run(&of_compressed, &compressed).unwrap();
            // What is in the caller's layout is compared entry by entry, the rest as it is.
            let (da, db) = (take_routing(&mut a), take_routing(&mut b));
            prop_assert_eq!(entries(of_padded.routing.as_ref().unwrap(), &da), entries(of_compressed.routing.as_ref().unwrap(), &db));
            prop_assert_eq!(da_moe_harness::bits::difference(&a, &b), None, "{}", subject.name());
        }
    }
}

/// Takes out the gradient of the routing's weights and the positions in the caller's layout.
fn take_routing(outcome: &mut Outcome) -> Vec<f64> {
    outcome.ranked.clear();
    // Nothing asks for importance or logits under a given routing.
    (outcome.importance, outcome.logits, outcome.losses) = Default::default();
    outcome.gradients.as_mut().unwrap().routing.take().unwrap()
}

/// (expert, gradient bits) of every named entry, token by token in the order that the routing was drawn.
fn entries(routing: &RoutingData, gradient: &[f64]) -> Vec<(i32, u64)> {
    let ids = |experts: &da_moe::Buffer| experts.as_slice::<i32>().unwrap().to_vec();
    match routing {
        RoutingData::Csr { experts, .. } => {
            ids(experts).into_iter().zip(gradient.iter().map(|d| d.to_bits())).collect()
        }
        RoutingData::Padded { slots, experts, weights } => {
            // Padded rows are filled from the back; "none" carries a NaN weight and gradient 0.
            let all: Vec<((i32, u64), bool)> = ids(experts)
                .into_iter()
                .zip(gradient.iter().map(|d| d.to_bits()))
                .zip(weights.to_f32().into_iter().map(|w| !w.is_nan()))
                .collect();
            assert!(all.iter().all(|((_, d), named)| *named || *d == 0), "no gradient where no expert was named");
            let row = |row: &[((i32, u64), bool)]| {
                row.iter().rev().filter(|(_, named)| *named).map(|(entry, _)| *entry).collect::<Vec<_>>()
            };
            all.chunks((*slots).max(1)).flat_map(row).collect()
        }
    }
}
