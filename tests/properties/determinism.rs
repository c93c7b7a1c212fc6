//! SPEC §8: the same call twice gives the same bits, whoever computes it and whatever was computed before.

use da_moe::{Cpu, DType, ExpertsPerToken, Keep, Layer, LayerConfig, NullExpert, Policy};
use da_moe_harness::bits::{assert_same_bits, difference};
use da_moe_harness::case::{Case, case, small_config};
use da_moe_harness::data::Data;
use da_moe_harness::{Subject, Through, call, subjects};
use proptest::prelude::*;

/// Calls that cross the boundaries of every block of work, with everything that sums over tokens.
fn large() -> Vec<Case> {
    let mut full = LayerConfig::da_moe(33, 17, 3, 3);
    full.shared_intermediate_size = 5;
    let full = Case { lengths: vec![1, 450, 249], skew: 2.0, biases: true, ..Case::plain(full) };
    let mut dropping = LayerConfig::da_moe(20, 140, 9, 4);
    dropping.num_null_experts = 3;
    dropping.null_expert = NullExpert::Constant;
    dropping.router.capacity_factor = Some(0.8);
    dropping.experts_per_token = ExpertsPerToken::between(Policy::Budget { mean_k: 2.4 }, 0, 4);
    let dropping = Case { lengths: vec![300, 0, 211], masked_every: 6, ..Case::plain(dropping) };
    let wide = Case { lengths: vec![40], ..Case::plain(LayerConfig::da_moe(530, 300, 2, 2)) };
    [full, dropping, wide]
        .into_iter()
        .flat_map(|case| [DType::F32, DType::Bf16, DType::F16].map(|dtype| Case { dtype, ..case.clone() }))
        .collect()
}

proptest! {
    #![proptest_config(da_moe_harness::cases(100))]

    #[test]
    fn the_same_call_twice_gives_the_same_bits(case in case()) {
        let data = Data::new(&case);
        for subject in subjects() {
            let (first, second) = (subject.run(&data, &case).unwrap(), subject.run(&data, &case).unwrap());
            prop_assert_eq!(difference(&first, &second), None, "{}", subject.name());
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let backends = [1, 2, 3, 7].map(|threads| Cpu::with_threads(threads).unwrap());
    for case in large() {
        let data = Data::new(&case);
        let expected = Through(Cpu::new()).run(&data, &case).unwrap();
        for backend in &backends {
            let found = Through(backend.clone()).run(&data, &case).unwrap();
            assert_same_bits(&format!("{} threads, {}", backend.threads(), case.dtype), &expected, &found);
        }
    }
}

#[test]
fn threads_may_share_a_layer() {
    for case in large().into_iter().step_by(2) {
        let data = Data::new(&case);
        let layer = Layer::new(Cpu::new(), case.config.clone()).unwrap();
        let run = || {
            let mut step = layer.step(data.tokens, data.dtype, case.keep).unwrap();
            call(&layer, &data, &mut layer.state().unwrap(), &mut step).unwrap()
        };
        let expected = run();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
            for thread in threads {
                assert_same_bits("four threads, one layer", &expected, &thread.join().unwrap());
            }
        });
    }
}

/// In calls this large; `hidden.rs` has small ones, on everything.
#[test]
fn recomputed_hidden_rows_are_the_kept_ones() {
    for case in large() {
        let data = Data::new(&case);
        let with = |keep| Through(Cpu::new()).run(&data, &Case { keep, ..case.clone() }).unwrap();
        assert_same_bits("kept against recomputed", &with(Keep::Hidden), &with(Keep::Recompute));
    }
}

#[test]
fn a_step_remembers_nothing_of_the_call_before() {
    for keep in [Keep::Hidden, Keep::Recompute] {
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            let mut config = LayerConfig { shared_intermediate_size: 6, num_null_experts: 2, ..small_config() };
            config.router.capacity_factor = Some(1.0);
            let layer = Layer::new(Cpu::new(), config.clone()).unwrap();
            let mut used = layer.step(200, dtype, keep).unwrap();
            for (seed, lengths) in [vec![200], vec![3, 20], vec![], vec![1], vec![90, 0, 70]].into_iter().enumerate() {
                let case = Case { dtype, keep, seed: seed as u64, lengths, ..Case::plain(config.clone()) };
                let data = Data::new(&case);
                let mut fresh = layer.step(data.tokens, dtype, keep).unwrap();
                let expected = call(&layer, &data, &mut layer.state().unwrap(), &mut fresh).unwrap();
                let found = call(&layer, &data, &mut layer.state().unwrap(), &mut used).unwrap();
                assert_same_bits("a fresh step against a used one", &expected, &found);
            }
        }
    }
}
