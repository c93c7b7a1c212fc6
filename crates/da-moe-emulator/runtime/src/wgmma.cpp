// wgmma: matrix products that read operands from shared memory, and A from registers too, while the warp goes on.
//
// Each warp computes its 16 of the warpgroup's 64 rows. The product runs as late as it may, when it is waited for, and
// its reads are those of an agent of its own. Until then the accumulators hold poison.
#include "collective.h"
#include "fragment.h"
#include "product.h"

namespace emu {

namespace {

constexpr int MAX_N = 256;
constexpr unsigned MAX_WAIT = 7;

// The warp's 16 rows of A out of the lanes' registers, which must be as they were.
void unpack_registers(Warp& warp, const Wgmma& op, float (&a)[16 * 16]) {
    const Element element = op.operands.element;
    for (unsigned lane = 0; lane < WARP; lane++) {
        const WgmmaFragment& fragment = op.fragments[lane];
        if (memcmp(fragment.at, fragment.words, sizeof fragment.words) != 0) {
            warp.block->machine->fail(Kind::Async, op.site,
                                      "wgmma of which lane %u changes A's registers before the wait", lane);
        }
        unpack_a(element, lane, fragment.words,
                 [&](unsigned row, unsigned k, float value) { a[k * 16 + row] = value; });
    }
}

// Gives the product its clock, by which those that overwrite its operands will know it.
void start(Warp& warp, Wgmma& op) {
    Block& block = *warp.block;
    op.agent.clock = ++block.engine_clocks[op.agent.index];
    std::vector<ProductReads>& products = block.shared.products;
    const size_t group = warp.number / 4;
    if (products.size() <= group) {
        products.resize(group + 1);
    }
    ProductReads& reads = products[group];
    reads.clocks.resize(SHARED_ARENA / 16);
    if (reads.sites.size() < op.agent.clock) {
        reads.sites.push_back(op.site);
    }
}

void run(Warp& warp, Wgmma& op) {
    start(warp, op);
    const WgmmaOperands& operands = op.operands;
    const auto depth = static_cast<int>(depth_of(operands.element));
    float a_registers[16 * 16];
    const float* a = a_registers;
    if (operands.a_words) {
        unpack_registers(warp, op, a_registers);
    } else {
        a = read_a(warp, op).values.data();
    }
    const Operand& b = read_b(warp, op);
    Accumulators& accumulators = warp.wgmma.accumulators[op.accumulators[0]];
    if (!operands.scale_d) {
        std::fill(accumulators.sums.begin(), accumulators.sums.end(), 0.0f);
    }
    multiply_rows(accumulators.sums, {a, b.values.data(), operands.n, depth, b.not_zero, b.not_finite});
    warp.block->machine->work.multiply_adds += uint64_t{16} * static_cast<uint64_t>(depth * operands.n);
    if (--accumulators.pending == 0) {
        scatter_accumulators(accumulators.sums, op.accumulators, operands.n);
        warp.wgmma.accumulators.erase(op.accumulators[0]);
        warp.wgmma.completed[op.accumulators[0]] = warp.wgmma.fences;
    }
}

struct IssueRecord {
    float* d;
    const WgmmaOperands* operands;
    Site site;
};

bool same(const WgmmaOperands& x, const WgmmaOperands& y) {
    return x.element == y.element && x.n == y.n && x.a == y.a && x.b == y.b && x.scale_d == y.scale_d &&
           x.transpose_a == y.transpose_a && x.transpose_b == y.transpose_b &&
           (x.a_words != nullptr) == (y.a_words != nullptr);
}

// All lanes, and all warps of the warpgroup, must mean the same product.
void check_issue(Warp& warp, void** records) {
    Machine& machine = *warp.block->machine;
    const IssueRecord& first = *static_cast<IssueRecord*>(records[0]);
    const WgmmaOperands& operands = *first.operands;
    for (unsigned lane = 1; lane < WARP; lane++) {
        if (!same(operands, *static_cast<IssueRecord*>(records[lane])->operands)) {
            machine.fail(Kind::Divergence, first.site, "wgmma of which lane %u has other descriptors than lane 0",
                         lane);
        }
    }
    WgmmaLog& log = warp.block->wgmma_logs[warp.number / 4];
    const auto descriptors = std::make_pair(operands.a, operands.b);
    if (log.size() == warp.wgmma.issued) {
        log.push_back(descriptors);
    } else if (log[warp.wgmma.issued] != descriptors) {
        machine.fail(Kind::Divergence, first.site, "wgmma of which warp %u has other descriptors than its warpgroup",
                     warp.number);
    }
}

// What every lane of the warp knew of its block when it last executed fence.proxy.async.
const Ref<Clocks>& fenced_by_all(Warp& warp) {
    WgmmaState& wgmma = warp.wgmma;
    if (!wgmma.fences_changed) {
        return wgmma.fenced;
    }
    wgmma.fences_changed = false;
    wgmma.fenced = warp.lanes[0]->proxy.known;
    for (const Thread* lane : warp.lanes) {
        const Ref<Clocks>& known = lane->proxy.known;
        if (!known) {
            wgmma.fenced = {};
            break;
        }
        if (!(known == wgmma.fenced)) {
            wgmma.fenced.unique().meet(*known);
        }
    }
    return wgmma.fenced;
}

// A wgmma that is not behind another on its accumulators is behind a fence, which is behind what used them before.
void check_fence(Warp& warp, const Accumulators& accumulators, const IssueRecord& first) {
    Machine& machine = *warp.block->machine;
    if (accumulators.pending > 0) {
        if (accumulators.n != first.operands->n || accumulators.element != first.operands->element) {
            machine.fail(Kind::Async, first.site,
                         "wgmma on the accumulators of one of another shape, which has not been waited for");
        }
        return;
    }
    const auto completed = warp.wgmma.completed.find(first.d);
    const size_t needed = completed == warp.wgmma.completed.end() ? 1 : completed->second + 1;
    if (warp.wgmma.fences < needed) {
        machine.fail(Kind::Async, first.site,
                     "wgmma without wgmma.fence after its accumulators were used otherwise, or as the warp's first");
    }
}

void issue(Warp& warp, void** records, uint32_t mask) {
    check_issue(warp, records);
    const IssueRecord& first = *static_cast<IssueRecord*>(records[0]);
    Wgmma op;
    op.operands = *first.operands;
    op.site = first.site;
    op.agent.block = warp.block->number;
    op.agent.index = TMA_AGENTS + warp.number;
    op.agent.barriers = Agent::NO_BARRIERS;
    op.agent.known = release_lanes(warp, mask);
    op.fenced = fenced_by_all(warp);
    for (unsigned lane = 0; lane < WARP; lane++) {
        const IssueRecord& record = *static_cast<IssueRecord*>(records[lane]);
        op.accumulators[lane] = record.d;
        if (const uint32_t* words = record.operands->a_words) {
            op.fragments.push_back({words, {words[0], words[1], words[2], words[3]}});
        }
    }
    Accumulators& accumulators = warp.wgmma.accumulators[op.accumulators[0]];
    check_fence(warp, accumulators, first);
    if (accumulators.pending++ == 0) {
        accumulators.n = op.operands.n;
        accumulators.element = op.operands.element;
        gather_accumulators(accumulators.sums, op.accumulators, op.operands.n);
        for (float* of_lane : op.accumulators) {
            memset(of_lane, warp.block->machine->poison, static_cast<size_t>(op.operands.n / 2) * sizeof(float));
        }
    }
    warp.wgmma.issued++;
    warp.wgmma.open.push_back(std::move(op));
}

void fence_registers(Warp& warp, void**, uint32_t) {
    warp.wgmma.fences++;
}

void commit(Warp& warp, void**, uint32_t) {
    warp.wgmma.groups.emplace_back();
    warp.wgmma.groups.back().swap(warp.wgmma.open);
}

void wait(Warp& warp, void** records, uint32_t) {
    const unsigned keep = *static_cast<unsigned*>(records[0]);
    auto& groups = warp.wgmma.groups;
    while (groups.size() > keep) {
        for (Wgmma& op : groups.front()) {
            run(warp, op);
        }
        groups.erase(groups.begin());
    }
    // The lanes know that the reads have happened.
    const uint32_t index = TMA_AGENTS + warp.number;
    for (Thread* lane : warp.lanes) {
        lane->agent.known.own.unique().at[index] = warp.block->engine_clocks[index];
    }
}

}  // namespace

void wgmma_fence(Location here) {
    Thread& self = current();
    const Site site = site_of(__builtin_return_address(0));
    check_warpgroup(self, "wgmma.fence", site);
    warp_collective(self, "wgmma.fence", FULL_MASK, nullptr, fence_registers, here, site);
}

void wgmma(float* d, const WgmmaOperands& operands, Location here) {
    Thread& self = current();
    const Site site = site_of(__builtin_return_address(0));
    check_warpgroup(self, "wgmma.mma_async", site);
    if (operands.n < 8 || operands.n > MAX_N || operands.n % 8 != 0) {
        self.machine->fail(Kind::Async, site, "wgmma with n = %d", operands.n);
    }
    if (operands.element == Element::Tf32 && (operands.transpose_a || operands.transpose_b)) {
        self.machine->fail(Kind::Async, site, "wgmma with a transposed operand of TF32");
    }
    if (operands.a_words && (operands.a != 0 || operands.transpose_a)) {
        self.machine->fail(Kind::Async, site, "wgmma with A in registers and a descriptor of it, or transposed");
    }
    for (uint64_t descriptor : {operands.a, operands.b}) {
        if (const char* wrong = refuse_descriptor(descriptor)) {
            self.machine->fail(Kind::Async, site, "wgmma with a descriptor 0x%016llx that has %s",
                               static_cast<unsigned long long>(descriptor), wrong);
        }
    }
    IssueRecord record{d, &operands, site};
    warp_collective(self, "wgmma.mma_async", FULL_MASK, &record, issue, here, site);
}

void wgmma_commit(Location here) {
    const Site site = site_of(__builtin_return_address(0));
    warp_collective(current(), "wgmma.commit_group", FULL_MASK, nullptr, commit, here, site);
}

void wgmma_wait(unsigned groups, Location here) {
    const Site site = site_of(__builtin_return_address(0));
    if (groups > MAX_WAIT) {
        current().machine->fail(Kind::Async, site, "wgmma.wait_group of %u groups: 0 to %u can be waited for", groups,
                                MAX_WAIT);
    }
    warp_collective(current(), "wgmma.wait_group", FULL_MASK, &groups, wait, here, site);
}

}  // namespace emu
