// A tile of products in shared memory, on its way out: written fragment by fragment, read as whole 128-bit pieces of rows.
//
// Chunk c of 8 columns of row r lies at c ^ (r mod 8): writing fragments meets no bank conflict.
#pragma once

#include "../device/storage.cuh"

namespace da_moe {

constexpr int OUTPUT_CHUNK = 8;

template <int ROWS_, int COLUMNS_>
class ProductTile {
public:
    static constexpr int ROWS = ROWS_;
    static constexpr int COLUMNS = COLUMNS_;
    static constexpr int BYTES = ROWS * COLUMNS * static_cast<int>(sizeof(float));

    __device__ __forceinline__ explicit ProductTile(float* products) : products_(products) {}

    // Two neighbouring products; `column` is even.
    __device__ __forceinline__ void put(int row, int column, float first, float second) {
        *reinterpret_cast<float2*>(products_ + place(row, column)) = make_float2(first, second);
    }

    __device__ __forceinline__ float at(int row, int column) const { return products_[place(row, column)]; }

private:
    __device__ __forceinline__ static int place(int row, int column) {
        return row * COLUMNS + ((column / OUTPUT_CHUNK ^ row % 8) * OUTPUT_CHUNK + column % OUTPUT_CHUNK);
    }

    float* products_;
};

template <class T>
__device__ __forceinline__ bool is_whole(const T* at, int count) {
    return count == OUTPUT_CHUNK && reinterpret_cast<uintptr_t>(at) % 16 == 0;
}

// `count` of eight neighbouring elements, 128 bits at a time where they are whole and lie at multiples of that.
template <class T>
__device__ __forceinline__ void store_chunk(T* to, const float (&values)[OUTPUT_CHUNK], int count) {
    Vector<T, OUTPUT_CHUNK> chunk;
#pragma unroll
    for (int i = 0; i < OUTPUT_CHUNK; i++) {
        chunk.elements[i] = from_float<T>(values[i]);
    }
    if (is_whole(to, count)) {
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

// As `store_chunk`; zeros past `count`.
template <class T>
__device__ __forceinline__ void load_chunk(float (&values)[OUTPUT_CHUNK], const T* from, int count) {
    Vector<T, OUTPUT_CHUNK> chunk;
    if (is_whole(from, count)) {
        chunk = Vector<T, OUTPUT_CHUNK>::load(from);
    } else {
#pragma unroll
        for (int i = 0; i < OUTPUT_CHUNK; i++) {
            chunk.elements[i] = i < count ? from[i] : from_float<T>(0.0f);
        }
    }
#pragma unroll
    for (int i = 0; i < OUTPUT_CHUNK; i++) {
        values[i] = to_float(chunk.elements[i]);
    }
}

// Rows between stages, and gradients, are f32 or the storage type.
template <class S>
__device__ __forceinline__ void store_rows(void* rows, int is_f32, int64_t at, const float (&values)[OUTPUT_CHUNK],
                                           int count) {
    if (is_f32) {
        store_chunk(static_cast<float*>(rows) + at, values, count);
    } else {
        store_chunk(static_cast<S*>(rows) + at, values, count);
    }
}

template <class S>
__device__ __forceinline__ void load_rows(float (&values)[OUTPUT_CHUNK], const void* rows, int is_f32, int64_t at,
                                          int count) {
    if (is_f32) {
        load_chunk(values, static_cast<const float*>(rows) + at, count);
    } else {
        load_chunk(values, static_cast<const S*>(rows) + at, count);
    }
}

}  // namespace da_moe
