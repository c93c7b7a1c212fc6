// Tiles of queries or keys in shared memory: rows of PIECES pieces of 16 bytes, a chunk of the width at a time.
//
// Piece i of a row lies where i is exclusive-ored with the row's number, so that the eight rows that `ldmatrix`, or eight
// lanes of a 16-byte load, read at once lie in different banks.
#pragma once

#include "device/ptx.cuh"
#include "device/storage.cuh"
#include "importance/attention/sequence_tile.cuh"

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
    int count;
};

template <class S>
__device__ __forceinline__ Rows<S> rows_of(const ImportanceQueryKey& p, const SequenceTile& place, bool keys) {
    const int head = static_cast<int>(blockIdx.y) / (keys ? p.heads_per_key : 1);
    const int64_t stride = keys ? p.k_token_stride : p.q_token_stride;
    const S* data = static_cast<const S*>(keys ? p.k : p.q) + head * (keys ? p.k_head_stride : p.q_head_stride);
    return {data + place.sequence * stride, stride, place.length};
}

// Starts the copy of COUNT rows from row `first`, elements from `column`. What is past the rows or the width becomes zero.
// Only what is read is written: `count` rows, and the pieces that a product of STEP elements needs.
//
// A thread copies one piece of every so-manieth row, so that what it asks of a copy is where the row is and whether it is
// there; nothing that has to be loaded before.
template <int COUNT, int PIECES, int STEP, bool WIDE, class S>
__device__ __forceinline__ void load_tile(const ImportanceQueryKey& p, uint4* tile, const Rows<S>& rows, int first,
                                          int count, int column) {
    constexpr int N = PIECE_BYTES / static_cast<int>(sizeof(S));
    constexpr int APART = THREADS / PIECES;
    static_assert(THREADS % PIECES == 0 && COUNT % APART == 0, "every thread copies as many pieces");
    static_assert(APART % 8 == 0, "a thread's pieces lie at the same place in their rows");
    const int piece = static_cast<int>(threadIdx.x) % PIECES;
    const int row = static_cast<int>(threadIdx.x) / PIECES;
    const int from = column + piece * N;
    if (from / STEP * STEP >= p.width) {
        return;
    }
    const int elements = min(max(p.width - from, 0), N);
    const S* source = rows.data + (first + row) * rows.stride + from;
    uint4* target = tile + piece_at<PIECES>(row, piece);
#pragma unroll(WIDE ? COUNT / APART : 1)
    for (int further = 0; further < COUNT; further += APART) {
        // Known when it is compiled where all rows are wanted.
        if (count < COUNT && row + further >= count) {
            continue;
        }
        const S* of_row = source + further * rows.stride;
        const int copied = first + row + further < rows.count ? elements : 0;
        uint4* to = target + further * PIECES;
        if constexpr (WIDE) {
            ptx::cp_async_16(ptx::shared_address(to), of_row, copied * static_cast<int>(sizeof(S)));
        } else {
            Vector<S, N> values;
#pragma unroll
            for (int n = 0; n < N; n++) {
                values.elements[n] = n < copied ? of_row[n] : from_float<S>(0.0f);
            }
            values.store(reinterpret_cast<S*>(to));
        }
    }
}

}  // namespace da_moe
