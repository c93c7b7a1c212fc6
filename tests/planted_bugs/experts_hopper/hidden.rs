//! From `dy` to `dh`: `h` on its way in, what is computed of it, and `dh` on its way out through the same planes; and `dx`, whose weights
//! are read as those are.

use super::{back, gated, plain, whole, wide};
use da_moe_harness::planted::Shows::{Report, Wrong};
use da_moe_harness::planted::{Bug, assert_found};
use da_moe_harness::product::{HiddenProduct, Product};

const HIDDEN: &[Bug<HiddenProduct>] = &[
    Bug {
        file: "experts/hopper/hidden_gradient.cuh",
        from: "        if (Warpgroup::is_leader()) {\n            ptx::bulk_wait_read<0>();\n        }\n        warpgroup_.barrier();\n",
        to: "        warpgroup_.barrier();\n",
        shows: Report("race|asynchronous"),
        call: gated,
    },
    Bug {
        file: "experts/hopper/hidden_gradient.cuh",
        from: "        warpgroup_.barrier();\n        // Nothing",
        to: "        // Nothing",
        shows: Report("race|asynchronous"),
        call: gated,
    },
    Bug {
        file: "experts/hopper/hidden_gradient.cuh",
        from: "            ptx::bulk_wait_read<0>();\n        }\n        warpgroup_.barrier();\n        // Nothing",
        to: "            ptx::bulk_wait_read<0>();\n            if (is_more) {\n                ask(turn_ + 1, rows, column + SPAN);\n                is_more = false;\n            }\n        }\n        warpgroup_.barrier();\n        // Nothing",
        shows: Report("race|asynchronous"),
        call: gated,
    },
    Bug {
        file: "experts/hopper/hidden_gradient.cuh",
        from: "        ptx::mbarrier_wait(arrived_ + static_cast<uint32_t>(8 * (turn_ % PAIRS)), static_cast<uint32_t>(turn_ / PAIRS % 2));\n",
        to: "",
        shows: Report("race|asynchronous|uninitialised"),
        call: gated,
    },
    Bug {
        file: "experts/hopper/hidden_gradient.cuh",
        from: "static_cast<uint32_t>(turn_ / PAIRS % 2)",
        to: "static_cast<uint32_t>(1 - turn_ / PAIRS % 2)",
        shows: Report("race|asynchronous|uninitialised|deadlock"),
        call: gated,
    },
    Bug {
        file: "experts/hopper/hidden_gradient.cuh",
        from: "static_cast<uint32_t>(turn_ / PAIRS % 2)",
        to: "0",
        shows: Report("race|asynchronous|deadlock"),
        call: gated,
    },
    Bug {
        file: "experts/hopper/hidden_gradient.cuh",
        from: "K::HALVES * PLANE_BYTES);",
        to: "PLANE_BYTES);",
        shows: Report("race|asynchronous|uninitialised|deadlock"),
        call: gated,
    },
    Bug {
        file: "experts/hopper/hidden_gradient.cuh",
        from: "K::HALVES * PLANE_BYTES);",
        to: "2 * PLANE_BYTES);",
        shows: Report("deadlock"),
        call: plain,
    },
    Bug {
        file: "experts/hopper/hidden_gradient.cuh",
        from: "static_cast<uint32_t>(8 * i), 1);",
        to: "static_cast<uint32_t>(8 * i), 2);",
        shows: Report("deadlock"),
        call: gated,
    },
    Bug {
        file: "experts/hopper/hidden_gradient.cuh",
        from: "PAIRS * warpgroup)",
        to: "0 * warpgroup)",
        shows: Report("race|asynchronous|deadlock|uninitialised"),
        call: gated,
    },
    Bug {
        file: "experts/hopper/hidden_gradient.cuh",
        from: "BARRIERS_AT + 8 * (2 * K::STAGES + PAIRS",
        to: "BARRIERS_AT + 8 * (2 * K::STAGES - 1 + PAIRS",
        shows: Report("race|asynchronous|deadlock|uninitialised"),
        call: gated,
    },
    Bug {
        file: "experts/hopper/hidden_gradient.cuh",
        from: "column, half, rows.first);",
        to: "column, half, rows.first + 1);",
        shows: Wrong,
        call: gated,
    },
    Bug {
        file: "experts/hopper/hidden_gradient.cuh",
        from: "column, half, rows.first);",
        to: "column, K::HALVES - 1 - half, rows.first);",
        shows: Wrong,
        call: gated,
    },
    Bug {
        file: "experts/hopper/hidden_gradient.cuh",
        from: "ask(turn_ + 1, rows, column + SPAN);",
        to: "ask(turn_ + 1, rows, column);",
        shows: Wrong,
        call: plain,
    },
    Bug {
        file: "experts/hopper/hidden_gradient.cuh",
        from: "        turn_++;\n",
        to: "",
        shows: Report("race|asynchronous|deadlock|uninitialised"),
        call: plain,
    },
    Bug {
        file: "experts/hopper/hidden_gradient.cuh",
        from: "        ptx::fence_proxy_async();\n        warpgroup_.barrier();\n#pragma",
        to: "        warpgroup_.barrier();\n#pragma",
        shows: Report("asynchronous"),
        call: gated,
    },
    Bug {
        file: "experts/hopper/hidden_gradient.cuh",
        from: "        ptx::fence_proxy_async();\n        warpgroup_.barrier();\n#pragma",
        to: "        ptx::fence_proxy_async();\n#pragma",
        shows: Report("race|asynchronous"),
        call: gated,
    },
    Bug {
        file: "experts/hopper/hidden_gradient.cuh",
        from: "            ptx::bulk_commit();\n",
        to: "",
        shows: Report("race|asynchronous"),
        call: gated,
    },
    Bug {
        file: "experts/hopper/hidden_gradient.cuh",
        from: "leave<2>(dh_, rows, half, column, plane(turn_, half));",
        to: "leave<2>(dh_, rows, half, column, plane(turn_, 0));",
        shows: Wrong,
        call: gated,
    },
    Bug {
        file: "experts/hopper/hidden_gradient.cuh",
        from: "leave<2>(activated_, rows, 0, column, activated);",
        to: "leave<2>(activated_, rows, 0, column, plane(turn_, 0));",
        shows: Wrong,
        call: gated,
    },
    Bug {
        file: "experts/hopper/hidden_gradient.cuh",
        from: "planes_ + 2 * PAIRS * PLANE_BYTES",
        to: "planes_ + 2 * PLANE_BYTES",
        shows: Report("race|asynchronous"),
        call: gated,
    },
    Bug {
        file: "experts/hopper/hidden_gradient.cuh",
        from: "    __device__ __forceinline__ static void finish() {\n        if (Warpgroup::is_leader()) {\n            ptx::bulk_wait_read<0>();\n        }\n",
        to: "    __device__ __forceinline__ static void finish() {\n",
        shows: Report("asynchronous"),
        call: whole,
    },
    Bug {
        file: "experts/hopper/hidden_gradient.cuh",
        from: "const float of_row = weights_[row] * da[i];",
        to: "const float of_row = da[i];",
        shows: Wrong,
        call: gated,
    },
    Bug {
        file: "experts/hopper/hidden_gradient.cuh",
        from: "parts[row] += gate.value * other * da[i];",
        to: "parts[row] += weights_[row] * gate.value * other * da[i];",
        shows: Wrong,
        call: gated,
    },
    Bug {
        file: "experts/hopper/hidden_gradient.cuh",
        from: "parts[row] += gate.value * other * da[i];",
        to: "parts[row] = gate.value * other * da[i];",
        shows: Wrong,
        call: plain,
    },
    Bug {
        file: "experts/hopper/hidden_gradient.cuh",
        from: "            parts[i] += __shfl_xor_sync(FULL_WARP, parts[i], 2);\n",
        to: "",
        shows: Wrong,
        call: gated,
    },
    Bug {
        file: "experts/hopper/hidden_gradient.cuh",
        from: "part_count + unit.column / COLUMNS]",
        to: "part_count]",
        shows: Report("race"),
        call: wide,
    },
    Bug {
        file: "experts/hopper/hidden_gradient.cuh",
        from: "row >= rows.count ? 1.0f : weight[rows.first + row]",
        to: "row >= rows.count ? 1.0f : weight[row]",
        shows: Wrong,
        call: gated,
    },
    Bug {
        file: "experts/hopper/hidden_gradient.cuh",
        from: "const int row = i / 2 % 2;",
        to: "const int row = i / 4 % 2;",
        shows: Wrong,
        call: gated,
    },
    Bug {
        file: "experts/hopper/hidden_gradient.cuh",
        from: "words[i] & 0xffff0000u",
        to: "words[i] << 16",
        shows: Wrong,
        call: gated,
    },
    Bug {
        file: "experts/hopper/hidden_gradient.cuh",
        from: "v[i] = d[(first / GROUP + group)",
        to: "v[i] = d[(group)",
        shows: Wrong,
        call: gated,
    },
];

const ROWS: &[Bug<Product>] = &[
    Bug {
        file: "experts/hopper/produce.cuh",
        from: "static_cast<uint32_t>(plane * PLANE_BYTES), column",
        to: "static_cast<uint32_t>(0 * plane), column",
        shows: Report("race|uninitialised"),
        call: back,
    },
    Bug {
        file: "experts/hopper/produce.cuh",
        from: "column + half * HALF_COLUMNS + plane * 64, depth, 0)",
        to: "column + half * HALF_COLUMNS, depth, 0)",
        shows: Wrong,
        call: back,
    },
    Bug {
        file: "experts/hopper/produce.cuh",
        from: "column + half * HALF_COLUMNS + plane * 64, depth, 0)",
        to: "column + plane * 64, depth, 0)",
        shows: Wrong,
        call: back,
    },
    Bug {
        file: "experts/hopper/produce.cuh",
        from: "plane * 64, depth, 0)",
        to: "plane * 64, 0, 0)",
        shows: Wrong,
        call: back,
    },
    Bug {
        file: "experts/hopper/tile.cuh",
        from: "ACROSS ? PLANE_BYTES / 16 : 0",
        to: "ACROSS ? 8 * ROW_BYTES / 16 : 0",
        shows: Wrong,
        call: back,
    },
    Bug {
        file: "experts/hopper/tile.cuh",
        from: "ACROSS ? 16 * ROW_BYTES :",
        to: "ACROSS ? 16 * 2 :",
        shows: Wrong,
        call: back,
    },
];

#[test]
fn every_planted_bug_is_found_in_every_order() {
    assert_found(HIDDEN, |product| product);
    assert_found(ROWS, |product| product);
}
