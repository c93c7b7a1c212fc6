// Operands of wgmma in shared memory. They are looked at in detail and turned into numbers once for all warps that want
// the same; then each warp is checked against those who wrote them.
#pragma once

#include <cstdint>
#include <vector>

#include "memory.h"

namespace emu {

struct Wgmma;
struct Warp;

// Which rows (or columns) of which matrix an operand is.
struct OperandKey {
    uint32_t generation;  // of the block's shared memory
    Element element;
    uint64_t descriptor;
    bool transposed;
    uint32_t first, count;

    bool operator==(const OperandKey& other) const {
        return generation == other.generation && element == other.element && descriptor == other.descriptor &&
               transposed == other.transposed && first == other.first && count == other.count;
    }
};

struct Operand {
    OperandKey key{};
    uint64_t writes = 0;           // to its pages, when it was read
    std::vector<uint32_t> pages;   // that it lies in
    std::vector<uint32_t> pieces;  // addresses of its 16 bytes
    std::vector<Writer> writers;
    std::vector<float> values;  // value (mn, k) at [k * count + mn]
    uint32_t not_zero = 0;      // of each k, whether some value is not
    uint32_t not_finite = 0;
    uint32_t noted[8] = {};  // the clock of each warpgroup's last product that has noted its reads
};

// What is wrong with a descriptor, or null.
const char* refuse_descriptor(uint64_t descriptor);
// The operands as the product reads them now, checked and noted: the warp's 16 rows of A, and B.
const Operand& read_a(Warp& warp, const Wgmma& op);
const Operand& read_b(Warp& warp, const Wgmma& op);

// What was read last, which other warps may want next. It is the machine's, because a check that fails abandons the
// stack.
struct OperandCache {
    static constexpr size_t MOST = 16;
    Operand a;
    Operand b[MOST];
    size_t next = 0;
};

}  // namespace emu
