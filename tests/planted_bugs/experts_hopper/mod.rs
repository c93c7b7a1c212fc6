//! The checks of Hopper's products can fail: bugs planted in how their steps come and are multiplied, in their units and in their
//! way out.

mod output;
mod products;
mod ring;

use da_moe::DType;
use da_moe::cuda::{Architecture, abi};
use da_moe_harness::planted::assert_clean_on;
use da_moe_harness::product::Product;

/// An expert for each way in which a unit's rows are divided: none; one warpgroup's, of one block; one's of each block; two's of
/// one and one's of the other; all; a second unit. The ring turns once and a half in each, its last step is not whole, and
/// clusters have several units.
fn first() -> Product {
    Product {
        dtype: DType::Bf16,
        counts: vec![1, 0, 70, 130, 260],
        depth: 328,
        columns: 136,
        activation: abi::ACTIVATION_SWIGLU,
        tokens: 90,
        astray: 5,
        biased: true,
        padding: 8,
        hidden_size: 4,
        out_size: 2,
        multiprocessors: 4,
        seed: 1,
        clocked: false,
    }
}

/// `h` in the storage type.
fn stored() -> Product {
    Product { depth: 72, hidden_size: 2, ..first() }
}

fn second() -> Product {
    Product { activation: abi::ACTIVATION_NONE, tokens: 0, hidden_size: 0, ..first() }
}

fn in_f32() -> Product {
    Product { depth: 72, out_size: 4, ..second() }
}

/// More units of an expert than a band has.
fn banded() -> Product {
    Product { counts: vec![2100], depth: 64, columns: 264, ..second() }
}

#[test]
fn the_kernels_without_a_bug_pass_every_trial() {
    [first, stored, second, in_f32, banded].into_iter().for_each(|of| assert_clean_on(Architecture::Hopper, &of()));
}
