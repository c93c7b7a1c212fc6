// Tensors in global memory as the accelerator knows them, and the boxes of them that it moves.
#pragma once

#include <algorithm>
#include <cstdint>

#include "emulator/ptx.h"
#include "report.h"

namespace emu {

struct Thread;

constexpr uint32_t MAX_RANK = 5;

// What the host says of a tensor. In the order of `TensorMapShape` in Rust.
struct TensorMapShape {
    uint32_t rank, element_bytes, swizzle;
    uint64_t dims[MAX_RANK];         // elements, the innermost first
    uint64_t strides[MAX_RANK - 1];  // bytes, of all dimensions but the innermost
    uint32_t box_dims[MAX_RANK];
};

// What the emulator keeps in the 128 bytes of a CUtensorMap.
struct EncodedMap {
    uint64_t magic;
    uint64_t address;
    TensorMapShape shape;
};
static_assert(sizeof(EncodedMap) <= sizeof(CUtensorMap), "a tensor map has 128 bytes");

// Writes the map's 128 bytes. Null, or what the driver would refuse or the emulator does not know.
const char* encode_tensor_map(void* map, uint64_t address, const TensorMapShape& shape);
// The map that an instruction was given, if it may be used with coordinates of that rank.
EncodedMap open_tensor_map(Thread& self, const CUtensorMap* map, unsigned rank, const char* operation, Site site);
// Where the swizzle puts what lies at a shared address. The pattern goes by address bits, not by offsets.
uint32_t swizzled(uint32_t address, uint32_t width);

inline uint32_t row_bytes(const TensorMapShape& shape) {
    return shape.box_dims[0] * shape.element_bytes;
}
inline uint32_t rows_of(const TensorMapShape& shape) {
    uint32_t rows = 1;
    for (uint32_t i = 1; i < shape.rank; i++) {
        rows *= shape.box_dims[i];
    }
    return rows;
}
inline uint32_t box_bytes(const TensorMapShape& shape) {
    return rows_of(shape) * row_bytes(shape);
}

// A row of a box: `bytes` of it are in the tensor, from `address` on. They come `skipped` bytes after the row's start.
struct BoxRow {
    uint32_t offset;  // in the box, if that were not swizzled
    uint32_t skipped, bytes;
    uint64_t address;
};

// Calls `visit(row)` for every row of the box at `at`, those outside of the tensor included.
template <class Visit>
void for_each_row(const EncodedMap& map, const int* at, Visit visit) {
    const TensorMapShape& shape = map.shape;
    const int64_t x = at[0], width = shape.box_dims[0];
    const int64_t first = std::max<int64_t>(x, 0);
    const int64_t end = std::min<int64_t>(x + width, static_cast<int64_t>(shape.dims[0]));
    const uint32_t rows = rows_of(shape), bytes = row_bytes(shape);
    for (uint32_t number = 0; number < rows; number++) {
        BoxRow row{number * bytes, 0, 0, 0};
        bool inside = first < end;
        uint64_t address = map.address;
        uint32_t rest = number;
        for (uint32_t i = 1; i < shape.rank; i++) {
            const int64_t place = static_cast<int64_t>(at[i]) + rest % shape.box_dims[i];
            rest /= shape.box_dims[i];
            inside = inside && place >= 0 && place < static_cast<int64_t>(shape.dims[i]);
            address += static_cast<uint64_t>(place) * shape.strides[i - 1];
        }
        if (inside) {
            row.skipped = static_cast<uint32_t>(first - x) * shape.element_bytes;
            row.bytes = static_cast<uint32_t>(end - first) * shape.element_bytes;
            row.address = address + static_cast<uint64_t>(first) * shape.element_bytes;
        }
        visit(row);
    }
}

// Calls `visit(offset, shared address, bytes)` for the pieces of bytes [first, end) of a box that lie together in shared
// memory where it begins at `start`.
template <class Visit>
void for_each_piece(const TensorMapShape& shape, uint32_t start, uint32_t first, uint32_t end, Visit visit) {
    constexpr uint32_t piece = 16;
    while (first < end) {
        const uint32_t next = shape.swizzle == 0 ? end : std::min(end, (first / piece + 1) * piece);
        visit(first, swizzled(start + first, shape.swizzle), next - first);
        first = next;
    }
}

}  // namespace emu
