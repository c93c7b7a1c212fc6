//! What is multiplied: when it may be read, and where it lies.

use super::{first, second};
use da_moe_harness::planted::Shows::{Report, Wrong};
use da_moe_harness::planted::{BOUNDS, Bug, RACE, assert_found};
use da_moe_harness::product::Product;

const BUGS: &[Bug<Product>] = &[
    // Who multiplies: fences and waits of wgmma.
    Bug {
        file: "experts/hopper/multiply.cuh",
        from: "ptx::fence_proxy_async();",
        to: "",
        shows: Report("asynchronous"),
        call: first,
    },
    Bug {
        file: "experts/hopper/multiply.cuh",
        from: "ptx::wgmma_fence();",
        to: "",
        shows: Report("asynchronous"),
        call: first,
    },
    Bug {
        file: "experts/hopper/multiply.cuh",
        from: "    ptx::wgmma_wait<0>();\n",
        to: "",
        shows: Report("race|asynchronous"),
        call: second,
    },
    Bug {
        file: "experts/hopper/multiply.cuh",
        from: "ptx::wgmma_wait<0>();",
        to: "ptx::wgmma_wait<1>();",
        shows: Report("race|asynchronous"),
        call: second,
    },
    Bug {
        file: "experts/hopper/multiply.cuh",
        from: "    ptx::wgmma_wait<0>();\n    release(before);",
        to: "    release(before);\n    ptx::wgmma_wait<0>();",
        shows: RACE,
        call: second,
    },
    Bug {
        file: "experts/hopper/multiply.cuh",
        from: "        ptx::wgmma_wait<1>();\n",
        to: "",
        shows: RACE,
        call: second,
    },
    Bug {
        file: "experts/hopper/multiply.cuh",
        from: "        ptx::wgmma_wait<1>();\n        release(before);\n",
        to: "        release(before);\n        ptx::wgmma_wait<1>();\n",
        shows: RACE,
        call: first,
    },
    Bug {
        file: "experts/hopper/multiply.cuh",
        from: "        release(before);\n        before = ring.stage();\n",
        to: "        before = ring.stage();\n        release(before);\n",
        shows: Report("race|asynchronous|deadlock"),
        call: first,
    },
    Bug {
        file: "experts/hopper/multiply.cuh",
        from: "    ptx::wgmma_wait<0>();\n    release(before);",
        to: "    ptx::wgmma_wait<0>();\n    release(ring.stage());",
        shows: Report("race|asynchronous|deadlock"),
        call: second,
    },
    Bug {
        file: "experts/hopper/multiply.cuh",
        from: "multiply_stage<K, true>(d, ring, warpgroup);",
        to: "multiply_stage<K, false>(d, ring, warpgroup);",
        shows: Wrong,
        call: second,
    },
    Bug {
        file: "device/ptx_sm90.cuh",
        from: "emu::wgmma(d, {emu::Element::Bf16, 256, a, b, false, A_ACROSS",
        to: "emu::wgmma(d, {emu::Element::Bf16, 256, a, b, true, A_ACROSS",
        shows: Wrong,
        call: first,
    },
    Bug { file: "experts/hopper/multiply.cuh", from: "k = FIRST ? 1 : 0;", to: "k = 1;", shows: Wrong, call: second },
    Bug {
        file: "experts/hopper/multiply.cuh",
        from: "warpgroup * PLANE_BYTES), b = ring.b();",
        to: "0 * warpgroup * PLANE_BYTES), b = ring.b();",
        shows: Wrong,
        call: second,
    },
    // Rows that are gathered.
    Bug {
        file: "experts/hopper/produce.cuh",
        from: "piece() * PIECE < depth ? there_ : 0;",
        to: "piece() * PIECE < depth + DEPTH ? there_ : 0;",
        shows: BOUNDS,
        call: first,
    },
    Bug {
        file: "experts/hopper/produce.cuh",
        from: "token >= 0 && token < p.a_rows;",
        to: "token >= 0;",
        shows: BOUNDS,
        call: first,
    },
    Bug {
        file: "experts/hopper/produce.cuh",
        from: "token >= 0 && token < p.a_rows;",
        to: "token < p.a_rows;",
        shows: BOUNDS,
        call: first,
    },
    Bug {
        file: "experts/hopper/produce.cuh",
        from: "row < rows.count ? token_of",
        to: "row < BLOCK_ROWS ? token_of",
        shows: BOUNDS,
        call: first,
    },
    Bug {
        file: "experts/hopper/produce.cuh",
        from: "static_cast<uint32_t>(is_there) << i;",
        to: "static_cast<uint32_t>(is_there) << (i ^ 1);",
        shows: Wrong,
        call: first,
    },
    Bug {
        file: "experts/hopper/produce.cuh",
        from: "if (warpgroup < warpgroups_) {",
        to: "if (warpgroup + 1 < warpgroups_) {",
        shows: Report("race|uninitialised"),
        call: first,
    },
    // Where pieces lie, as threads and as wgmma and TMA have it.
    Bug {
        file: "experts/hopper/tile.cuh",
        from: "(piece ^ (row % 8))",
        to: "(piece ^ (row % 4))",
        shows: Wrong,
        call: first,
    },
    Bug {
        file: "experts/hopper/produce.cuh",
        from: "swizzled(thread_row(), piece())",
        to: "thread_row() * ROW_BYTES + piece() * 16",
        shows: Wrong,
        call: first,
    },
    Bug {
        file: "experts/hopper/tile.cuh",
        from: "eight_rows << 32 | swizzle_128 << 62;",
        to: "eight_rows << 32 | 0 * swizzle_128;",
        shows: Wrong,
        call: second,
    },
    Bug { file: "experts/hopper/tile.cuh", from: ": 16 * 2;", to: ": 16;", shows: Wrong, call: second },
    Bug {
        file: "experts/hopper/tile.cuh",
        from: "eight_rows = 8 * ROW_BYTES / 16",
        to: "eight_rows = 4 * ROW_BYTES / 16",
        shows: Wrong,
        call: second,
    },
    Bug {
        file: "experts/hopper/product.cuh",
        from: "DYN_SMEM(shared, 1024);",
        to: "DYN_SMEM(shared, 128);",
        shows: Report("asynchronous"),
        call: second,
    },
    // Registers that there are not.
    Bug {
        file: "experts/hopper/product.cuh",
        from: "MULTIPLYING = GATHERED ? 224 : 232;",
        to: "MULTIPLYING = GATHERED ? 232 : 232;",
        shows: Report("deadlock"),
        call: first,
    },
    Bug {
        file: "experts/hopper/product.cuh",
        from: "MULTIPLYING = GATHERED ? 224 : 232;",
        to: "MULTIPLYING = GATHERED ? 224 : 240;",
        shows: Report("deadlock"),
        call: second,
    },
];

#[test]
fn every_planted_bug_is_found_in_every_order() {
    assert_found(BUGS, |product| product);
}
