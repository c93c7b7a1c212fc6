// Which tokens a block has, and which of them see each other.
//
// Tiles of OWN tokens start where sequences do, so lengths decide how many there are, and lengths are on the device. The
// grid has T / OWN + B of them whatever the lengths: sequence b's tiles are numbered from cu_seqlens[b] / OWN + b, which
// leaves each sequence at least as many numbers as it has tiles. A block finds its sequence by binary search; one whose
// number is of no tile leaves.
#pragma once

#include "abi.h"
#include "device/block.cuh"
#include "device/partition.cuh"

namespace da_moe {

// Rows that a block keeps, and those it meets at a time. Every thread finishes one row.
constexpr int OWN = 128;
constexpr int WALK = 64;
constexpr int THREADS = OWN;
static_assert(OWN % WALK == 0, "a walk that starts at an own tile meets whole tiles");

// Whether rows are keys, reduced over the queries that they meet, or queries, reduced over keys.
__device__ __forceinline__ bool keeps_keys(const ImportanceQueryKey& p) { return p.measure <= MEASURE_RECEIVED_MEAN; }

__device__ __forceinline__ bool takes_part(const ImportanceQueryKey& p, int token) {
    return p.mask == nullptr || p.mask[token] != 0;
}

// A tile: its sequence's number, first token and length, and the tile's first row, counted from there.
struct SequenceTile {
    int index;
    int sequence;
    int length;
    int row;
};

__device__ __forceinline__ Partition sequences_of(const ImportanceQueryKey& p) {
    return {p.cu_seqlens, p.sequences, p.tokens};
}

// The tile of number `index`; the row lies past the end where there is no such tile. Whatever `cu_seqlens` holds, a
// token's own tile is found: this search turns wherever one for the token's sequence turns.
__device__ __forceinline__ SequenceTile find_sequence_tile(const ImportanceQueryKey& p, int index) {
    const Partition sequences = sequences_of(p);
    int low = 0;
    int high = p.sequences - 1;
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (sequences.start(middle) / OWN + middle <= index) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    const Range range = sequences.range(low);
    return {low, range.first, range.end - range.first, (index - (range.first / OWN + low)) * OWN};
}

// Whether a warp's 32 rows of the tile begin before the end.
__device__ __forceinline__ bool has_rows(const SequenceTile& place, int warp) { return place.row + warp * WARP < place.length; }

// Rows from `first` to before `end`, counted from the sequence's first token.
struct Span {
    int first;
    int end;
};

// What the rows of a tile meet: under a causal mask keys meet no earlier query, and queries no later key.
__device__ __forceinline__ Span walk_of(const ImportanceQueryKey& p, const SequenceTile& place) {
    if (!p.causal) {
        return {0, place.length};
    }
    return keeps_keys(p) ? Span{place.row, place.length} : Span{0, min(place.row + OWN, place.length)};
}

// For the row of each thread: how many tokens that take part it sees, or is seen by. By all threads of the block.
__device__ __forceinline__ int count_visible(const ImportanceQueryKey& p, const SequenceTile& place, int* scratch) {
    const int row = place.row + static_cast<int>(threadIdx.x);
    if (p.mask == nullptr) {
        return !p.causal ? place.length : keeps_keys(p) ? place.length - row : row + 1;
    }
    // Tokens of other tiles count for every row.
    const int tile_end = min(place.row + OWN, place.length);
    const Span before = {0, p.causal && keeps_keys(p) ? 0 : place.row};
    const Span after = {tile_end, p.causal && !keeps_keys(p) ? tile_end : place.length};
    int mine = 0;
    for (int i = before.first + static_cast<int>(threadIdx.x); i < before.end; i += THREADS) {
        mine += takes_part(p, place.sequence + i);
    }
    for (int i = after.first + static_cast<int>(threadIdx.x); i < after.end; i += THREADS) {
        mine += takes_part(p, place.sequence + i);
    }
    const int outside = block_sum(mine, scratch);
    const int own = row < tile_end && takes_part(p, place.sequence + row) ? 1 : 0;
    int inside;
    const int earlier = block_exclusive_sum(own, scratch, inside);
    if (!p.causal) {
        return outside + inside;
    }
    return outside + (keeps_keys(p) ? inside - earlier : earlier + own);
}

}  // namespace da_moe
