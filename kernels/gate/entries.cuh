// Where a token's entries lie among those of a routing from the caller, padded or compressed.
#pragma once

#include "device/platform.cuh"

namespace da_moe {

struct EntryRange {
    int first;
    int count;
};

// Token `token`'s range of the `entries` that a compressed layout has. Offsets that the caller promised to be in order are
// not trusted with memory.
__device__ __forceinline__ EntryRange compressed_range(const int32_t* offsets, int token, int entries) {
    const int first = min(max(offsets[token], 0), entries);
    return {first, min(max(offsets[token + 1], first), entries) - first};
}

}  // namespace da_moe
