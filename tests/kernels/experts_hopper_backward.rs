//! Hopper's products of the way back by themselves, as `experts_hopper` has those of the way there.

use da_moe::DType;
use da_moe::cuda::{Emulated, abi};
use da_moe_emulator::Schedule;
use da_moe_harness::cases;
use da_moe_harness::kernels::module;
use da_moe_harness::product::{HiddenProduct, Product, Routing, Run, WeightProduct};
use proptest::prelude::*;

fn device(schedule: u64) -> Emulated {
    Emulated::new(module(), Schedule::from_seed(schedule))
}

/// `dx` of packed rows.
fn rows() -> Product {
    Product {
        dtype: DType::Bf16,
        routing: Routing::packed([70, 0, 3]),
        depth: 136,
        columns: 72,
        activation: abi::ACTIVATION_NONE,
        across: true,
        biased: false,
        padding: 0,
        hidden_size: 0,
        out_size: 2,
        multiprocessors: 2,
        seed: 1,
        way: Run::Usual,
    }
}

fn hidden() -> HiddenProduct {
    HiddenProduct {
        routing: Routing::found([70, 0, 3], 50),
        depth: 136,
        columns: 72,
        activation: abi::ACTIVATION_SWIGLU,
        weighted: true,
        padding: 0,
        multiprocessors: 2,
        seed: 1,
        way: Run::Usual,
    }
}

fn weight() -> WeightProduct {
    WeightProduct {
        routing: Routing::found([70, 0, 3], 50),
        found: 136,
        packed: 72,
        turned: false,
        padding: 0,
        out_size: 2,
        adds: false,
        multiprocessors: 2,
        seed: 1,
        way: Run::Usual,
    }
}

fn check_rows(product: &Product) {
    let results = product.run(&device(product.seed)).unwrap_or_else(|error| panic!("{error}\n{product:?}"));
    product.judge(&product.expected(), &results).unwrap_or_else(|wrong| panic!("{wrong}: {product:?}"));
}

fn check_hidden(product: &HiddenProduct) {
    let results = product.run(&device(product.seed)).unwrap_or_else(|error| panic!("{error}\n{product:?}"));
    product.judge(&product.expected(), &results).unwrap_or_else(|wrong| panic!("{wrong}: {product:?}"));
}

fn check_weight(product: &WeightProduct) {
    let results = product.run(&device(product.seed)).unwrap_or_else(|error| panic!("{error}\n{product:?}"));
    product.judge(&product.expected(), &results).unwrap_or_else(|wrong| panic!("{wrong}: {product:?}"));
}

/// Every kind of gradient, in its type or in f32, in place of what was there or added to it.
fn kinds() -> impl Iterator<Item = WeightProduct> {
    [(false, 2, false), (false, 4, true), (true, 2, true), (true, 4, false), (true, 4, true), (true, 2, false)]
        .into_iter()
        .map(|(turned, out_size, adds)| WeightProduct { turned, out_size, adds, ..weight() })
}

/// Rows around a warpgroup, a block, a unit and two units; of a weight's gradient, around its steps.
#[test]
fn rows_around_every_division() {
    for count in [1, 63, 64, 65, 128, 129, 192, 193, 255, 257, 513] {
        let routing = Routing::found([1, 0, count, 2], 40);
        check_rows(&Product { routing: Routing::packed([1, 0, count, 2]), columns: 8, depth: 64, ..rows() });
        check_hidden(&HiddenProduct { routing: routing.clone(), columns: 8, depth: 64, ..hidden() });
        for kind in kinds().skip(count % 6).take(2) {
            check_weight(&WeightProduct { routing: routing.clone(), found: 8, packed: 16, ..kind });
        }
    }
}

#[test]
fn columns_around_every_plane_and_unit() {
    for columns in [8, 64, 72, 136, 256, 264] {
        check_rows(&Product { columns, depth: 72, ..rows() });
        for activation in [abi::ACTIVATION_SWIGLU, abi::ACTIVATION_RELU] {
            check_hidden(&HiddenProduct { columns, depth: 72, activation, ..hidden() });
        }
        for kind in kinds() {
            check_weight(&WeightProduct { found: columns, packed: 24, ..kind.clone() });
            check_weight(&WeightProduct { found: 24, packed: columns, padding: 8, ..kind });
        }
    }
}

/// Around a step, and more steps than stages. Of weights' rows that run across the depth, the last are not whole steps.
#[test]
fn depths_around_every_step() {
    for depth in [8, 64, 72, 192, 264, 576] {
        check_rows(&Product { depth, routing: Routing::packed([65, 130]), columns: 16, ..rows() });
        check_hidden(&HiddenProduct { depth, routing: Routing::found([65, 130], 0), columns: 16, ..hidden() });
    }
}

#[test]
fn one_expert_has_everything_or_nothing() {
    for counts in [vec![0, 0, 0], vec![300], vec![0, 290, 0], vec![1; 40], vec![0, 1, 0, 129, 0, 0, 64, 0]] {
        let routing = Routing { counts: counts.clone(), tokens: 50, astray: 5 };
        check_rows(&Product { routing: Routing::packed(counts), depth: 64, columns: 40, ..rows() });
        check_hidden(&HiddenProduct { routing: routing.clone(), depth: 64, columns: 40, ..hidden() });
        for kind in kinds() {
            check_weight(&WeightProduct { routing: routing.clone(), found: 40, packed: 48, ..kind });
        }
    }
}

/// The bits are those of the unit, whichever cluster has it, in whatever order, and whether clocks are read.
#[test]
fn who_computes_a_unit_does_not_show() {
    let (counts, found) = ([300, 5, 0, 140], Routing::found([300, 5, 0, 140], 50));
    let products = Product { routing: Routing::packed(counts), columns: 328, depth: 72, padding: 8, ..rows() };
    let hiddens = HiddenProduct { routing: found.clone(), columns: 328, depth: 72, padding: 8, ..hidden() };
    let weights = WeightProduct { routing: found, found: 264, packed: 328, ..weight() };
    let bits = |multiprocessors, way, schedule| {
        let rows = Product { multiprocessors, way, ..products.clone() }.run(&device(schedule)).unwrap();
        let hidden = HiddenProduct { multiprocessors, way, ..hiddens.clone() }.run(&device(schedule)).unwrap();
        let natural = WeightProduct { multiprocessors, way, ..weights.clone() };
        let turned = WeightProduct { turned: true, adds: true, ..natural.clone() };
        (rows, hidden, [natural, turned].map(|of| of.run(&device(schedule)).unwrap()))
    };
    let once = bits(2, Run::Usual, 0);
    for (multiprocessors, way, schedule) in
        [(4, Run::Usual, 1), (6, Run::Usual, 2), (64, Run::Usual, 3), (4, Run::Clocked, 4)]
    {
        assert!(bits(multiprocessors, way, schedule) == once, "{multiprocessors} multiprocessors, {way:?}");
    }
}

/// What is multiplied for a weight's gradient: steps of 64 of an expert's rows, and nothing for one that has none.
#[test]
fn rows_that_are_not_there_are_not_multiplied() {
    let counts = vec![0, 1, 64, 65, 0, 200];
    let steps: usize = counts.iter().map(|count: &usize| count.div_ceil(64)).sum();
    let product = WeightProduct { routing: Routing::found(counts, 50), found: 128, packed: 256, ..weight() };
    let device = device(0);
    product.run(&device).unwrap();
    assert_eq!(device.work().multiply_adds as usize, steps * 64 * 128 * 256);
}

fn any_routing() -> impl Strategy<Value = Routing> {
    let count = prop_oneof![2 => 0usize..5, 2 => 0usize..200, 1 => 200usize..400];
    let counts = prop::collection::vec(count, 1..5);
    (counts, prop::sample::select(vec![0, 30, 300]), prop::sample::select(vec![0, 3, 7]))
        .prop_map(|(counts, tokens, astray)| Routing { counts, tokens, astray })
}

proptest! {
    #![proptest_config(cases(10))]

    #[test]
    fn any_gradient_agrees(
        (routing, depth, columns) in (any_routing(), 1usize..40, 1usize..48),
        activation in prop::sample::select(vec![
            abi::ACTIVATION_RELU,
            abi::ACTIVATION_SILU,
            abi::ACTIVATION_SWIGLU,
            abi::ACTIVATION_REGLU,
        ]),
        (turned, adds, weighted, is_f32) in any::<(bool, bool, bool, bool)>(),
        (padding, multiprocessors, seed) in (0usize..3, 1usize..9, 0u64..1 << 32),
    ) {
        let (depth, columns, padding) = (8 * depth, 8 * columns, 8 * padding);
        let out_size = if is_f32 { 4 } else { 2 };
        let of_rows = Routing::packed(routing.counts.clone());
        let wide = if columns >= 128 { out_size } else { 2 };
        check_rows(&Product {
            routing: of_rows, depth, columns, padding, multiprocessors, seed, out_size: wide, ..rows()
        });
        check_hidden(&HiddenProduct {
            routing: routing.clone(), depth, columns, activation, weighted, padding, multiprocessors, seed, ..hidden()
        });
        check_weight(&WeightProduct {
            routing, found: depth, packed: columns, turned, padding, out_size, adds, multiprocessors, seed, ..weight()
        });
    }
}
