// Which tile of which expert's gradient a block has, and how it is written: added to what is there, or in its place.
#pragma once

#include "abi.h"
#include "experts/product_tile.cuh"

namespace da_moe {

struct WeightTile {
    int expert;
    // First row and column of the gradient.
    int row;
    int column;
};

template <int TILE_ROWS, int TILE_COLUMNS>
__device__ __forceinline__ WeightTile weight_tile(const WeightGradient& p, int index) {
    const int rows = (p.left.columns + TILE_ROWS - 1) / TILE_ROWS;
    const int columns = (p.right.columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
    return {index / (rows * columns), index % rows * TILE_ROWS, index / rows % columns * TILE_COLUMNS};
}

// S is the type of the gradient where that is not f32.
template <class S>
class WeightOutput {
public:
    __device__ __forceinline__ explicit WeightOutput(const WeightGradient& p) : p_(p) {}

    // Called by the whole block, with a barrier before it and after it, for the rows of the tile that are among `products`.
    template <class Products>
    __device__ __forceinline__ void write(const WeightTile& tile, const Products& products) const {
        constexpr int CHUNKS = Products::COLUMNS / OUTPUT_CHUNK;
        const int rows = min(p_.left.columns - tile.row, Products::ROWS);
#pragma unroll 1
        for (int i = static_cast<int>(threadIdx.x); i < rows * CHUNKS; i += static_cast<int>(blockDim.x)) {
            const int row = i / CHUNKS;
            const int from = i % CHUNKS * OUTPUT_CHUNK;
            const int count = min(p_.right.columns - tile.column - from, OUTPUT_CHUNK);
            if (count > 0) {
                const int64_t at = tile.expert * p_.out_expert_stride + (tile.row + row) * p_.out_stride + tile.column + from;
                write_chunk(products, row, from, at, count);
            }
        }
    }

private:
    template <class Products>
    __device__ __forceinline__ void write_chunk(const Products& products, int row, int from, int64_t at,
                                                int count) const {
        float sums[OUTPUT_CHUNK];
        products.chunk(sums, row, from / OUTPUT_CHUNK);
        // What nobody has written is not read.
        if (p_.beta != 0.0f) {
            float old[OUTPUT_CHUNK];
            load_rows<S>(old, p_.out, p_.out_f32, at, count);
#pragma unroll
            for (int i = 0; i < OUTPUT_CHUNK; i++) {
                sums[i] += p_.beta * old[i];
            }
        }
        store_rows<S>(p_.out, p_.out_f32, at, sums, count);
    }

    const WeightGradient& p_;
};

}  // namespace da_moe
