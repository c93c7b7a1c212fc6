//! The harness notices: every planted bug is rejected on a fixed set of calls, and the backend without one is accepted.

use da_moe::{Activation, Buffer, DType, ExpertsPerToken, LayerConfig, NormalizeWeights, NullExpert, Policy, Scoring};
use da_moe_harness::bits::difference;
use da_moe_harness::case::{Case, small_config};
use da_moe_harness::data::Data;
use da_moe_harness::faulty::{Fault, Faulty};
use da_moe_harness::{Subject, Through, judge};

/// Calls that between them use every part of the layer.
fn calls() -> Vec<(Case, Data)> {
    let mut full = LayerConfig { shared_intermediate_size: 7, ..small_config() };
    (full.importance.causal, full.importance.allow_future) = (true, true);
    full.router.routed_scaling = 2.5;
    let full = Case { biases: true, router_bias: true, masked_every: 4, padding: 3, ..Case::plain(full) };

    let mut dropping = LayerConfig { num_null_experts: 2, null_expert: NullExpert::Constant, ..small_config() };
    dropping.router.capacity_factor = Some(0.75);
    dropping.hidden_act = Activation::GeluTanh;
    let dropping = Case { skew: 3.0, lengths: vec![30, 12], ..Case::plain(dropping) };

    let copying = LayerConfig { num_null_experts: 3, null_expert: NullExpert::Copy, ..small_config() };
    let copying = Case { lengths: vec![20], ..Case::plain(copying) };

    let tied = Case { lengths: vec![6], ..Case::plain(small_config()) };

    let mut empty = small_config();
    empty.experts_per_token = ExpertsPerToken::new(Policy::Fixed { k: 1 });
    let empty = Case { skew: 60.0, ..Case::plain(empty) };

    // One expert, whose weight is 1 although its score has no f32.
    let mut far = LayerConfig::da_moe(12, 10, 1, 1);
    (far.router.scoring, far.router.normalize) = (Scoring::Sigmoid, NormalizeWeights::Selected);
    let far = Case { skew: -300.0, ..Case::plain(far) };

    let padded = Case { routing: 1, ..Case::plain(small_config()) };
    let compressed = Case { routing: 2, ..Case::plain(small_config()) };

    let with_data = |case: Case| {
        let data = Data::new(&case);
        (case, data)
    };
    let mut calls: Vec<_> = [full, dropping, copying, empty, far, padded, compressed].map(with_data).into();
    let mut equal_logits = Data::new(&tied);
    equal_logits.router = Buffer::zeros(DType::F32, equal_logits.router.len());
    calls.push((tied, equal_logits));
    calls
}

/// Whether the harness accepts a backend on every call: the oracle agrees, and a second run gives the same bits.
fn accepts(fault: Option<Fault>, calls: &[(Case, Data)]) -> bool {
    let subject = Through(Faulty::new(fault));
    calls.iter().all(|(case, data)| {
        let (first, second) = (subject.run(data, case).unwrap(), subject.run(data, case).unwrap());
        judge(data, &first).is_ok() && difference(&first, &second).is_none()
    })
}

#[test]
fn the_backend_without_a_bug_is_accepted() {
    assert!(accepts(None, &calls()));
}

#[test]
fn every_planted_bug_is_rejected() {
    let calls = calls();
    let missed: Vec<&Fault> = Fault::ALL.iter().filter(|fault| accepts(Some(**fault), &calls)).collect();
    assert!(missed.is_empty(), "accepted although something is wrong: {missed:?}");
    assert!(Fault::ALL.len() >= 40);
}
