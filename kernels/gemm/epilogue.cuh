// SPEC §5: what happens to a tile of products before it is written: bias, activation, and the rows that backward keeps.
//
// The products come through shared memory, so that this is a short loop over whole 128-bit pieces of rows instead of code
// for every register.
#pragma once

#include "../abi.h"
#include "activation.cuh"
#include "product_tile.cuh"
#include "scheduler.cuh"

namespace da_moe {

// With GATED, GROUP columns of the gate are followed by the GROUP columns of the up projection that belong to the same
// columns of the output. S is the type of the biases, and of what is written where that is not f32.
template <class S, bool GATED, int GROUP>
class TileOutput {
public:
    __device__ __forceinline__ explicit TileOutput(const GroupedGemm& p) : p_(p) {}

    // Called by the whole block, with a barrier before it and after it.
    template <class Products>
    __device__ __forceinline__ void write(const Tile& tile, const Products& products) const {
        constexpr int CHUNKS = Products::COLUMNS / (GATED ? 2 : 1) / OUTPUT_CHUNK;
#pragma unroll 1
        for (int i = static_cast<int>(threadIdx.x); i < tile.rows * CHUNKS; i += static_cast<int>(blockDim.x)) {
            const int column = tile.column + i % CHUNKS * OUTPUT_CHUNK;
            if (column < p_.columns) {
                write_chunk(tile, products, i / CHUNKS, i % CHUNKS * OUTPUT_CHUNK, column);
            }
        }
    }

private:
    // Eight columns of one row: those of the tile from `from` on, which are the output's from `column` on.
    template <class Products>
    __device__ __forceinline__ void write_chunk(const Tile& tile, const Products& products, int row, int from,
                                                int column) const {
        const int count = min(p_.columns - column, OUTPUT_CHUNK);
        const int64_t to = tile.row + row;
        float h[OUTPUT_CHUNK];
        load(h, products, tile.expert, row, from, 0, column, count);
        keep(h, to * p_.hidden_stride + column, count);
#pragma unroll
        for (int i = 0; i < OUTPUT_CHUNK; i++) {
            h[i] = curve(p_.activation, h[i]).value;
        }
        if constexpr (GATED) {
            float up[OUTPUT_CHUNK];
            load(up, products, tile.expert, row, from, GROUP, p_.columns + column, count);
            keep(up, to * p_.hidden_stride + p_.columns + column, count);
#pragma unroll
            for (int i = 0; i < OUTPUT_CHUNK; i++) {
                h[i] *= up[i];
            }
        }
        store_rows<S>(p_.out, p_.out_f32, to * p_.out_stride + column, h, count);
    }

    // Products and their bias, which starts at `bias`; `offset` is GROUP for the up projection.
    template <class Products>
    __device__ __forceinline__ void load(float (&h)[OUTPUT_CHUNK], const Products& products, int expert, int row, int from,
                                         int offset, int bias, int count) const {
        const S* biases = p_.bias == nullptr ? nullptr : static_cast<const S*>(p_.bias) + expert * p_.bias_stride + bias;
#pragma unroll
        for (int i = 0; i < OUTPUT_CHUNK; i++) {
            const int column = from + i;
            h[i] = products.at(row, GATED ? column / GROUP * 2 * GROUP + column % GROUP + offset : column);
            h[i] += biases != nullptr && i < count ? to_float(biases[i]) : 0.0f;
        }
    }

    __device__ __forceinline__ void keep(const float (&h)[OUTPUT_CHUNK], int64_t at, int count) const {
        if (p_.hidden != nullptr) {
            store_rows<S>(p_.hidden, p_.hidden_f32, at, h, count);
        }
    }

    const GroupedGemm& p_;
};

}  // namespace da_moe
