// Consecutive parts of a range, as offsets cut it: tokens into sequences, entries of a routing into tokens.
//
// That offsets on the device are in order is the caller's word, and memory is not trusted to it. Whatever they hold, every
// place belongs to exactly one part, and lies in the range of that part: where only places of its own are written, no two
// parts write the same, and all of them together write everything. Where offsets are in order a range is its part.
#pragma once

#include "device/platform.cuh"

namespace da_moe {

// From `first` to before `end`.
struct Range {
    int first;
    int end;
};

struct Partition {
    // `[parts + 1]`; not read where there is one part.
    const int32_t* offsets;
    int parts;
    // Places in all: what the last offset should be.
    int size;

    __device__ __forceinline__ int start(int part) const {
        if (part <= 0) {
            return 0;
        }
        return part >= parts ? size : min(max(offsets[part], 0), size);
    }

    __device__ __forceinline__ Range range(int part) const {
        const int first = start(part);
        return {first, max(start(part + 1), first)};
    }

    // The part that a place belongs to. After every step start(low) <= place < start(high + 1), in order or not.
    __device__ __forceinline__ int of(int place) const {
        int low = 0;
        int high = parts - 1;
        while (low < high) {
            const int middle = low + (high - low + 1) / 2;
            if (start(middle) <= place) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        return low;
    }
};

}  // namespace da_moe
