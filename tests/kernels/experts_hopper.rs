//! Hopper's products by themselves, on a device: where units, blocks, warpgroups, planes and the ring of stages end; what is read
//! that must not matter, and what is left alone.

use super::schedule::random_counts;
use da_moe::DType;
use da_moe::cuda::{Emulated, abi};
use da_moe_emulator::Schedule;
use da_moe_harness::cases;
use da_moe_harness::kernels::module;
use da_moe_harness::product::{Product, Routing, Run};
use proptest::prelude::*;

/// `h` and the output under one schedule.
fn run(product: &Product, schedule: u64) -> [Vec<u8>; 2] {
    let device = Emulated::new(module(), Schedule::from_seed(schedule));
    product.run(&device).unwrap_or_else(|error| panic!("{error}\n{product:?}"))
}

fn check(product: Product) {
    let results = run(&product, product.seed);
    product.judge(&product.expected(), &results).unwrap_or_else(|wrong| panic!("{wrong}: {product:?}"));
}

fn plain() -> Product {
    Product {
        dtype: DType::Bf16,
        routing: Routing::packed([70, 0, 3]),
        depth: 136,
        columns: 72,
        activation: abi::ACTIVATION_NONE,
        across: false,
        biased: false,
        padding: 0,
        hidden_size: 0,
        out_size: 2,
        multiprocessors: 2,
        seed: 1,
        way: Run::Usual,
    }
}

fn gated() -> Product {
    Product {
        activation: abi::ACTIVATION_SWIGLU,
        routing: Routing::found([70, 0, 3], 50),
        biased: true,
        hidden_size: 4,
        ..plain()
    }
}

/// Rows around a warpgroup, a block, a unit and two units, of the first expert and of a later one.
#[test]
fn rows_around_every_division() {
    for rows in [1, 63, 64, 65, 127, 128, 129, 191, 192, 193, 255, 256, 257, 320, 513] {
        check(Product { routing: Routing::packed([rows]), columns: 8, depth: 64, ..plain() });
        check(Product { routing: Routing::found([1, 0, rows, 2], 40), columns: 8, depth: 64, ..plain() });
    }
}

#[test]
fn columns_around_every_plane_and_unit() {
    for columns in [8, 56, 64, 72, 128, 136, 256, 264] {
        for out_size in [2, 4].into_iter().filter(|size| *size == 2 || columns >= 128) {
            check(Product { routing: Routing::packed([66]), columns, depth: 72, out_size, ..plain() });
        }
        check(Product { routing: Routing::found([66], 50), columns, depth: 72, hidden_size: 2, ..gated() });
        check(Product { routing: Routing::found([66], 50), columns, depth: 72, ..gated() });
    }
}

/// Around a step, and more steps than stages.
#[test]
fn depths_around_every_step() {
    for depth in [8, 56, 64, 72, 256, 264, 328, 576] {
        for tokens in [0, 30] {
            check(Product { depth, routing: Routing::found([65, 130], tokens), columns: 16, ..plain() });
        }
    }
}

#[test]
fn one_expert_has_everything_or_nothing() {
    for counts in [vec![0, 0, 0], vec![300], vec![0, 290, 0], vec![1; 40], vec![0, 1, 0, 129, 0, 0, 64, 0]] {
        for product in [plain(), gated()] {
            let routing = Routing { counts: counts.clone(), ..product.routing };
            check(Product { routing, depth: 64, columns: 40, ..product });
        }
    }
}

/// Warpgroups without rows pass the ring on, more often round than it has stages, in every order of their lanes.
#[test]
fn nobody_is_lapped_on_the_ring() {
    let product = Product { routing: Routing::packed([1; 6]), columns: 8, depth: 640, ..plain() };
    let once = run(&product, 0);
    for schedule in (1..9).chain([35]) {
        assert_eq!(run(&product, schedule), once, "{schedule}");
    }
}

/// The bits are those of the unit, whichever cluster has it and whatever else runs.
#[test]
fn who_computes_a_unit_does_not_show() {
    let product =
        Product { routing: Routing::found([300, 5, 0, 140], 50), columns: 136, depth: 72, padding: 8, ..gated() };
    let once = run(&product, 0);
    for (multiprocessors, schedule) in [(1, 1), (4, 2), (6, 3), (8, 4), (64, 5)] {
        assert_eq!(run(&Product { multiprocessors, ..product.clone() }, schedule), once, "{multiprocessors}");
    }
}

#[test]
fn other_ways_change_nothing() {
    let packed = Product { routing: Routing::packed([70, 0, 3, 200, 300]), columns: 328, ..plain() };
    for product in [packed, Product { routing: Routing::found([200, 3, 0, 260], 50), ..gated() }] {
        let usual = run(&product, 2);
        for way in [Run::Clocked, Run::Alone, Run::Skewed] {
            for schedule in 2..4 {
                assert!(run(&Product { way, ..product.clone() }, schedule) == usual, "{way:?}");
            }
        }
    }
}

/// What is multiplied, in rows: those of a plan, each expert's padded to those of a warpgroup, and nothing for an expert that has none. As the
/// portable products' are counted in `schedule.rs`, on plans of the shapes that speed goals are stated for.
#[test]
fn rows_that_are_not_there_are_not_multiplied() {
    for (experts, rows, most) in [(256, 16384 * 3, 1.18), (128, 32768 * 4, 1.04), (8, 8192 * 2, 1.02)] {
        let counts = random_counts(experts, rows);
        let padded: usize = counts.iter().map(|count| count.next_multiple_of(64)).sum();
        let product =
            Product { routing: Routing::packed(counts), depth: 64, columns: 8, multiprocessors: 4, ..plain() };
        let device = Emulated::new(module(), Schedule::from_seed(0));
        product.run(&device).unwrap_or_else(|error| panic!("{error}"));
        let multiplied = device.work().multiply_adds as usize / (64 * 256);
        assert_eq!(multiplied, padded, "{experts} experts");
        assert!(padded as f64 <= most * rows as f64, "{experts} experts: {padded} for {rows}");
    }
}

fn any_product() -> impl Strategy<Value = Product> {
    let activations = [
        abi::ACTIVATION_NONE,
        abi::ACTIVATION_RELU,
        abi::ACTIVATION_SILU,
        abi::ACTIVATION_SWIGLU,
        abi::ACTIVATION_REGLU,
    ];
    let count = prop_oneof![2 => 0usize..5, 2 => 0usize..200, 1 => 200usize..400];
    let shape = (prop::collection::vec(count, 1..5), 1usize..40, 1usize..36);
    let kinds = (prop::sample::select(activations.to_vec()), prop::sample::select(vec![DType::Bf16, DType::F16]));
    let sizes = (prop::sample::select(vec![0, 2, 4]), prop::sample::select(vec![0, 30, 300]), 0usize..3);
    let rest = (any::<bool>(), 1usize..9, 0u64..1 << 32);
    (shape, kinds, sizes, rest).prop_map(
        |(
            (counts, depth, columns),
            (activation, dtype),
            (hidden_size, tokens, padding),
            (biased, multiprocessors, seed),
        )| {
            let columns = 8 * columns;
            let wide = activation == abi::ACTIVATION_NONE && columns >= 128 && seed.is_multiple_of(2);
            Product {
                dtype,
                routing: Routing { counts, tokens, astray: if seed.is_multiple_of(3) { 5 } else { 0 } },
                depth: 8 * depth,
                columns,
                activation,
                across: false,
                biased,
                padding: 8 * padding,
                hidden_size,
                out_size: if wide { 4 } else { 2 },
                multiprocessors,
                seed,
                way: Run::Usual,
            }
        },
    )
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn any_product_agrees(product in any_product()) {
        check(product);
    }
}
