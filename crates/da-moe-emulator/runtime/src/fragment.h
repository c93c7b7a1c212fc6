// Elements of matrices for tensor cores, and how a word of a lane's fragment holds them.
#pragma once

#include <cstdint>
#include <cstring>

#include "emulator/half.h"
#include "emulator/ptx.h"

namespace emu {

// All products are 32 bytes deep.
constexpr unsigned DEPTH_BYTES = 32;

inline unsigned element_bytes(Element element) {
    return element == Element::Tf32 ? 4 : 2;
}
inline unsigned depth_of(Element element) {
    return DEPTH_BYTES / element_bytes(element);
}

inline float element_value(Element element, const void* at) {
    if (element == Element::Tf32) {
        uint32_t bits;
        memcpy(&bits, at, sizeof bits);
        bits &= 0xffffe000u;  // the lower 13 bits are ignored
        float value;
        memcpy(&value, &bits, sizeof value);
        return value;
    }
    uint16_t bits;
    memcpy(&bits, at, sizeof bits);
    return element == Element::Bf16 ? bfloat16_value(bits) : half_value(bits);
}

// Calls `put(k, value)` for the elements of a word that a lane holds of an operand, in the first half of the depth or
// the second. Four lanes share the row of A, or the column of B, that lane / 4 says.
template <class Put>
void unpack(Element element, unsigned lane, unsigned half, uint32_t word, Put put) {
    const unsigned bytes = element_bytes(element), count = 4 / bytes;
    for (unsigned e = 0; e < count; e++) {
        const unsigned k = lane % 4 * count + e + half * depth_of(element) / 2;
        put(k, element_value(element, reinterpret_cast<const unsigned char*>(&word) + e * bytes));
    }
}

// As above for the four words of 16 rows of A: `put(row, k, value)`.
template <class Put>
void unpack_a(Element element, unsigned lane, const uint32_t* words, Put put) {
    for (unsigned i = 0; i < 4; i++) {
        const unsigned row = lane / 4 + 8 * (i & 1);
        unpack(element, lane, i >> 1, words[i], [&](unsigned k, float value) { put(row, k, value); });
    }
}

}  // namespace emu
