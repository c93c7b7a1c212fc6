// wgmma: matrix products that read operands from shared memory, and A from registers too, while the warp goes on.
//
// Each warp computes its 16 of the warpgroup's 64 rows. The product runs as late as it may, when it is waited for, and
// its reads are those of an agent of its own. Until then the accumulators hold poison.
#include "collective.h"
#include "fragment.h"

namespace emu {

namespace {

constexpr int MAX_N = 256;
constexpr unsigned MAX_WAIT = 7;

// The fields of a shared memory descriptor.
struct Descriptor {
    uint32_t start, leading, stride, swizzle;

    explicit Descriptor(uint64_t bits)
        : start(static_cast<uint32_t>(bits & 0x3fff) << 4),
          leading(static_cast<uint32_t>(bits >> 16 & 0x3fff) << 4),
          stride(static_cast<uint32_t>(bits >> 32 & 0x3fff) << 4) {
        constexpr uint32_t widths[] = {0, 128, 64, 32};
        swizzle = widths[bits >> 62];
    }

    // What is wrong with it, or null.
    static const char* refused(uint64_t bits) {
        constexpr uint64_t unused = 3ull << 14 | 3ull << 30 | 7ull << 46 | 0x3ffull << 52;
        constexpr uint64_t base_offset = 7ull << 49;
        if ((bits & unused) != 0) {
            return "bits that mean nothing";
        }
        if ((bits & base_offset) != 0) {
            return "a base offset, which the emulator does not know";
        }
        // The pattern repeats after eight rows. Going along k moves the start within a row.
        const Descriptor descriptor(bits);
        if (descriptor.swizzle != 0 && descriptor.start % (descriptor.swizzle * 8) / 128 != 0) {
            return "a start within the pattern of its swizzle and no base offset";
        }
        return nullptr;
    }

    // The shared address of element (mn, k) in the manual's canonical layouts. Only elements of two bytes can be
    // transposed.
    uint32_t address(uint32_t mn, uint32_t k, bool transposed, uint32_t bytes) const {
        uint32_t linear = start;
        if (!transposed && swizzle != 0) {
            linear += mn / 8 * stride + mn % 8 * swizzle + k * bytes;
        } else if (!transposed) {
            linear += mn / 8 * stride + k * bytes / 16 * leading + mn % 8 * 16 + k * bytes % 16;
        } else {
            const uint32_t width = swizzle != 0 ? swizzle / 2 : 8;
            const uint32_t next_mn = swizzle != 0 ? leading : stride;
            const uint32_t next_k = swizzle != 0 ? stride : leading;
            linear += mn / width * next_mn + mn % width * 2 + k % 8 * width * 2 + k / 8 * next_k;
        }
        return swizzled(linear, swizzle);
    }
};

// Reads an element, and checks every 16 bytes of the operands once.
float read_element(Block& block, const Wgmma& op, uint32_t address) {
    auto& checked = block.machine->wgmma_scratch.checked;
    const uint32_t chunk = address / 16;
    if (chunk >= checked.size() || !checked[chunk]) {
        access_shared(block, address & ~15u, 16, {op.agent, AccessKind::Read, "wgmma operand read", op.site, true});
        checked[chunk] = true;
    }
    return element_value(op.operands.element, block.shared.arena + address);
}

// Where accumulator i of a lane lies in the warp's 16 rows.
int accumulator_row(int lane, int i) {
    return lane / 4 + 8 * (i / 2 % 2);
}
int accumulator_column(int lane, int i) {
    return 8 * (i / 4) + 2 * (lane % 4) + i % 2;
}

void multiply_rows(const Wgmma& op, Accumulators& accumulators, const WgmmaScratch& scratch) {
    const int n = op.operands.n, depth = static_cast<int>(depth_of(op.operands.element));
    for (int lane = 0; lane < static_cast<int>(WARP); lane++) {
        for (int i = 0; i < n / 2; i++) {
            float& value = accumulators.values[static_cast<size_t>(i * 32 + lane)];
            const float* row = &scratch.a[static_cast<size_t>(accumulator_row(lane, i) * depth)];
            float sum = op.operands.scale_d ? value : 0.0f;
            for (int k = 0; k < depth; k++) {
                sum += row[k] * scratch.b[static_cast<size_t>(k * n + accumulator_column(lane, i))];
            }
            value = sum;
        }
    }
}

// The warp's 16 rows of A.
void read_a(Warp& warp, const Wgmma& op) {
    Block& block = *warp.block;
    const WgmmaOperands& operands = op.operands;
    const uint32_t depth = depth_of(operands.element);
    std::vector<float>& a = block.machine->wgmma_scratch.a;
    a.resize(16 * depth);
    if (operands.a_words) {
        for (unsigned lane = 0; lane < WARP; lane++) {
            const WgmmaFragment& fragment = op.fragments[lane];
            if (memcmp(fragment.at, fragment.words, sizeof fragment.words) != 0) {
                block.machine->fail(Kind::Async, op.site,
                                    "wgmma of which lane %u changes A's registers before the wait", lane);
            }
            unpack_a(operands.element, lane, fragment.words,
                     [&](unsigned row, unsigned k, float value) { a[row * depth + k] = value; });
        }
        return;
    }
    const Descriptor place(operands.a);
    const uint32_t first_row = warp.number % 4 * 16;
    for (uint32_t i = 0; i < 16; i++) {
        for (uint32_t k = 0; k < depth; k++) {
            const uint32_t at = place.address(first_row + i, k, operands.transpose_a, element_bytes(operands.element));
            a[i * depth + k] = read_element(block, op, at);
        }
    }
}

void read_b(Block& block, const Wgmma& op) {
    const WgmmaOperands& operands = op.operands;
    const Descriptor place(operands.b);
    const auto n = static_cast<uint32_t>(operands.n);
    const uint32_t depth = depth_of(operands.element);
    std::vector<float>& b = block.machine->wgmma_scratch.b;
    b.resize(depth * n);
    for (uint32_t k = 0; k < depth; k++) {
        for (uint32_t j = 0; j < n; j++) {
            const uint32_t at = place.address(j, k, operands.transpose_b, element_bytes(operands.element));
            b[k * n + j] = read_element(block, op, at);
        }
    }
}

void run(Warp& warp, Wgmma& op) {
    Block& block = *warp.block;
    uint32_t& clock = block.engine_clocks[op.agent.index];
    op.agent.clock = ++clock;
    op.agent.known.own.unique().at[op.agent.index] = clock;

    WgmmaScratch& scratch = block.machine->wgmma_scratch;
    scratch.checked.assign(SHARED_ARENA / 16, false);
    read_a(warp, op);
    read_b(block, op);

    const WgmmaOperands& operands = op.operands;
    Accumulators& accumulators = warp.wgmma.accumulators[op.accumulators[0]];
    multiply_rows(op, accumulators, scratch);
    block.machine->work.multiply_adds += uint64_t{16} * depth_of(operands.element) * static_cast<uint64_t>(operands.n);
    if (--accumulators.pending == 0) {
        for (int lane = 0; lane < static_cast<int>(WARP); lane++) {
            for (int i = 0; i < operands.n / 2; i++) {
                op.accumulators[lane][i] = accumulators.values[static_cast<size_t>(i * 32 + lane)];
            }
        }
        warp.wgmma.accumulators.erase(op.accumulators[0]);
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
    for (unsigned lane = 0; lane < WARP; lane++) {
        const IssueRecord& record = *static_cast<IssueRecord*>(records[lane]);
        op.accumulators[lane] = record.d;
        if (const uint32_t* words = record.operands->a_words) {
            op.fragments.push_back({words, {words[0], words[1], words[2], words[3]}});
        }
    }
    Accumulators& accumulators = warp.wgmma.accumulators[op.accumulators[0]];
    if (accumulators.pending++ == 0) {
        const auto count = static_cast<size_t>(op.operands.n / 2);
        accumulators.values.resize(count * WARP);
        for (unsigned lane = 0; lane < WARP; lane++) {
            for (size_t i = 0; i < count; i++) {
                accumulators.values[i * WARP + lane] = op.accumulators[lane][i];
            }
            memset(op.accumulators[lane], warp.block->machine->poison, count * sizeof(float));
        }
    }
    warp.wgmma.issued++;
    warp.wgmma.open.push_back(op);
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

// Four whole warps make a warpgroup.
void check_warpgroup(Thread& self, const char* name, Site site) {
    const bool whole = self.block->thread_count >= (self.warp->number / 4 + 1) * 4 * WARP;
    if (!whole) {
        self.machine->fail(Kind::Divergence, site, "%s in a warpgroup of less than 128 threads", name);
    }
}

}  // namespace

void wgmma_fence(Location here) {
    Thread& self = current();
    const Site site = site_of(__builtin_return_address(0));
    check_warpgroup(self, "wgmma.fence", site);
    warp_collective(self, "wgmma.fence", FULL_MASK, nullptr, nullptr, here, site);
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
        if (const char* wrong = Descriptor::refused(descriptor)) {
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
