//! Which products Hopper has, and what is said of their operands.

use crate::DType;
use crate::cuda::abi;
use crate::cuda::device::{Architecture, Elements, Launch, Target};
use crate::cuda::launch::experts::Operands;
use crate::cuda::launch::hopper::along;
use std::ptr::without_provenance;

/// Marin's first product.
fn up() -> abi::GroupedGemm {
    abi::GroupedGemm {
        a: without_provenance(256),
        b: without_provenance(512),
        out: without_provenance::<u8>(1024).cast_mut().cast(),
        offsets: without_provenance(768),
        row_token: without_provenance(772),
        a_stride: 2048,
        b_stride: 2048,
        b_expert_stride: 2048 * 6144,
        out_stride: 3072,
        rows: 16384,
        a_rows: 8192,
        experts: 8,
        depth: 2048,
        columns: 3072,
        activation: abi::ACTIVATION_SWIGLU,
        ..Default::default()
    }
}

fn launch(p: abi::GroupedGemm) -> Option<Launch> {
    along(Target::H100, DType::Bf16.into(), &p).map(|call| call.launch)
}

#[test]
fn a_cluster_for_two_multiprocessors() {
    let marin = launch(up()).unwrap();
    assert_eq!((marin.kernel, marin.grid), ("grouped_gemm_bf16_gated_gathered_hopper", [132, 1, 1]));
    // At most one unit for each of three rows, of one column of units.
    let few = abi::GroupedGemm { rows: 3, columns: 128, ..up() };
    assert_eq!(launch(few).unwrap().grid, [6, 1, 1]);
    assert!(launch(abi::GroupedGemm { rows: 0, ..up() }).is_none());
    let small = Target { multiprocessors: 1, ..Target::H100 };
    assert_eq!(along(small, DType::F16.into(), &up()).unwrap().launch.grid, [2, 1, 1]);
}

#[test]
fn what_the_accelerator_cannot_address_is_left_to_the_portable_kernels() {
    let hidden = |stride, is_f32| abi::GroupedGemm {
        hidden: without_provenance::<u8>(2048).cast_mut().cast(),
        hidden_stride: stride,
        hidden_f32: is_f32,
        ..up()
    };
    for good in [hidden(6144, 0), hidden(9216, 1), abi::GroupedGemm { depth: 8, columns: 8, ..up() }] {
        assert!(launch(good).is_some());
    }
    let odd = without_provenance::<u8>(264).cast_mut();
    let refused = [
        abi::GroupedGemm { a: odd.cast(), ..up() },
        abi::GroupedGemm { b: odd.cast(), ..up() },
        abi::GroupedGemm { out: odd.cast(), ..up() },
        abi::GroupedGemm { hidden: odd.cast(), ..hidden(6144, 0) },
        abi::GroupedGemm { a_stride: 2052, ..up() },
        abi::GroupedGemm { b_stride: 2052, ..up() },
        abi::GroupedGemm { b_expert_stride: 2048 * 6144 + 4, ..up() },
        abi::GroupedGemm { out_stride: 3076, ..up() },
        abi::GroupedGemm { depth: 2044, ..up() },
        abi::GroupedGemm { columns: 3068, ..up() },
        hidden(6148, 0),
        hidden(6146, 1),
        // No multiple of a half of a row, of a half of an expert.
        hidden(6152, 0),
        abi::GroupedGemm { b_expert_stride: 2048 * 6144 + 64, ..up() },
        // Activated rows are of the storage type.
        abi::GroupedGemm { out_f32: 1, ..up() },
        abi::GroupedGemm { out_f32: 1, activation: abi::ACTIVATION_GELU, ..up() },
        abi::GroupedGemm { out_f32: 1, activation: abi::ACTIVATION_NONE, columns: 64, ..up() },
    ];
    for (number, p) in refused.into_iter().enumerate() {
        assert!(launch(p).is_none(), "{number}");
    }
    let portable = Target { architecture: Architecture::Portable, ..Target::H100 };
    assert!(along(portable, DType::Bf16.into(), &up()).is_none());
    assert!(along(Target::H100, DType::F32.into(), &up()).is_none());
    let mixed = Operands { rows: DType::Bf16, weights: DType::F32 };
    assert!(along(Target::H100, mixed, &up()).is_none());
}

#[test]
fn maps_say_where_matrices_are() {
    let p = abi::GroupedGemm {
        hidden: without_provenance::<u8>(4096).cast_mut().cast(),
        hidden_stride: 6144,
        hidden_f32: 1,
        ..up()
    };
    let first = along(Target::H100, DType::Bf16.into(), &p).unwrap();
    let [weights, out, hidden] = first.maps().copied().collect::<Vec<_>>().try_into().unwrap();
    assert_eq!((weights.address, weights.extents, weights.box_extents()), (512, [2048, 3072, 2, 8], [64, 128, 1, 1]));
    // All of the matrices and nothing behind them.
    assert_eq!(weights.bytes(), 8 * 6144 * 2048 * 2);
    assert_eq!((out.extents, out.bytes(), out.box_extents()), ([3072, 1, 16384, 1], 16384 * 3072 * 2, [64, 1, 64, 1]));
    assert_eq!((hidden.extents, hidden.bytes()), ([3072, 2, 16384, 1], 16384 * 6144 * 4));
    assert_eq!((hidden.box_extents(), hidden.elements), ([32, 1, 64, 1], Elements::Float));
    let second = abi::GroupedGemm { row_token: std::ptr::null(), activation: abi::ACTIVATION_NONE, ..up() };
    let second = along(Target::H100, DType::F16.into(), &second).unwrap();
    assert_eq!(second.launch.kernel, "grouped_gemm_f16_plain_packed_hopper");
    let a = second.maps().nth(1).copied().unwrap();
    assert_eq!((a.address, a.extents, a.box_extents()), (256, [2048, 8192, 1, 1], [64, 64, 1, 1]));
}
