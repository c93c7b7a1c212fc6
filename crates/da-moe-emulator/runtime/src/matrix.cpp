// ldmatrix, stmatrix and mma.sync: fragments are spread over the lanes as the PTX manual draws them.
#include "collective.h"
#include "fragment.h"

#include <cmath>

namespace emu {

namespace {

// The rows of matrices are 16 bytes each, and lane 8 * q + r brings the address of row r of matrix q.
struct MatrixRecord {
    unsigned matrices;
    bool transpose;
    uint32_t row;
    uint32_t* words;
    Site site;
};

const MatrixRecord& matrix_record(void** records, unsigned lane) {
    return *static_cast<MatrixRecord*>(records[lane]);
}

void count_rows(Warp& warp, void** records) {
    Traffic& traffic = warp.block->machine->traffic;
    if (!traffic.counting) {
        return;
    }
    const MatrixRecord& first = matrix_record(records, 0);
    WarpAccess access{{}, 0, 16};
    for (unsigned lane = 0; lane < first.matrices * 8; lane++) {
        access.at[lane] = matrix_record(records, lane).row;
        access.lanes |= 1u << lane;
    }
    traffic.add(Space::Shared, first.site, access);
}

// Calls `move(word, element)` for both halves of all words of the lanes: each lane has two neighbours of a row of every
// matrix, or of a column.
template <class Move>
void for_each_element(Warp& warp, void** records, Move move) {
    unsigned char* arena = warp.block->shared.arena;
    const MatrixRecord& first = matrix_record(records, 0);
    for (unsigned q = 0; q < first.matrices; q++) {
        for (unsigned lane = 0; lane < WARP; lane++) {
            auto* words = reinterpret_cast<unsigned char*>(&matrix_record(records, lane).words[q]);
            for (unsigned e = 0; e < 2; e++) {
                const unsigned major = lane / 4, minor = lane % 4 * 2 + e;
                const unsigned row = first.transpose ? minor : major;
                const unsigned column = first.transpose ? major : minor;
                move(words + e * 2, arena + matrix_record(records, q * 8 + row).row + column * 2);
            }
        }
    }
}

void load_matrices(Warp& warp, void** records, uint32_t) {
    count_rows(warp, records);
    for_each_element(warp, records, [](void* word, const void* element) { memcpy(word, element, 2); });
}

void store_matrices(Warp& warp, void** records, uint32_t) {
    count_rows(warp, records);
    for_each_element(warp, records, [](const void* word, void* element) { memcpy(element, word, 2); });
}

// Every lane that brings a row is checked for it before the lanes meet.
void move_matrices(Thread& self, const char* name, AccessKind kind, MatrixRecord record, CollectiveAction action,
                   Location here) {
    Machine& machine = *self.machine;
    if (record.matrices != 1 && record.matrices != 2 && record.matrices != 4) {
        machine.fail(Kind::Async, record.site, "%s of %u matrices", name, record.matrices);
    }
    if (self.lane < record.matrices * 8) {
        if (record.row % 16 != 0) {
            machine.fail(Kind::Misaligned, record.site, "%s of a row at shared address 0x%x, not a multiple of 16",
                         name, record.row);
        }
        const char* access = kind == AccessKind::Read ? "ldmatrix read" : "stmatrix write";
        shared_pointer(self, record.row, 16, kind, access, record.site);
        machine.work.shared_read_bytes += kind == AccessKind::Read ? 16 : 0;
    }
    warp_collective(self, name, FULL_MASK, &record, action, here, record.site);
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

template <unsigned DEPTH>
void multiply(Warp& warp, void** records, uint32_t) {
    float a[16][DEPTH], b[DEPTH][8], d[16][8];
    gather(d, records);
    for (unsigned lane = 0; lane < WARP; lane++) {
        const MmaRecord& record = *static_cast<MmaRecord*>(records[lane]);
        unpack_a(record.element, lane, record.a, [&](unsigned row, unsigned k, float value) { a[row][k] = value; });
        for (unsigned half = 0; half < 2; half++) {
            unpack(record.element, lane, half, record.b[half],
                   [&](unsigned k, float value) { b[k][lane / 4] = value; });
        }
    }
    add_products(warp, d, a, b);
    scatter(d, records);
}

}  // namespace

void ldmatrix(unsigned matrices, bool transpose, uint32_t row, uint32_t* out, Location here) {
    const Site site = site_of(__builtin_return_address(0));
    move_matrices(current(), "ldmatrix", AccessKind::Read, {matrices, transpose, row, out, site}, load_matrices, here);
}

void stmatrix(unsigned matrices, bool transpose, uint32_t row, const uint32_t* in, Location here) {
    const Site site = site_of(__builtin_return_address(0));
    // The words are only read.
    const MatrixRecord record{matrices, transpose, row, const_cast<uint32_t*>(in), site};
    move_matrices(current(), "stmatrix", AccessKind::Write, record, store_matrices, here);
}

void mma_m16n8k16(Element element, float* d, const uint32_t* a, const uint32_t* b, const float* c, Location here) {
    MmaRecord record{element, d, a, b, c};
    const Site site = site_of(__builtin_return_address(0));
    if (element == Element::Tf32) {
        current().machine->fail(Kind::Async, site, "mma.sync.m16n8k16 of TF32, which goes 8 deep");
    }
    warp_collective(current(), "mma.sync", FULL_MASK, &record, multiply<16>, here, site);
}

float ex2(float x) {
    constexpr float smallest = 0x1p-126f;
    const float power = exp2f(x);
    return power < smallest ? 0.0f : power;
}

float rcp(float x) {
    constexpr float smallest = 0x1p-126f;
    const float result = 1.0f / (std::fabs(x) < smallest ? std::copysign(0.0f, x) : x);
    return std::fabs(result) < smallest ? std::copysign(0.0f, result) : result;
}

uint32_t round_tf32(uint32_t bits) {
    const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
    return (finite ? bits + 0x1000u : bits) & 0xffffe000u;
}

void mma_m16n8k8_tf32(float* d, const uint32_t* a, const uint32_t* b, const float* c, Location here) {
    MmaRecord record{Element::Tf32, d, a, b, c};
    const Site site = site_of(__builtin_return_address(0));
    warp_collective(current(), "mma.sync", FULL_MASK, &record, multiply<8>, here, site);
}

}  // namespace emu
