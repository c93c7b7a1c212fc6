//! The grouped product and the router product on the kernels: where tiles, steps and warps end, in every type, activation
//! and alignment, with every kind of skew.

use da_moe::cuda::launch::experts::Factors;
use da_moe::cuda::{Device, Staged};
use da_moe::{Activation, DType, ExpertsPerToken, LayerConfig, Normalize, NullExpert, Policy, Source};
use da_moe_harness::case::Case;
use da_moe_harness::data::Data;
use da_moe_harness::kernels::{of_each_architecture, on_each, subjects};
use da_moe_harness::{Subject, Through, assert_agrees};

/// Runs a case on the kernels wherever they run, in every storage type.
fn agrees(case: &Case) {
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        let case = Case { dtype, ..case.clone() };
        let subjects = if dtype == DType::F32 { subjects() } else { of_each_architecture() };
        subjects.iter().for_each(|subject| assert_agrees(&**subject, &case));
    }
}

fn config(hidden: usize, width: usize, experts: usize, act: Activation) -> LayerConfig {
    let mut config = LayerConfig { hidden_act: act, ..LayerConfig::da_moe(hidden, width, experts, 2) };
    config.importance.source = Source::External;
    config.importance.normalize = Normalize::None;
    config.experts_per_token = ExpertsPerToken::between(Policy::Proportional { scale: Some(2.0) }, 0, 2.min(experts));
    config
}

#[test]
fn depths_and_widths_around_every_step() {
    for (hidden, width) in [(1, 1), (7, 9), (8, 16), (16, 64), (31, 65), (32, 128), (33, 63), (64, 24), (136, 40)] {
        for act in [Activation::Swiglu, Activation::Gelu] {
            agrees(&Case { lengths: vec![5, 4], biases: true, ..Case::plain(config(hidden, width, 3, act)) });
        }
    }
}

#[test]
fn rows_around_every_tile_and_fragment() {
    // One expert has all rows: the numbers of rows are those of tokens.
    for tokens in [1, 15, 16, 17, 64, 127, 128, 129, 145] {
        let mut one = config(16, 8, 1, Activation::Reglu);
        one.experts_per_token = ExpertsPerToken::new(Policy::Fixed { k: 1 });
        agrees(&Case { lengths: vec![tokens], ..Case::plain(one) });
    }
}

#[test]
fn more_experts_than_rows_and_all_rows_on_one() {
    for (experts, skew) in [(40, 0.0), (70, 50.0), (512, 1.0)] {
        for act in [Activation::Silu, Activation::Geglu] {
            let case = Case { lengths: vec![21], skew, biases: true, ..Case::plain(config(8, 8, experts, act)) };
            agrees(&case);
        }
    }
}

#[test]
fn several_columns_of_tiles_with_a_shared_expert() {
    let mut wide = config(264, 136, 3, Activation::Swiglu);
    wide.shared_intermediate_size = 72;
    (wide.num_null_experts, wide.null_expert) = (1, NullExpert::Copy);
    agrees(&Case { lengths: vec![37], masked_every: 5, ..Case::plain(wide) });
}

/// Tiles with all of their columns are multiplied by code of their own for every number of rows that a warp has.
#[test]
fn whole_columns_of_every_height() {
    for tokens in [16, 48, 72, 90, 140] {
        let mut one = config(256, 128, 1, Activation::Swiglu);
        one.experts_per_token = ExpertsPerToken::new(Policy::Fixed { k: 1 });
        agrees(&Case { lengths: vec![tokens], ..Case::plain(one) });
    }
}

#[test]
fn strided_rows_and_capacity() {
    for padding in [3, 8] {
        let mut dropping = config(24, 40, 4, Activation::Relu);
        dropping.router.capacity_factor = Some(0.5);
        agrees(&Case { lengths: vec![50], padding, skew: 1.0, ..Case::plain(dropping) });
    }
}

#[test]
fn a_router_in_f32_beside_rows_of_any_type() {
    for (hidden, experts) in [(1, 3), (37, 70), (64, 5)] {
        let case = Case { lengths: vec![66], padding: 3, ..Case::plain(config(hidden, 8, experts, Activation::Silu)) };
        agrees(&Case { router_f32: true, ..case });
    }
}

#[test]
fn tf32_keeps_three_digits() {
    on_each(check_tf32, check_tf32);
}

fn check_tf32<D: Device>(kernels: Staged<D>) {
    for (hidden, width) in [(48, 40), (35, 17)] {
        let mut plain = config(hidden, width, 3, Activation::Swiglu);
        plain.experts_per_token = ExpertsPerToken::new(Policy::Fixed { k: 2 });
        let case = Case { lengths: vec![40], ..Case::plain(plain) };
        let data = Data::new(&case);
        let exact = Through(kernels.clone()).run(&data, &case).unwrap();
        let fast = Through(Staged::new(kernels.kernels().clone().factors(Factors::Tf32))).run(&data, &case).unwrap();
        let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        let error = norm(&mut exact.y.iter().zip(&fast.y).map(|(a, b)| a - b)) / norm(&mut exact.y.iter().copied());
        assert!(error > 1e-6 && error < 1e-3, "{error}: neither f32 nor wrong");
        assert_eq!(exact.logits, fast.logits, "the router is f32 always");
    }
}
