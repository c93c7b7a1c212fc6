// Tiles of queries or keys in shared memory: rows of PIECES pieces of 16 bytes, a chunk of the width at a time.
//
// Piece i of a row lies where i is exclusive-ored with the row's number, so that the eight rows that `ldmatrix`, or eight
// lanes of a 16-byte load, read at once lie in different banks.
#pragma once

#include "device/ptx.cuh"
#include "device/storage.cuh"
#include "place.cuh"

namespace da_moe {

constexpr int PIECE_BYTES = 16;

// Where a piece lies, in pieces. Rows of less than 128 bytes share the banks' width.
template <int PIECES>
__device__ __forceinline__ int piece_at(int row, int piece) {
    return row * PIECES + (piece ^ row / (8 / PIECES) % PIECES);
}

// The queries or keys of one head and sequence.
template <class S>
struct Rows {
    const S* data;
    int64_t stride;
    // Of the sequence's first token, or null.
    const uint8_t* mask;
    int count;
};

template <class S>
__device__ __forceinline__ Rows<S> rows_of(const ImportanceQueryKey& p, const Place& place, bool keys) {
    const int head = static_cast<int>(blockIdx.y) / (keys ? p.heads_per_key : 1);
    const int64_t stride = keys ? p.k_token_stride : p.q_token_stride;
    const S* data = static_cast<const S*>(keys ? p.k : p.q) + head * (keys ? p.k_head_stride : p.q_head_stride);
    const uint8_t* mask = p.mask == nullptr ? nullptr : p.mask + place.sequence;
    return {data + place.sequence * stride, stride, mask, place.length};
}

// Starts the copy of COUNT rows from row `first`, elements from `column`. What is past the rows or the width becomes zero,
// and so do rows that take no part, whose contents may be anything. Only what is read is written: rows before `end`, and
// the pieces that a product of STEP elements needs.
template <int COUNT, int PIECES, int STEP, class S>
__device__ __forceinline__ void load_tile(const ImportanceQueryKey& p, uint4* tile, const Rows<S>& rows, int first,
                                          int end, int column) {
    constexpr int N = PIECE_BYTES / static_cast<int>(sizeof(S));
    static_assert(COUNT * PIECES % THREADS == 0, "every thread copies as many pieces");
#pragma unroll
    for (int i = 0; i < COUNT * PIECES / THREADS; i++) {
        const int index = i * THREADS + static_cast<int>(threadIdx.x);
        const int row = first + index / PIECES;
        const int from = column + index % PIECES * N;
        if (row >= end || from / STEP * STEP >= p.width) {
            continue;
        }
        const bool there = row < rows.count && (rows.mask == nullptr || rows.mask[row] != 0);
        const int elements = there ? min(max(p.width - from, 0), N) : 0;
        const S* source = rows.data + (elements > 0 ? row * rows.stride + from : 0);
        uint4* target = tile + piece_at<PIECES>(index / PIECES, index % PIECES);
        if (p.wide) {
            ptx::cp_async_16(ptx::shared_address(target), source, elements * static_cast<int>(sizeof(S)));
        } else {
            Vector<S, N> piece;
#pragma unroll
            for (int n = 0; n < N; n++) {
                piece.elements[n] = n < elements ? source[n] : from_float<S>(0.0f);
            }
            piece.store(reinterpret_cast<S*>(target));
        }
    }
}

}  // namespace da_moe
