//! The checks of rows between stages can fail: kernels that read them, of routed experts or of the shared one, as of another type.

use da_moe::{DType, LayerConfig};
use da_moe_harness::case::{Case, small_config};
use da_moe_harness::planted::Shows::{Report, Wrong};
use da_moe_harness::planted::{Bug, assert_all_found, assert_clean};

fn with_shared(dtype: DType) -> Case {
    Case { dtype, ..Case::plain(LayerConfig { shared_intermediate_size: 5, ..small_config() }) }
}

/// Rows in f32 beside 16-bit values.
fn beside() -> Case {
    with_shared(DType::F16)
}

/// Rows of the values' own type.
fn same() -> Case {
    with_shared(DType::Bf16)
}

const BUGS: &[Bug] = &[
    Bug {
        file: "combine.cu",
        from: "static_cast<const Row*>(p.rows)",
        to: "static_cast<const S*>(p.rows)",
        shows: Wrong,
        call: beside,
    },
    Bug {
        file: "combine.cu",
        from: "static_cast<const Row*>(p.shared)",
        to: "static_cast<const S*>(p.shared)",
        shows: Wrong,
        call: beside,
    },
    Bug {
        file: "combine.cu",
        from: "static_cast<const Row*>(p.shared)",
        to: "static_cast<const float*>(p.shared)",
        shows: Report("out of bounds|uninitialised"),
        call: same,
    },
    Bug {
        file: "permute_backward.cu",
        from: "static_cast<const Row*>(p.dx_rows)",
        to: "static_cast<const S*>(p.dx_rows)",
        shows: Wrong,
        call: beside,
    },
    Bug {
        file: "permute_backward.cu",
        from: "static_cast<const Row*>(p.shared_dx)",
        to: "static_cast<const S*>(p.shared_dx)",
        shows: Wrong,
        call: beside,
    },
    Bug {
        file: "permute_backward.cu",
        from: "static_cast<const Row*>(p.shared_dx)",
        to: "static_cast<const float*>(p.shared_dx)",
        shows: Report("out of bounds|uninitialised"),
        call: same,
    },
];

#[test]
fn every_planted_bug_is_found_in_every_order() {
    assert_all_found(BUGS, None);
}

#[test]
fn the_kernels_without_a_bug_pass_every_call() {
    [beside, same].into_iter().for_each(assert_clean);
}
