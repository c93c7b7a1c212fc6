// SPEC §5: what happens to a tile of products before it is written: bias, activation, and the rows that backward keeps.
//
// The products go through shared memory, so that this is a short loop over whole 128-bit pieces of rows instead of code for
// every register. Chunk c of 8 columns of row r lies at c ^ (r mod 8): writing fragments meets no bank conflict.
#pragma once

#include "../abi.h"
#include "../device/storage.cuh"
#include "scheduler.cuh"

namespace da_moe {

// Φ(h): the normal distribution function, without cancellation for negative h.
__device__ __forceinline__ float normal_distribution(float h) { return 0.5f * erfcf(-0.70710678f * h); }

__device__ __forceinline__ float sigmoid(float h) { return 1.0f / (1.0f + expf(-h)); }

// Written so that NaN passes through.
__device__ __forceinline__ float relu(float h) { return h <= 0.0f ? 0.0f : h; }

__device__ __forceinline__ float activate(int activation, float h) {
    switch (activation) {
        case ACTIVATION_RELU:
        case ACTIVATION_REGLU:
            return relu(h);
        case ACTIVATION_GELU:
        case ACTIVATION_GEGLU:
            return h * normal_distribution(h);
        case ACTIVATION_GELU_TANH:
            return 0.5f * h * (1.0f + tanhf(0.79788456f * (h + 0.044715f * h * h * h)));
        case ACTIVATION_SILU:
        case ACTIVATION_SWIGLU:
            return h * sigmoid(h);
        default:
            return h;
    }
}

constexpr int OUTPUT_CHUNK = 8;

// A tile of products in shared memory, on its way out. With GATED, GROUP columns of the gate are followed by the GROUP
// columns of the up projection that belong to the same columns of the output.
template <class S, int ROWS, int COLUMNS, bool GATED, int GROUP>
class TileOutput {
public:
    static constexpr int BYTES = ROWS * COLUMNS * static_cast<int>(sizeof(float));

    __device__ __forceinline__ TileOutput(const GroupedGemm& p, float* products) : p_(p), products_(products) {}

    // Two neighbouring products; `column` is even.
    __device__ __forceinline__ void put(int row, int column, float first, float second) {
        *reinterpret_cast<float2*>(products_ + place(row, column)) = make_float2(first, second);
    }

    // Called by the whole block, with a barrier before it and after it.
    __device__ __forceinline__ void write(const Tile& tile) const {
        constexpr int CHUNKS = COLUMNS / (GATED ? 2 : 1) / OUTPUT_CHUNK;
#pragma unroll 1
        for (int i = static_cast<int>(threadIdx.x); i < tile.rows * CHUNKS; i += static_cast<int>(blockDim.x)) {
            const int column = tile.column + i % CHUNKS * OUTPUT_CHUNK;
            if (column < p_.columns) {
                write_chunk(tile, i / CHUNKS, i % CHUNKS * OUTPUT_CHUNK, column);
            }
        }
    }

private:
    __device__ __forceinline__ static int place(int row, int column) {
        return row * COLUMNS + ((column / OUTPUT_CHUNK ^ row % 8) * OUTPUT_CHUNK + column % OUTPUT_CHUNK);
    }

    // Eight columns of one row: those of the tile from `from` on, which are the output's from `column` on.
    __device__ __forceinline__ void write_chunk(const Tile& tile, int row, int from, int column) const {
        const int count = min(p_.columns - column, OUTPUT_CHUNK);
        const int64_t to = tile.row + row;
        float h[OUTPUT_CHUNK];
        load(h, tile.expert, row, from, 0, column, count);
        keep(h, to * p_.hidden_stride + column, count);
#pragma unroll
        for (int i = 0; i < OUTPUT_CHUNK; i++) {
            h[i] = activate(p_.activation, h[i]);
        }
        if constexpr (GATED) {
            float up[OUTPUT_CHUNK];
            load(up, tile.expert, row, from, GROUP, p_.columns + column, count);
            keep(up, to * p_.hidden_stride + p_.columns + column, count);
#pragma unroll
            for (int i = 0; i < OUTPUT_CHUNK; i++) {
                h[i] *= up[i];
            }
        }
        store(p_.out, p_.out_f32, to * p_.out_stride + column, h, count);
    }

    // Products and their bias, which starts at `bias`; `offset` is GROUP for the up projection.
    __device__ __forceinline__ void load(float (&h)[OUTPUT_CHUNK], int expert, int row, int from, int offset, int bias,
                                         int count) const {
        const S* biases = p_.bias == nullptr ? nullptr : static_cast<const S*>(p_.bias) + expert * p_.bias_stride + bias;
#pragma unroll
        for (int i = 0; i < OUTPUT_CHUNK; i++) {
            const int column = from + i;
            h[i] = products_[place(row, GATED ? column / GROUP * 2 * GROUP + column % GROUP + offset : column)];
            h[i] += biases != nullptr && i < count ? to_float(biases[i]) : 0.0f;
        }
    }

    __device__ __forceinline__ void keep(const float (&h)[OUTPUT_CHUNK], int64_t at, int count) const {
        if (p_.hidden != nullptr) {
            store(p_.hidden, p_.hidden_f32, at, h, count);
        }
    }

    // Rows between stages are f32 or the storage type.
    __device__ __forceinline__ static void store(void* rows, int is_f32, int64_t at, const float (&h)[OUTPUT_CHUNK],
                                                 int count) {
        if (is_f32) {
            store_chunk(static_cast<float*>(rows) + at, h, count);
        } else {
            store_chunk(static_cast<S*>(rows) + at, h, count);
        }
    }

    template <class T>
    __device__ __forceinline__ static void store_chunk(T* to, const float (&h)[OUTPUT_CHUNK], int count) {
        Vector<T, OUTPUT_CHUNK> chunk;
#pragma unroll
        for (int i = 0; i < OUTPUT_CHUNK; i++) {
            chunk.elements[i] = from_float<T>(h[i]);
        }
        if (count == OUTPUT_CHUNK && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
            chunk.store(to);
            return;
        }
#pragma unroll
        for (int i = 0; i < OUTPUT_CHUNK; i++) {
            if (i < count) {
                to[i] = chunk.elements[i];
            }
        }
    }

    const GroupedGemm& p_;
    float* products_;
};

}  // namespace da_moe
