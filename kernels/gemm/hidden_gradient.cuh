// SPEC §6: what becomes of a tile of `da = W_outᵀ dy_t`: with `h` read again, `a` and the slope of the activation follow,
// and from them `dh = (g·da) ∘ act'`, `g·a` for the gradient of W_out, and the tile's part of `dg = ⟨a, da⟩`.
//
// `da` is not weighted before: what is linear in `g` gets it here, so no row of `g·dy` is ever made. A row's part of `dg` is
// added up by the lanes that have its chunks, always by the same tree.
#pragma once

#include "../abi.h"
#include "activation.cuh"
#include "product_tile.cuh"
#include "scheduler.cuh"

namespace da_moe {

// S is the type of `h` where that is not f32, Between that of what is written.
template <class S, class Between>
class HiddenGradientOutput {
public:
    __device__ __forceinline__ explicit HiddenGradientOutput(const HiddenGradient& p) : p_(p) {}

    // Called by the whole block, with a barrier before it and after it.
    template <class Products>
    __device__ __forceinline__ void write(const Tile& tile, const Products& products) const {
        constexpr int CHUNKS = Products::COLUMNS / OUTPUT_CHUNK;
        const int64_t part_count = (p_.product.columns + Products::COLUMNS - 1) / Products::COLUMNS;
        const int step = static_cast<int>(blockDim.x);
#pragma unroll 1
        for (int first = warp_index() * WARP; first < tile.rows * CHUNKS; first += step) {
            const int row = (first + lane_index()) / CHUNKS;
            const int from = lane_index() % CHUNKS * OUTPUT_CHUNK;
            const bool mine = row < tile.rows && tile.column + from < p_.product.columns;
            float part = mine ? write_chunk(tile, products, row, from) : 0.0f;
#pragma unroll
            for (int distance = CHUNKS / 2; distance > 0; distance /= 2) {
                part += __shfl_xor_sync(FULL_WARP, part, distance);
            }
            if (row < tile.rows && from == 0) {
                p_.parts[(tile.row + row) * part_count + tile.column / Products::COLUMNS] = part;
            }
        }
    }

private:
    // Eight columns of one row, those of the tile from `from` on; returns their part of `dg`.
    template <class Products>
    __device__ __forceinline__ float write_chunk(const Tile& tile, const Products& products, int row, int from) const {
        const GroupedGemm& p = p_.product;
        const int64_t to = tile.row + row;
        const int column = tile.column + from;
        const int count = min(p.columns - column, OUTPUT_CHUNK);
        const float g = p_.row_weight == nullptr ? 1.0f : p_.row_weight[to];
        float h[OUTPUT_CHUNK], up[OUTPUT_CHUNK];
        load_rows<S>(h, p.hidden, p.hidden_f32, to * p.hidden_stride + column, count);
        if (is_gated(p.activation)) {
            load_rows<S>(up, p.hidden, p.hidden_f32, to * p.hidden_stride + p.columns + column, count);
        }
        float part = 0.0f;
        float a[OUTPUT_CHUNK];
#pragma unroll
        for (int i = 0; i < OUTPUT_CHUNK; i++) {
            const float da = products.at(row, from + i);
            const Curve gate = curve(p.activation, h[i]);
            const float other = is_gated(p.activation) ? up[i] : 1.0f;
            part += i < count ? gate.value * other * da : 0.0f;
            a[i] = g * (gate.value * other);
            h[i] = g * da * gate.slope * other;
            up[i] = g * da * gate.value;
        }
        store_chunk(static_cast<Between*>(p_.activated) + to * p_.activated_stride + column, a, count);
        Between* dh = static_cast<Between*>(p.out) + to * p.out_stride + column;
        store_chunk(dh, h, count);
        if (is_gated(p.activation)) {
            store_chunk(dh + p.columns, up, count);
        }
        return part;
    }

    const HiddenGradient& p_;
};

}  // namespace da_moe
