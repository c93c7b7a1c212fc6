#include "operand.h"

#include <cmath>

#include "fragment.h"
#include "machine.h"

namespace emu {

namespace {

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

// Calls `visit(address, mn, k)` for all pieces of 16 bytes of which the operand consists.
template <class Visit>
void for_each_operand_piece(const OperandKey& key, Visit visit) {
    const Descriptor descriptor(key.descriptor);
    const uint32_t bytes = element_bytes(key.element), depth = depth_of(key.element), run = 16 / bytes;
    const uint32_t along_mn = key.transposed ? run : 1, along_k = key.transposed ? 1 : run;
    for (uint32_t k = 0; k < depth; k += along_k) {
        for (uint32_t mn = 0; mn < key.count; mn += along_mn) {
            visit(descriptor.address(key.first + mn, k, key.transposed, bytes), mn, k);
        }
    }
}

Access operand_access(const Wgmma& op) {
    Access access{op.agent, AccessKind::Read, "wgmma operand read", op.site, true};
    access.fenced = op.fenced ? &*op.fenced : nullptr;
    return access;
}

void find_pieces(Block& block, Operand& operand, const Access& access) {
    operand.writers.clear();
    operand.pieces.clear();
    operand.pages.clear();
    for_each_operand_piece(operand.key, [&](uint32_t address, uint32_t, uint32_t) {
        find_writers(block, address, 16, access, operand.writers);
        operand.pieces.push_back(address);
        const uint32_t page = address / SHARED_PAGE;
        if (std::find(operand.pages.begin(), operand.pages.end(), page) == operand.pages.end()) {
            operand.pages.push_back(page);
        }
    });
}

// Operands are mostly zeros in tests of small matrices, so pieces of nothing else are left as they are made.
void read_values(const Block& block, Operand& operand) {
    const OperandKey& key = operand.key;
    const uint32_t bytes = element_bytes(key.element), depth = depth_of(key.element), run = 16 / bytes;
    operand.values.assign(size_t{depth} * key.count, 0.0f);
    operand.not_zero = operand.not_finite = 0;
    for_each_operand_piece(key, [&](uint32_t address, uint32_t mn, uint32_t k) {
        const unsigned char* piece = block.shared.arena + address;
        uint64_t halves[2];
        memcpy(halves, piece, sizeof halves);
        if ((halves[0] | halves[1]) == 0) {
            return;
        }
        for (uint32_t i = 0; i < run; i++) {
            const float value = element_value(key.element, piece + i * bytes);
            const uint32_t at_k = key.transposed ? k : k + i, at_mn = key.transposed ? mn + i : mn;
            operand.values[at_k * key.count + at_mn] = value;
            operand.not_zero |= (value != 0.0f ? 1u : 0u) << at_k;
            operand.not_finite |= (std::isfinite(value) ? 0u : 1u) << at_k;
        }
    });
}

uint64_t writes_to(const SharedMemory& shared, const Operand& operand) {
    uint64_t writes = 0;
    for (uint32_t page : operand.pages) {
        writes += shared.writes[page];
    }
    return writes;
}

// What fails leaves the operand behind as one of no block.
void read_again(Warp& warp, const Wgmma& op, Operand& operand) {
    Block& block = *warp.block;
    operand.key.generation = 0;
    find_pieces(block, operand, operand_access(op));
    read_values(block, operand);
    operand.writes = writes_to(block.shared, operand);
    std::fill(std::begin(operand.noted), std::end(operand.noted), 0);
    operand.key.generation = block.shared.generation;
}

void check_and_note(Warp& warp, const Wgmma& op, Operand& operand) {
    check_writers(*warp.block, operand.writers, operand_access(op));
    // A warp that is ahead may have noted a later product already.
    const uint32_t group = warp.number / 4, clock = op.agent.clock;
    if (operand.noted[group] < clock) {
        operand.noted[group] = clock;
        std::vector<uint32_t>& clocks = warp.block->shared.products[group].clocks;
        for (uint32_t address : operand.pieces) {
            clocks[address / 16] = std::max(clocks[address / 16], clock);
        }
    }
}

}  // namespace

const char* refuse_descriptor(uint64_t descriptor) {
    return Descriptor::refused(descriptor);
}

const Operand& read_a(Warp& warp, const Wgmma& op) {
    Operand& operand = warp.block->machine->operands.a;
    const WgmmaOperands& of = op.operands;
    operand.key = {warp.block->shared.generation, of.element, of.a, of.transpose_a, warp.number % 4 * 16, 16};
    read_again(warp, op, operand);
    check_and_note(warp, op, operand);
    return operand;
}

const Operand& read_b(Warp& warp, const Wgmma& op) {
    const SharedMemory& shared = warp.block->shared;
    OperandCache& cache = warp.block->machine->operands;
    const WgmmaOperands& of = op.operands;
    const OperandKey key{shared.generation, of.element, of.b, of.transpose_b, 0, static_cast<uint32_t>(of.n)};
    auto found = std::find_if(std::begin(cache.b), std::end(cache.b),
                              [&](const Operand& operand) { return operand.key == key; });
    if (found == std::end(cache.b)) {
        found = &cache.b[cache.next++ % OperandCache::MOST];
        found->key = key;
        read_again(warp, op, *found);
    } else if (found->writes != writes_to(shared, *found)) {
        read_again(warp, op, *found);
    }
    check_and_note(warp, op, *found);
    return *found;
}

}  // namespace emu
