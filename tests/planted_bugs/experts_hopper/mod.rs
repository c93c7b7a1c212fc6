//! The checks of Hopper's products can fail: bugs planted in how their steps come and are multiplied, in their units and in their
//! way out, forward and back.

mod hidden;
mod output;
mod products;
mod ring;
mod weights;

use da_moe::DType;
use da_moe::cuda::{Architecture, abi};
use da_moe_harness::planted::assert_clean_on;
use da_moe_harness::product::{HiddenProduct, Product, Routing, Run, WeightProduct};

/// An expert for each way in which a unit's rows are divided: none; one warpgroup's, of one block; one's of each block; two's of
/// one and one's of the other; all; a second unit. The ring turns once and a half in each, its last step is not whole, and
/// clusters have several units.
fn first() -> Product {
    Product {
        dtype: DType::Bf16,
        routing: Routing { counts: vec![1, 0, 70, 130, 260], tokens: 90, astray: 5 },
        depth: 328,
        columns: 136,
        activation: abi::ACTIVATION_SWIGLU,
        across: false,
        biased: true,
        padding: 8,
        hidden_size: 4,
        out_size: 2,
        multiprocessors: 4,
        seed: 1,
        way: Run::Usual,
    }
}

/// `h` in the storage type.
fn stored() -> Product {
    Product { depth: 72, hidden_size: 2, ..first() }
}

fn second() -> Product {
    Product {
        activation: abi::ACTIVATION_NONE,
        routing: Routing::packed([1, 0, 70, 130, 260]),
        hidden_size: 0,
        ..first()
    }
}

fn in_f32() -> Product {
    Product { depth: 72, out_size: 4, ..second() }
}

/// The first of its clusters begins with a block that has no rows.
fn skewed() -> Product {
    Product { way: Run::Skewed, ..second() }
}

/// More units of an expert than a band has.
fn banded() -> Product {
    Product { routing: Routing::packed([2100]), depth: 64, columns: 264, ..second() }
}

/// `dx`.
fn back() -> Product {
    Product { activation: abi::ACTIVATION_NONE, across: true, biased: false, columns: 264, ..second() }
}

fn gated() -> HiddenProduct {
    HiddenProduct {
        routing: first().routing,
        depth: 328,
        columns: 136,
        activation: abi::ACTIVATION_SWIGLU,
        weighted: true,
        padding: 8,
        multiprocessors: 4,
        seed: 1,
        way: Run::Usual,
    }
}

fn plain() -> HiddenProduct {
    HiddenProduct { depth: 72, columns: 200, activation: abi::ACTIVATION_SILU, ..gated() }
}

/// More than one part of `dg`.
fn wide() -> HiddenProduct {
    HiddenProduct { depth: 64, columns: 264, ..gated() }
}

/// Nothing but whole planes.
fn whole() -> HiddenProduct {
    HiddenProduct { routing: Routing::found([128], 90), depth: 64, ..gated() }
}

/// The ring turns, and several clusters have several units.
fn natural() -> WeightProduct {
    WeightProduct {
        routing: Routing { counts: vec![1, 0, 70, 128, 330], tokens: 90, astray: 5 },
        found: 264,
        packed: 264,
        turned: false,
        padding: 8,
        out_size: 2,
        adds: false,
        multiprocessors: 4,
        seed: 1,
        way: Run::Usual,
    }
}

fn turned() -> WeightProduct {
    WeightProduct { turned: true, found: 136, packed: 72, ..natural() }
}

/// To what is there, in the type of the weights, and in f32.
fn added() -> WeightProduct {
    WeightProduct { adds: true, found: 72, packed: 136, ..turned() }
}

fn summed() -> WeightProduct {
    WeightProduct { out_size: 4, adds: true, ..turned() }
}

fn floats() -> WeightProduct {
    WeightProduct { out_size: 4, found: 136, packed: 136, ..natural() }
}

/// Of one expert, whose gradient nobody has written.
fn unread() -> WeightProduct {
    WeightProduct { routing: Routing::found([70], 90), found: 72, packed: 72, ..natural() }
}

#[test]
fn the_kernels_without_a_bug_pass_every_trial() {
    [first, stored, second, in_f32, skewed, banded]
        .into_iter()
        .for_each(|of| assert_clean_on(Architecture::Hopper, &of()));
    assert_clean_on(Architecture::Hopper, &back());
    [gated, plain, wide, whole].into_iter().for_each(|of| assert_clean_on(Architecture::Hopper, &of()));
    let weights = [natural, turned, added, summed, floats, unread];
    weights.into_iter().for_each(|of| assert_clean_on(Architecture::Hopper, &of()));
}
