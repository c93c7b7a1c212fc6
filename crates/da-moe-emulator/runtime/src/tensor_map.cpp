#include "machine.h"

namespace emu {

namespace {

constexpr uint64_t MAP_MAGIC = 0x70616d726f736e65;
constexpr uint64_t MOST_ELEMENTS = uint64_t{1} << 32, STRIDE_LIMIT = uint64_t{1} << 40;
constexpr uint32_t MOST_OF_A_BOX = 256;

const char* refuse_dimension(const TensorMapShape& shape, uint32_t i) {
    if (shape.dims[i] == 0 || shape.dims[i] > MOST_ELEMENTS) {
        return "a tensor has 1 to 2^32 elements each way";
    }
    if (shape.box_dims[i] == 0 || shape.box_dims[i] > MOST_OF_A_BOX) {
        return "a box has 1 to 256 elements each way";
    }
    if (i == 0) {
        return nullptr;
    }
    const uint64_t stride = shape.strides[i - 1];
    if (stride % 16 != 0 || stride >= STRIDE_LIMIT) {
        return "strides are multiples of 16 bytes below 2^40";
    }
    if (stride == 0 && shape.dims[i] > 1) {
        return "only of a dimension of one element the stride may be zero";
    }
    return nullptr;
}

}  // namespace

const char* encode_tensor_map(void* map, uint64_t address, const TensorMapShape& shape) {
    const uint32_t element = shape.element_bytes;
    if (shape.rank == 0 || shape.rank > MAX_RANK) {
        return "a tensor has 1 to 5 dimensions";
    }
    if (element != 1 && element != 2 && element != 4 && element != 8) {
        return "elements have 1, 2, 4 or 8 bytes";
    }
    if (address % 16 != 0) {
        return "the address is a multiple of 16 bytes";
    }
    for (uint32_t i = 0; i < shape.rank; i++) {
        if (const char* wrong = refuse_dimension(shape, i)) {
            return wrong;
        }
    }
    // Other dimensions may be interleaved with each other: rows of tiles have their tiles closer together than their
    // rows.
    if (shape.rank > 1 && shape.dims[1] > 1 && shape.dims[0] * element > shape.strides[0]) {
        return "rows do not overlap";
    }
    const uint32_t row = row_bytes(shape);
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

EncodedMap open_tensor_map(Thread& self, const CUtensorMap* map, unsigned rank, const char* operation, Site site) {
    Machine& machine = *self.machine;
    if (reinterpret_cast<uintptr_t>(map) % 64 != 0) {
        machine.fail(Kind::Misaligned, site, "%s with a tensor map that is not aligned to 64 bytes", operation);
    }
    EncodedMap encoded;
    memcpy(&encoded, map, sizeof encoded);
    if (encoded.magic != MAP_MAGIC) {
        machine.fail(Kind::Async, site, "%s with a tensor map that the host has not encoded", operation);
    }
    if (rank != encoded.shape.rank) {
        machine.fail(Kind::Async, site, "%s with %u coordinates in a tensor of %u dimensions", operation, rank,
                     encoded.shape.rank);
    }
    return encoded;
}

void prefetch_tensor_map(const CUtensorMap* map) {
    EncodedMap encoded;
    memcpy(&encoded, map, sizeof encoded);
    open_tensor_map(current(), map, encoded.shape.rank, "prefetch.tensormap", site_of(__builtin_return_address(0)));
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

}  // namespace emu
