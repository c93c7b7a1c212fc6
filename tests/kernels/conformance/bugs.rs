//! The cases find what is wrong: twins of instructions and uses of functions with bugs in them.

use super::cases::Case;
use super::{SCHEDULES, SEED, compiler, problem};
use da_moe::cuda::Emulated;
use da_moe_emulator::Schedule;
use std::sync::Arc;

/// A wrong twin, or a wrong use of a function: file, what is replaced by what, and the kernel that shows it.
const BUGS: &[[&str; 4]] = &[
    ["ptx.cuh", "emu::ldmatrix(4, false, row, out)", "emu::ldmatrix(4, true, row, out)", "conformance_ldmatrix"],
    ["ptx.cuh", "emu::ldmatrix(4, true, row, out)", "emu::ldmatrix(4, false, row, out)", "conformance_ldmatrix_trans"],
    ["ptx.cuh", "emu::ldmatrix(4, false, row, out)", "emu::ldmatrix(2, false, row, out)", "conformance_ldmatrix"],
    ["ptx.cuh", "static_cast<uint32_t>(source_bytes)", "16", "conformance_cp_async"],
    ["ptx.cuh", "emu::cp_async_wait(GROUPS)", "emu::cp_async_wait(GROUPS + 1)", "conformance_cp_async"],
    ["ptx.cuh", "{ emu::cp_async_commit(); }", "{}", "conformance_cp_async"],
    [
        "ptx.cuh",
        "{ return emu::shared_address(pointer); }",
        "{ return 16 + emu::shared_address(pointer); }",
        "conformance_ldmatrix",
    ],
    [
        "ptx.cuh",
        "emu::mma_m16n8k16(emu::Element::Bf16,",
        "emu::mma_m16n8k16(emu::Element::F16,",
        "conformance_mma_bf16",
    ],
    [
        "ptx.cuh",
        "emu::mma_m16n8k16(emu::Element::Bf16, d, a, b, d);",
        "const uint32_t rows[4] = {a[0], a[2], a[1], a[3]}; emu::mma_m16n8k16(emu::Element::Bf16, d, rows, b, d);",
        "conformance_mma_bf16",
    ],
    [
        "ptx.cuh",
        "emu::mma_m16n8k16(emu::Element::F16, d, a, b, d);",
        "const uint32_t swapped[2] = {b[1], b[0]}; emu::mma_m16n8k16(emu::Element::F16, d, a, swapped, d);",
        "conformance_mma_f16",
    ],
    [
        "ptx.cuh",
        "emu::mma_m16n8k16(emu::Element::F16, d, a, b, d);",
        "const float zeros[4] = {0, 0, 0, 0}; emu::mma_m16n8k16(emu::Element::F16, d, a, b, zeros);",
        "conformance_mma_f16",
    ],
    [
        "ptx.cuh",
        "emu::mma_m16n8k8_tf32(d, a, b, d);",
        "const uint32_t rows[4] = {a[0], a[2], a[1], a[3]}; emu::mma_m16n8k8_tf32(d, rows, b, d);",
        "conformance_mma_tf32",
    ],
    ["ptx.cuh", "{ return emu::round_tf32(bits); }", "{ return bits; }", "conformance_round_tf32"],
    [
        "ptx.cuh",
        "{ return emu::round_tf32(bits); }",
        "{ return bits << 1 > 0xff000000u ? 0x7fffe000u : emu::round_tf32(bits); }",
        "conformance_round_tf32",
    ],
    ["ptx.cuh", "{ return emu::ex2(x); }", "{ return expf(x); }", "conformance_ex2"],
    ["ptx.cuh", "{ return emu::ex2(x); }", "{ return exp2f(x); }", "conformance_ex2"],
    [
        "conformance.cu",
        "__reduce_max_sync(FULL_WARP, value)",
        "__reduce_min_sync(FULL_WARP, value)",
        "conformance_reduce",
    ],
    [
        "conformance.cu",
        "__reduce_max_sync(FULL_WARP, static_cast<int>(value))",
        "__reduce_max_sync(FULL_WARP, value)",
        "conformance_reduce",
    ],
    ["conformance.cu", "= __match_any_sync(", "= ~__match_any_sync(", "conformance_match_any"],
    ["conformance.cu", "__ffs(static_cast<int>(holds))", "31 - __clz(static_cast<int>(holds))", "conformance_vote"],
    ["conformance.cu", "__shfl_up_sync", "__shfl_down_sync", "conformance_shuffle"],
    [
        "conformance.cu",
        "atomicInc(counter, in[2 * blockIdx.x + 1])",
        "atomicAdd(counter, 1u)",
        "conformance_atomic_inc",
    ],
    [
        "storage.cuh",
        "return __float2half(value)",
        "return __ushort_as_half(__half_as_ushort(__float2half(value)) & 0xfffe)",
        "conformance_from_float",
    ],
    ["conformance.cu", "fminf(own[0], own[1])", "(own[0] < own[1] ? own[0] : own[1])", "conformance_extremes"],
    ["conformance.cu", "__logf(y)", "__log2f(y)", "conformance_exp_log"],
    [
        "ptx_sm90.cuh",
        "{emu::Element::F16, 256, a, b, true, A_ACROSS",
        "{emu::Element::Bf16, 256, a, b, true, A_ACROSS",
        "conformance_wgmma_f16",
    ],
    [
        "ptx_sm90.cuh",
        "{emu::Element::Bf16, 256, a, b, true, A_ACROSS",
        "{emu::Element::Bf16, 256, a, b, false, A_ACROSS",
        "conformance_wgmma_bf16",
    ],
    ["tile.cuh", "((piece ^ (row % 8)) << 4)", "(piece << 4)", "conformance_wgmma_bf16"],
    [
        "conformance_hopper.cu",
        "ptx::fence_proxy_async();\n    __syncthreads();\n    wgmma<",
        "__syncthreads();\n    wgmma<",
        "conformance_wgmma_f16",
    ],
    [
        "conformance_hopper.cu",
        "ptx::mbarrier_wait(full, 0);\n    ptx::fence_proxy_async();",
        "ptx::mbarrier_wait(full, 0);",
        "conformance_wgmma_of_copies",
    ],
    [
        "ptx_sm90.cuh",
        "{ emu::cp_async_mbarrier_arrive_noinc(mbarrier); }",
        "{ emu::mbarrier_arrive(mbarrier); }",
        "conformance_wgmma_of_copies",
    ],
    ["tile.cuh", "ACROSS ? PLANE_BYTES / 16 : 0", "0", "conformance_wgmma_b_across"],
    ["tile.cuh", "ACROSS ? 16 * ROW_BYTES :", "false ? 0 :", "conformance_wgmma_both_across"],
    [
        "ptx_sm90.cuh",
        "{emu::Element::Bf16, 256, a, b, false, A_ACROSS != 0, B_ACROSS != 0}",
        "{emu::Element::Bf16, 256, a, b, false, A_ACROSS != 0, false}",
        "conformance_wgmma_b_across",
    ],
    [
        "ptx_sm90.cuh",
        "{x, y, z, w};\n    emu::tma_load(target, encoded(map), mbarrier, 4, at, blocks)",
        "{x, y, w, z};\n    emu::tma_load(target, encoded(map), mbarrier, 4, at, blocks)",
        "conformance_tma_multicast",
    ],
    ["ptx_sm90.cuh", "mbarrier, 4, at, blocks)", "mbarrier, 4, at, 0)", "conformance_tma_multicast"],
    ["ptx_sm90.cuh", "{x, y, z};\n    emu::tma_store", "{x, z, y};\n    emu::tma_store", "conformance_tma_store_3d"],
    ["ptx_sm90.cuh", "emu::bulk_wait(GROUPS, true)", "emu::bulk_wait(GROUPS + 1, true)", "conformance_bulk_wait_read"],
    ["ptx_sm90.cuh", "emu::stmatrix(4, false, row, in)", "emu::stmatrix(4, true, row, in)", "conformance_stmatrix"],
    [
        "ptx_sm90.cuh",
        "emu::stmatrix(4, true, row, in)",
        "emu::stmatrix(4, false, row, in)",
        "conformance_stmatrix_trans",
    ],
    ["ptx_sm90.cuh", "emu::tma_add(", "emu::tma_store(", "conformance_tma_add_3d"],
    [
        "ptx_sm90.cuh",
        "emu::named_barrier(ID, THREADS, true)",
        "emu::named_barrier(ID, THREADS, false)",
        "conformance_barrier_arrive",
    ],
    ["ptx_sm90.cuh", "return emu::elect_sync();", "return true;", "conformance_elect"],
    [
        "ptx_sm90.cuh",
        "emu::map_shared(address, rank)",
        "emu::map_shared(address, emu::cluster_rank())",
        "conformance_remote_arrive",
    ],
    [
        "conformance_hopper.cu",
        "ptx::cluster_arrive();\n    ptx::cluster_wait();\n    own[1]",
        "own[1]",
        "conformance_cluster_barrier",
    ],
    ["conformance_hopper.cu", "ptx::give_registers<56>();", "", "conformance_registers"],
    [
        "ptx_sm90.cuh",
        "emu::half_bits(first) | static_cast<uint32_t>(emu::half_bits(second)) << 16",
        "emu::half_bits(second) | static_cast<uint32_t>(emu::half_bits(first)) << 16",
        "conformance_pack",
    ],
    ["ptx_sm90.cuh", "{ return emu::rcp(x); }", "{ return 1.0f / x; }", "conformance_rcp"],
];

#[test]
fn planted_bugs_are_found() {
    if !da_moe_harness::kernels::is_emulator_wanted() {
        return;
    }
    let whole = compiler().compile().unwrap_or_else(|error| panic!("{error}"));
    for [file, from, to, kernel] in BUGS {
        let mutant = compiler().replace(file, from, to).only(&whole, [*kernel]).and_then(|mutant| mutant.compile());
        let module = mutant.unwrap_or_else(|error| panic!("{error}"));
        let case = Case::named(kernel);
        for schedule in 0..SCHEDULES / 2 {
            let device = Arc::new(Emulated::new(module.clone(), Schedule::from_seed(schedule)));
            assert!(problem(&device, case, SEED).is_some(), "not found under schedule {schedule}: {from} -> {to}");
        }
    }
}
