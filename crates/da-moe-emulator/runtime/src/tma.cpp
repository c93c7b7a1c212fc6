// The tensor memory accelerator: boxes of matrices in global memory, copied to shared memory while threads run.
#include "machine.h"

namespace emu {

namespace {

constexpr uint64_t MAP_MAGIC = 0x70616d726f736e65;

EncodedMap decode(const CUtensorMap* map) {
    EncodedMap encoded;
    memcpy(&encoded, map, sizeof encoded);
    return encoded;
}

uint32_t box_bytes(const TensorMapShape& shape) {
    return shape.box_inner * shape.box_outer * shape.element_bytes;
}

// What of a box's row lies inside the matrix: elements [first, end), and whether the row does.
struct Span {
    int64_t first, end;
    bool inside;
};

Span span_of(const TensorMapShape& shape, int64_t x, int64_t row) {
    const int64_t first = std::max<int64_t>(x, 0);
    const int64_t end = std::min<int64_t>(x + shape.box_inner, static_cast<int64_t>(shape.inner));
    return {first, end, row >= 0 && row < static_cast<int64_t>(shape.outer) && first < end};
}

uint64_t element_address(const EncodedMap& map, int64_t x, int64_t row) {
    return map.address + static_cast<uint64_t>(row) * map.shape.row_bytes +
           static_cast<uint64_t>(x) * map.shape.element_bytes;
}

// Elements outside the matrix are zero.
void copy_element(Block& block, const TmaCopy& copy, uint32_t column, uint32_t row) {
    const EncodedMap& map = copy.map;
    const uint32_t bytes = map.shape.element_bytes;
    const uint32_t offset = (row * map.shape.box_inner + column) * bytes;
    unsigned char* target = block.shared.arena + swizzled(copy.target + offset, map.shape.swizzle);
    const int64_t x = static_cast<int64_t>(copy.x) + column;
    const int64_t y = static_cast<int64_t>(copy.y) + row;
    const Span span = span_of(map.shape, copy.x, y);
    if (span.inside && x >= span.first && x < span.end) {
        memcpy(target, reinterpret_cast<const void*>(element_address(map, x, y)), bytes);
    } else {
        memset(target, 0, bytes);
    }
}

}  // namespace

const char* encode_tensor_map_2d(void* map, uint64_t address, const TensorMapShape& shape) {
    constexpr uint64_t most_elements = uint64_t{1} << 32, row_limit = uint64_t{1} << 40;
    const uint64_t row = static_cast<uint64_t>(shape.box_inner) * shape.element_bytes;
    const uint32_t element = shape.element_bytes;
    if (element != 1 && element != 2 && element != 4 && element != 8) {
        return "elements have 1, 2, 4 or 8 bytes";
    }
    if (address % 16 != 0 || shape.row_bytes % 16 != 0) {
        return "the address and the distance of rows are multiples of 16 bytes";
    }
    if (shape.inner == 0 || shape.outer == 0 || shape.inner > most_elements || shape.outer > most_elements) {
        return "a matrix has 1 to 2^32 elements each way";
    }
    if (shape.inner * element > shape.row_bytes || shape.row_bytes >= row_limit) {
        return "rows do not overlap, and begin less than 2^40 bytes apart";
    }
    if (shape.box_inner == 0 || shape.box_outer == 0 || shape.box_inner > 256 || shape.box_outer > 256) {
        return "a box has 1 to 256 elements each way";
    }
    if (row % 16 != 0) {
        return "a row of a box is a multiple of 16 bytes";
    }
    if (shape.swizzle != 0 && shape.swizzle != 32 && shape.swizzle != 64 && shape.swizzle != 128) {
        return "a swizzle is 0, 32, 64 or 128 bytes wide";
    }
    // The driver takes narrower ones too; where the hardware puts their rows is not known here.
    if (shape.swizzle != 0 && row != shape.swizzle) {
        return "a row of a box is as wide as the swizzle";
    }
    const EncodedMap encoded{MAP_MAGIC, address, shape};
    memset(map, 0, sizeof(CUtensorMap));
    memcpy(map, &encoded, sizeof encoded);
    return nullptr;
}

uint32_t swizzled(uint32_t address, uint32_t width) {
    const uint32_t row = address >> 7;
    switch (width) {
        case 128:
            return address ^ (row & 7) << 4;
        case 64:
            return address ^ (row & 3) << 4;
        case 32:
            return address ^ (row & 1) << 4;
        default:
            return address;
    }
}

void fence_proxy_async() {
    Thread& self = current();
    self.proxy_fence = self.agent.clock++;
}

void tma_load_2d(uint32_t target, const CUtensorMap* map, uint32_t mbarrier, int x, int y) {
    Thread& self = current();
    Machine& machine = *self.machine;
    Block& block = *self.block;
    const Site site = site_of(__builtin_return_address(0));
    const char* name = "cp.async.bulk.tensor";
    const EncodedMap encoded = decode(map);
    if (reinterpret_cast<uintptr_t>(map) % 64 != 0) {
        machine.fail(Kind::Misaligned, site, "%s with a tensor map that is not aligned to 64 bytes", name);
    }
    if (encoded.magic != MAP_MAGIC) {
        machine.fail(Kind::Async, site, "%s with a tensor map that the host has not encoded", name);
    }
    if (target % 128 != 0) {
        machine.fail(Kind::Misaligned, site, "%s to shared address 0x%x, not a multiple of 128", name, target);
    }
    if (!block.shared.holds(target, box_bytes(encoded.shape))) {
        machine.fail(Kind::OutOfBounds, site, "%s of %u bytes to %s, which leaves the array", name,
                     box_bytes(encoded.shape), block.shared.place(target).text);
    }
    check_mbarrier(block, mbarrier, name, site);
    for (uint32_t row = 0; row < encoded.shape.box_outer; row++) {
        const int64_t in_matrix = static_cast<int64_t>(y) + row;
        const Span span = span_of(encoded.shape, x, in_matrix);
        if (span.inside) {
            const auto bytes = static_cast<size_t>(span.end - span.first) * encoded.shape.element_bytes;
            access_global(machine, element_address(encoded, span.first, in_matrix), bytes,
                          {self.agent, AccessKind::Read, "TMA read", site, false});
            count_background(machine, bytes);
        }
    }
    // The engine knows what the thread knew.
    const Moment moment = self.agent.release();
    Agent agent;
    agent.block = block.number;
    agent.index = mbarrier / 8 % TMA_AGENTS;
    agent.barriers = Agent::NO_BARRIERS;
    agent.known = {moment.clocks(), moment.known.foreign};
    block.tma.push_back({target, mbarrier, encoded, x, y, agent, site});
}

void run_tma(Block& block, size_t number) {
    TmaCopy copy = std::move(block.tma[number]);
    block.tma.erase(block.tma.begin() + static_cast<long>(number));
    copy.agent.clock = ++block.engine_clocks[copy.agent.index];
    copy.agent.known.own.unique().at[copy.agent.index] = copy.agent.clock;
    const TensorMapShape& shape = copy.map.shape;
    const uint32_t bytes = box_bytes(shape);
    access_shared(block, copy.target, bytes, {copy.agent, AccessKind::Write, "TMA write", copy.site, true});
    for (uint32_t row = 0; row < shape.box_outer; row++) {
        for (uint32_t column = 0; column < shape.box_inner; column++) {
            copy_element(block, copy, column, row);
        }
    }
    block.machine->work.copied_bytes += bytes;
    mbarrier_complete_tx(block, copy.mbarrier, bytes, copy.agent.known, copy.site);
}

}  // namespace emu
