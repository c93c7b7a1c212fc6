// ldmatrix and mma.sync: fragments are spread over the lanes as the PTX manual draws them.
#include "collective.h"
#include "emulator/half.h"

namespace emu {

namespace {

float element_value(Element element, uint16_t bits) {
    return element == Element::Bf16 ? bfloat16_value(bits) : half_value(bits);
}

uint16_t half_word(uint32_t word, unsigned number) {
    return static_cast<uint16_t>(word >> (16 * number));
}

// The rows of matrices are 16 bytes each, and lane 8 * q + r brings the address of row r of matrix q.
template <class Row>
void count_rows(Warp& warp, unsigned matrices, Site site, Row row) {
    Traffic& traffic = warp.block->machine->traffic;
    if (!traffic.counting) {
        return;
    }
    WarpAccess access{{}, 0, 16};
    for (unsigned lane = 0; lane < matrices * 8; lane++) {
        access.at[lane] = row(lane);
        access.lanes |= 1u << lane;
    }
    traffic.add(Space::Shared, site, access);
}

struct LoadRecord {
    unsigned matrices;
    bool transpose;
    uint32_t row;
    uint32_t* out;
    Site site;
};

// Each lane gets two neighbours of a row, or of a column.
void load_fragments(Warp& warp, void** records, uint32_t) {
    const unsigned char* arena = warp.block->shared.arena;
    const LoadRecord& first = *static_cast<LoadRecord*>(records[0]);
    count_rows(warp, first.matrices, first.site,
               [&](unsigned lane) { return static_cast<LoadRecord*>(records[lane])->row; });
    for (unsigned q = 0; q < first.matrices; q++) {
        for (unsigned lane = 0; lane < WARP; lane++) {
            uint16_t pair[2];
            for (unsigned e = 0; e < 2; e++) {
                const unsigned major = lane / 4, minor = lane % 4 * 2 + e;
                const unsigned row = first.transpose ? minor : major;
                const unsigned column = first.transpose ? major : minor;
                memcpy(&pair[e], arena + static_cast<LoadRecord*>(records[q * 8 + row])->row + column * 2, 2);
            }
            static_cast<LoadRecord*>(records[lane])->out[q] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
        }
    }
}

struct MmaRecord {
    Element element;
    float* d;
    const uint32_t *a, *b;
    const float* c;
};

// The accumulators of a 16 by 8 product, gathered from the lanes and handed back to them.
void gather(float (&d)[16][8], void** records) {
    for (unsigned lane = 0; lane < WARP; lane++) {
        const MmaRecord& record = *static_cast<MmaRecord*>(records[lane]);
        for (unsigned i = 0; i < 4; i++) {
            d[lane / 4 + 8 * (i >> 1)][lane % 4 * 2 + (i & 1)] = record.c[i];
        }
    }
}

void scatter(const float (&d)[16][8], void** records) {
    for (unsigned lane = 0; lane < WARP; lane++) {
        const MmaRecord& record = *static_cast<MmaRecord*>(records[lane]);
        for (unsigned i = 0; i < 4; i++) {
            record.d[i] = d[lane / 4 + 8 * (i >> 1)][lane % 4 * 2 + (i & 1)];
        }
    }
}

template <unsigned DEPTH>
void add_products(Warp& warp, float (&d)[16][8], const float (&a)[16][DEPTH], const float (&b)[DEPTH][8]) {
    warp.block->machine->work.multiply_adds += 16 * 8 * DEPTH;
    for (unsigned i = 0; i < 16; i++) {
        for (unsigned k = 0; k < DEPTH; k++) {
            for (unsigned j = 0; j < 8; j++) {
                d[i][j] += a[i][k] * b[k][j];
            }
        }
    }
}

void multiply(Warp& warp, void** records, uint32_t) {
    float a[16][16], b[16][8], d[16][8];
    gather(d, records);
    for (unsigned lane = 0; lane < WARP; lane++) {
        const MmaRecord& record = *static_cast<MmaRecord*>(records[lane]);
        const unsigned group = lane / 4, in_group = lane % 4;
        for (unsigned i = 0; i < 4; i++) {
            for (unsigned e = 0; e < 2; e++) {
                a[group + 8 * (i & 1)][in_group * 2 + e + 8 * (i >> 1)] =
                    element_value(record.element, half_word(record.a[i], e));
            }
        }
        for (unsigned i = 0; i < 2; i++) {
            for (unsigned e = 0; e < 2; e++) {
                b[in_group * 2 + e + 8 * i][group] = element_value(record.element, half_word(record.b[i], e));
            }
        }
    }
    add_products(warp, d, a, b);
    scatter(d, records);
}

// The lower 13 bits of a TF32 operand are ignored.
float tf32_value(uint32_t bits) {
    bits &= 0xffffe000u;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

void multiply_tf32(Warp& warp, void** records, uint32_t) {
    float a[16][8], b[8][8], d[16][8];
    gather(d, records);
    for (unsigned lane = 0; lane < WARP; lane++) {
        const MmaRecord& record = *static_cast<MmaRecord*>(records[lane]);
        const unsigned group = lane / 4, in_group = lane % 4;
        for (unsigned i = 0; i < 4; i++) {
            a[group + 8 * (i & 1)][in_group + 4 * (i >> 1)] = tf32_value(record.a[i]);
        }
        for (unsigned i = 0; i < 2; i++) {
            b[in_group + 4 * i][group] = tf32_value(record.b[i]);
        }
    }
    add_products(warp, d, a, b);
    scatter(d, records);
}

}  // namespace

void ldmatrix(unsigned matrices, bool transpose, uint32_t row, uint32_t* out, Location here) {
    Thread& self = current();
    const Site site = site_of(__builtin_return_address(0));
    if (self.lane < matrices * 8) {
        if (row % 16 != 0) {
            self.machine->fail(Kind::Misaligned, site, "ldmatrix of a row at shared address 0x%x, not a multiple of 16",
                               row);
        }
        shared_pointer(self, row, 16, AccessKind::Read, "ldmatrix read", site);
        self.machine->work.shared_read_bytes += 16;
    }
    LoadRecord record{matrices, transpose, row, out, site};
    warp_collective(self, "ldmatrix", FULL_MASK, &record, load_fragments, here, site);
}

void mma_m16n8k16(Element element, float* d, const uint32_t* a, const uint32_t* b, const float* c, Location here) {
    MmaRecord record{element, d, a, b, c};
    const Site site = site_of(__builtin_return_address(0));
    warp_collective(current(), "mma.sync", FULL_MASK, &record, multiply, here, site);
}

uint32_t round_tf32(uint32_t bits) {
    // Infinity stays. NaN is not carried over into another number, nor left with a payload in the lower bits alone, which a
    // product ignores: the hardware has one NaN.
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return 0x7fffffffu;
    }
    const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
    return finite ? (bits + 0x1000u) & 0xffffe000u : bits;
}

void mma_m16n8k8_tf32(float* d, const uint32_t* a, const uint32_t* b, const float* c, Location here) {
    MmaRecord record{Element::Bf16, d, a, b, c};
    const Site site = site_of(__builtin_return_address(0));
    warp_collective(current(), "mma.sync", FULL_MASK, &record, multiply_tf32, here, site);
}

}  // namespace emu
