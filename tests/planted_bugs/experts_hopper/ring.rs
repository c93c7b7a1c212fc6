//! Who brings steps and who multiplies them: barriers of the ring's stages, and what comes into these.

use super::{first, second, skewed};
use da_moe_harness::planted::Shows::{Report, Wrong};
use da_moe_harness::planted::{Bug, assert_found};
use da_moe_harness::product::Product;

const BUGS: &[Bug<Product>] = &[
    // A stage's barriers: who waits, who arrives, how many, where.
    Bug {
        file: "experts/hopper/multiply.cuh",
        from: "    ring.wait_full();\n    if constexpr (K::GATHERED)",
        to: "    if constexpr (K::GATHERED)",
        shows: Report("race|asynchronous|uninitialised"),
        call: first,
    },
    Bug {
        file: "experts/hopper/produce.cuh",
        from: "            ring.wait_empty();\n            if (warp == turn",
        to: "            if (warp == turn",
        shows: Report("race|asynchronous"),
        call: first,
    },
    Bug {
        file: "experts/hopper/produce.cuh",
        from: "                ring.wait_empty();\n                ptx::mbarrier_arrive_expect(ring.full(), bytes);",
        to: "                ptx::mbarrier_arrive_expect(ring.full(), bytes);",
        shows: Report("race|asynchronous"),
        call: second,
    },
    Bug {
        file: "experts/hopper/ring.cuh",
        from: "            parity_ ^= 1;\n",
        to: "",
        shows: Report("race|asynchronous|deadlock|uninitialised"),
        call: first,
    },
    Bug {
        file: "experts/hopper/ring.cuh",
        from: "ptx::mbarrier_wait(full(stage_), parity_);",
        to: "ptx::mbarrier_wait(full(stage_), parity_ ^ 1);",
        shows: Report("race|asynchronous|uninitialised"),
        call: second,
    },
    Bug {
        file: "experts/hopper/ring.cuh",
        from: "ptx::mbarrier_wait(empty(stage_), parity_ ^ 1);",
        to: "ptx::mbarrier_wait(empty(stage_), parity_);",
        shows: Report("deadlock"),
        call: second,
    },
    Bug {
        file: "experts/hopper/product.cuh",
        from: "ring.init(K::GATHERED ? WARPGROUP + 1 : 1);",
        to: "ring.init(K::GATHERED ? WARPGROUP : 1);",
        shows: Report("race|asynchronous|uninitialised"),
        call: first,
    },
    Bug {
        file: "experts/hopper/product.cuh",
        from: "ring.init(K::GATHERED ? WARPGROUP + 1 : 1);",
        to: "ring.init(K::GATHERED ? WARPGROUP + 1 : 2);",
        shows: Report("deadlock"),
        call: second,
    },
    Bug {
        file: "experts/hopper/ring.cuh",
        from: "ptx::mbarrier_init(empty(stage), K::Way::BLOCKS * MULTIPLYING_WARPS);",
        to: "ptx::mbarrier_init(empty(stage), MULTIPLYING_WARPS);",
        shows: Report("race|asynchronous|deadlock"),
        call: second,
    },
    Bug {
        file: "experts/hopper/ring.cuh",
        from: "static_cast<uint32_t>(min(lane_index(), K::Way::BLOCKS - 1))",
        to: "ptx::cluster_rank()",
        shows: Report("race|asynchronous"),
        call: second,
    },
    Bug {
        file: "experts/hopper/ring.cuh",
        from: "if (lane_index() < K::Way::BLOCKS) {",
        to: "if (lane_index() == 0) {",
        shows: Report("deadlock"),
        call: first,
    },
    Bug {
        file: "experts/hopper/ring.cuh",
        from: "empty_ + static_cast<uint32_t>(8 * stage)",
        to: "empty_ + static_cast<uint32_t>(0 * stage)",
        shows: Report("race|asynchronous|deadlock"),
        call: second,
    },
    Bug {
        file: "experts/hopper/product.cuh",
        from: "            pass_over(ring, release, units.depth(unit));\n",
        to: "",
        shows: Report("race|asynchronous|deadlock|uninitialised"),
        call: second,
    },
    Bug {
        file: "experts/hopper/multiply.cuh",
        from: "        release(ring.stage());\n",
        to: "",
        shows: Report("deadlock"),
        call: first,
    },
    Bug {
        file: "experts/hopper/product.cuh",
        from: "        begin();\n        ptx::fence_mbarrier_init();\n",
        to: "        begin();\n",
        shows: Report("asynchronous"),
        call: second,
    },
    Bug {
        file: "experts/hopper/product.cuh",
        from: "    ptx::cluster_arrive();\n    ptx::cluster_wait();\n    if (warpgroup == 0) {",
        to: "    if (warpgroup == 0) {",
        shows: Report("race|asynchronous|uninitialised"),
        call: second,
    },
    Bug {
        file: "experts/hopper/product.cuh",
        from: "and arrive there.\n    ptx::cluster_arrive();\n    ptx::cluster_wait();\n",
        to: "and arrive there.\n",
        shows: Report("asynchronous"),
        call: first,
    },
    // What is brought, and what is said of it.
    Bug {
        file: "experts/hopper/produce.cuh",
        from: "ptx::mbarrier_arrive_expect(ring.full(), B_BYTES);",
        to: "ptx::mbarrier_arrive_expect(ring.full(), B_BYTES / 2);",
        shows: Report("race|asynchronous|deadlock|uninitialised"),
        call: first,
    },
    Bug {
        file: "experts/hopper/produce.cuh",
        from: "B_BYTES + halves * PLANE_BYTES",
        to: "B_BYTES / 2 + halves * PLANE_BYTES",
        shows: Report("race|asynchronous|deadlock|uninitialised"),
        call: second,
    },
    Bug {
        file: "experts/hopper/produce.cuh",
        from: "B_BYTES + halves * PLANE_BYTES",
        to: "B_BYTES + 2 * PLANE_BYTES",
        shows: Report("deadlock"),
        call: second,
    },
    Bug {
        file: "experts/hopper/produce.cuh",
        from: "half < halves; half++",
        to: "half < 2; half++",
        shows: Report("race|asynchronous|deadlock|uninitialised"),
        call: second,
    },
    Bug {
        file: "experts/hopper/produce.cuh",
        from: "ptx::mbarrier_arrive_expect(ring.full(), bytes);",
        to: "ptx::mbarrier_arrive_expect(ring.full(0), bytes);",
        shows: Report("race|asynchronous|deadlock|uninitialised"),
        call: second,
    },
    Bug {
        file: "experts/hopper/produce.cuh",
        from: "multicast(to, &b, ring.full()",
        to: "multicast(to, &b, ring.empty(ring.stage())",
        shows: Report("race|asynchronous|deadlock|uninitialised"),
        call: second,
    },
    Bug {
        file: "experts/hopper/produce.cuh",
        from: "if (warp == turn && ptx::elect()) {",
        to: "if (ptx::elect()) {",
        shows: Report("race|asynchronous|deadlock|uninitialised"),
        call: first,
    },
    Bug {
        file: "experts/hopper/produce.cuh",
        from: "ptx::cp_async_arrive(ring.full());",
        to: "ptx::mbarrier_arrive_remote(ring.full());",
        shows: Report("race|asynchronous|uninitialised"),
        call: first,
    },
    Bug {
        file: "experts/hopper/produce.cuh",
        from: "all = (1 << BLOCKS) - 1;",
        to: "all = 1;",
        shows: Report("race|asynchronous|deadlock|uninitialised"),
        call: first,
    },
    Bug {
        file: "experts/hopper/produce.cuh",
        from: "ring.b() + static_cast<uint32_t>(half * HALF_B_BYTES)",
        to: "ring.b() + static_cast<uint32_t>((1 - half) * HALF_B_BYTES)",
        shows: Wrong,
        call: second,
    },
    Bug {
        file: "experts/hopper/produce.cuh",
        from: "ring.b() + static_cast<uint32_t>(half * HALF_B_BYTES)",
        to: "ring.b()",
        shows: Report("race|uninitialised"),
        call: first,
    },
    Bug {
        file: "experts/hopper/produce.cuh",
        from: "K::GATED ? half : 0);",
        to: "K::GATED ? 1 - half : 0);",
        shows: Wrong,
        call: first,
    },
    Bug {
        file: "experts/hopper/produce.cuh",
        from: "K::GATED ? column : column + half * HALF_COLUMNS",
        to: "column",
        shows: Wrong,
        call: second,
    },
    Bug {
        file: "experts/hopper/produce.cuh",
        from: "        int turn = 0;\n",
        to: "        int turn = 0;\n        if (unit.of_block<K::Way::BLOCKS>(rank).count == 0) {\n            continue;\n        }\n",
        shows: Report("deadlock"),
        call: first,
    },
    Bug {
        file: "experts/hopper/produce.cuh",
        from: "        const int halves = warpgroups(rows);\n",
        to: "        const int halves = warpgroups(rows);\n        if (halves == 0) {\n            continue;\n        }\n",
        shows: Report("deadlock"),
        call: second,
    },
    Bug {
        file: "experts/hopper/produce.cuh",
        from: "rows.first + skip);",
        to: "rows.first);",
        shows: Wrong,
        call: second,
    },
    // Warpgroups that start one after the other.
    Bug {
        file: "experts/hopper/product.cuh",
        from: "            skew.started(warpgroup);\n            pass_over",
        to: "            pass_over",
        shows: Report("deadlock"),
        call: skewed,
    },
    Bug {
        file: "experts/hopper/product.cuh",
        from: "                is_started_ = true;\n",
        to: "",
        shows: Report("barrier|deadlock"),
        call: skewed,
    },
];

#[test]
fn every_planted_bug_is_found_in_every_order() {
    assert_found(BUGS, |product| product);
}
