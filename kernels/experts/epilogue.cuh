// SPEC §5: what happens to a tile of products before it is written: bias, activation, and the rows that backward keeps.
//
// The products come through shared memory, so that this is a short loop over whole 128-bit pieces of rows instead of code
// for every register.
#pragma once

#include "abi.h"
#include "experts/activation.cuh"
#include "experts/product_tile.cuh"
#include "experts/scheduler.cuh"

namespace da_moe {

// With GATED, every chunk of the gate is followed by that of the up projection which belongs to the same columns of the
// output. S is the type of the biases, and of what is written where that is not f32.
template <class S, bool GATED>
class TileOutput {
public:
    __device__ __forceinline__ explicit TileOutput(const GroupedGemm& p) : p_(p) {}

    // Called by the whole block, with a barrier before it and after it, for the rows of the tile that are among `products`.
    template <class Products>
    __device__ __forceinline__ void write(const Tile& tile, const Products& products) const {
        constexpr int CHUNKS = Products::COLUMNS / (GATED ? 2 : 1) / OUTPUT_CHUNK;
        const int rows = min(tile.rows, Products::ROWS);
#pragma unroll 1
        for (int i = static_cast<int>(threadIdx.x); i < rows * CHUNKS; i += static_cast<int>(blockDim.x)) {
            const int column = tile.column + i % CHUNKS * OUTPUT_CHUNK;
            if (column < p_.columns) {
                write_chunk(tile, products, i / CHUNKS, i % CHUNKS, column);
            }
        }
    }

private:
    // One chunk of a row of the tile, which is the output's columns from `column` on.
    template <class Products>
    __device__ __forceinline__ void write_chunk(const Tile& tile, const Products& products, int row, int chunk,
                                                int column) const {
        const int count = min(p_.columns - column, OUTPUT_CHUNK);
        const int64_t to = tile.row + row;
        float h[OUTPUT_CHUNK];
        products.chunk(h, row, GATED ? 2 * chunk : chunk);
        add_bias(h, tile.expert, column, count);
        keep(h, to * p_.hidden_stride + column, count);
#pragma unroll
        for (int i = 0; i < OUTPUT_CHUNK; i++) {
            h[i] = curve(p_.activation, h[i]).value;
        }
        if constexpr (GATED) {
            float up[OUTPUT_CHUNK];
            products.chunk(up, row, 2 * chunk + 1);
            add_bias(up, tile.expert, p_.columns + column, count);
            keep(up, to * p_.hidden_stride + p_.columns + column, count);
#pragma unroll
            for (int i = 0; i < OUTPUT_CHUNK; i++) {
                h[i] *= up[i];
            }
        }
        store_rows<S>(p_.out, p_.out_f32, to * p_.out_stride + column, h, count);
    }

    __device__ __forceinline__ void add_bias(float (&h)[OUTPUT_CHUNK], int expert, int first, int count) const {
        if (p_.bias != nullptr) {
            float bias[OUTPUT_CHUNK];
            load_chunk(bias, static_cast<const S*>(p_.bias) + expert * p_.bias_stride + first, count);
#pragma unroll
            for (int i = 0; i < OUTPUT_CHUNK; i++) {
                h[i] += bias[i];
            }
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
