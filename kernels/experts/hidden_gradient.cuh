// SPEC §6: what becomes of a tile of `da = W_outᵀ dy_t`: with `h` read again, `a` and the slope of the activation follow,
// and from them `dh = (g·da) ∘ act'`, `g·a` for the gradient of W_out, and the tile's part of `dg = ⟨a, da⟩`.
//
// `da` is not weighted before: what is linear in `g` gets it here, so no row of `g·dy` is ever made. A row's part of `dg` is
// added up by the lanes that have its chunks, always by the same tree.
#pragma once

#include "abi.h"
#include "experts/activation.cuh"
#include "experts/product_tile.cuh"
#include "experts/scheduler.cuh"

namespace da_moe {

// S is the type of `h` where that is not f32, Between that of what is written. AHEAD: what is read of a chunk comes while the
// one before is computed, where no other block hides it.
template <class S, class Between, bool AHEAD>
class HiddenGradientOutput {
public:
    __device__ __forceinline__ explicit HiddenGradientOutput(const HiddenGradient& p) : p_(p) {}

    // Called by the whole block, with a barrier before it and after it, for the rows of the tile that are among `products`.
    template <class Products>
    __device__ __forceinline__ void write(const Tile& tile, const Products& products) const {
        constexpr int CHUNKS = Products::COLUMNS / OUTPUT_CHUNK;
        static_assert(WARP % CHUNKS == 0 || CHUNKS % WARP == 0, "a warp has whole rows, or one");
        const int end = min(tile.rows, Products::ROWS) * CHUNKS;
        const int step = static_cast<int>(blockDim.x);
        const int thread = computed_here(static_cast<int>(threadIdx.x));
        Hidden next;
        if (AHEAD) {
            load(next, tile, thread / CHUNKS, thread % CHUNKS, thread < end);
        }
#pragma unroll 1
        for (int first = thread - thread % WARP; first < end; first += step) {
            const int i = first + thread % WARP;
            const int row = i / CHUNKS;
            const int chunk = i % CHUNKS;
            if (!AHEAD) {
                load(next, tile, row, chunk, i < end);
            }
            const Hidden hidden = next;
            if (AHEAD) {
                load(next, tile, (i + step) / CHUNKS, chunk, i + step < end);
            }
            const bool mine = i < end && tile.column + chunk * OUTPUT_CHUNK < p_.product.columns;
            float part = mine ? write_chunk(tile, products, hidden, row, chunk) : 0.0f;
#pragma unroll
            for (int distance = CHUNKS / 2; distance > 0; distance /= 2) {
                part += __shfl_xor_sync(FULL_WARP, part, distance);
            }
            if (i < end && chunk == 0) {
                const int columns = computed_here(p_.product.columns);
                const int64_t part_count = (columns + Products::COLUMNS - 1) / Products::COLUMNS;
                p_.parts[(tile.row + row) * part_count + tile.column / Products::COLUMNS] = part;
            }
        }
    }

private:
    // One chunk of what forward kept, and the row's weight.
    struct Hidden {
        ComingChunk<S> h;
        ComingChunk<S> up;
        float weight;
    };

    __device__ __forceinline__ void load(Hidden& to, const Tile& tile, int row, int chunk, bool is_there) const {
        const GroupedGemm& p = p_.product;
        const int64_t from = tile.row + row;
        const int column = tile.column + chunk * OUTPUT_CHUNK;
        const int count = min(p.columns - column, OUTPUT_CHUNK);
        if (!is_there || count <= 0) {
            return;
        }
        to.weight = p_.row_weight == nullptr ? 1.0f : p_.row_weight[from];
        to.h.load(p.hidden, p.hidden_f32, from * p.hidden_stride + column, count);
        if (is_gated(p.activation)) {
            to.up.load(p.hidden, p.hidden_f32, from * p.hidden_stride + p.columns + column, count);
        }
    }

    // Eight columns of one row; returns their part of `dg`.
    template <class Products>
    __device__ __forceinline__ float write_chunk(const Tile& tile, const Products& products, const Hidden& hidden, int row,
                                                 int chunk) const {
        const GroupedGemm& p = p_.product;
        const int64_t to = tile.row + row;
        const int column = tile.column + chunk * OUTPUT_CHUNK;
        const int count = min(p.columns - column, OUTPUT_CHUNK);
        const float g = hidden.weight;
        float h[OUTPUT_CHUNK], up[OUTPUT_CHUNK], a[OUTPUT_CHUNK], da[OUTPUT_CHUNK];
        hidden.h.widen(h, p.hidden_f32);
        hidden.up.widen(up, p.hidden_f32);
        products.chunk(da, row, chunk);
        float part = 0.0f;
#pragma unroll
        for (int i = 0; i < OUTPUT_CHUNK; i++) {
            const Curve gate = curve(p.activation, h[i]);
            const float other = is_gated(p.activation) ? up[i] : 1.0f;
            part += i < count ? gate.value * other * da[i] : 0.0f;
            a[i] = g * (gate.value * other);
            h[i] = g * da[i] * gate.slope * other;
            up[i] = g * da[i] * gate.value;
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
