// Products in shared memory, on their way out: written fragment by fragment, read as whole 128-bit pieces of rows.
//
// A row is chunks of 8 columns, its first halves before its second halves, 16 bytes each. Half h of chunk c of row r lies at
// place c ^ (c / 8 mod 2) ^ (r mod 4) ^ 4h among the halves of its kind. So no bank conflict is met by a warp that writes two
// neighbours of 8 rows and 4 such, nor by lanes that read halves of neighbouring chunks, or of every second one.
#pragma once

#include "device/storage.cuh"

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
        float* to = products_ + half(row, column / OUTPUT_CHUNK, column / HALF % 2) + column % HALF;
        *reinterpret_cast<float2*>(to) = make_float2(first, second);
    }

    // Four neighbours; `column` is a multiple of 4.
    __device__ __forceinline__ void put(int row, int column, const float4& four) {
        *reinterpret_cast<float4*>(products_ + half(row, column / OUTPUT_CHUNK, column / HALF % 2)) = four;
    }

    // Eight neighbours: a chunk of a row.
    __device__ __forceinline__ void chunk(float (&values)[OUTPUT_CHUNK], int row, int chunk) const {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float4 four = *reinterpret_cast<const float4*>(products_ + half(row, chunk, h));
            values[h * HALF] = four.x;
            values[h * HALF + 1] = four.y;
            values[h * HALF + 2] = four.z;
            values[h * HALF + 3] = four.w;
        }
    }

private:
    static constexpr int HALF = OUTPUT_CHUNK / 2;
    static_assert(COLUMNS % (8 * OUTPUT_CHUNK) == 0, "a place stays among its eight");

    __device__ __forceinline__ static int half(int row, int chunk, int h) {
        const int place = chunk ^ (chunk / 8 % 2) ^ (row % 4) ^ (4 * h);
        return row * COLUMNS + h * (COLUMNS / 2) + place * HALF;
    }

    float* products_;
};

// Has a tile's products written, half of its rows at a time, for which shared memory has room: `write(first, products)` gets
// those from row `first` on. Ends with shared memory free. Written so that what has left needs no registers any more.
template <class Loop, class Write>
__device__ __forceinline__ void hand_out(const Loop& loop, int rows, const Write& write) {
    const typename Loop::Products products = loop.template half_of_products<0>();
    int first = 0;
    while (true) {
        __syncthreads();
        write(first, products);
        __syncthreads();
        first += Loop::Products::ROWS;
        if (first >= rows) {
            return;
        }
        loop.template half_of_products<1>();
    }
}

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

// `count` of eight neighbouring elements, as they are in memory, and zeros.
template <class T>
__device__ __forceinline__ Vector<T, OUTPUT_CHUNK> raw_chunk(const T* from, int count) {
    Vector<T, OUTPUT_CHUNK> chunk;
    if (is_whole(from, count)) {
        chunk = Vector<T, OUTPUT_CHUNK>::load(from);
    } else {
#pragma unroll
        for (int i = 0; i < OUTPUT_CHUNK; i++) {
            chunk.elements[i] = i < count ? from[i] : from_float<T>(0.0f);
        }
    }
    return chunk;
}

// As `raw_chunk`, widened.
template <class T>
__device__ __forceinline__ void load_chunk(float (&values)[OUTPUT_CHUNK], const T* from, int count) {
    const Vector<T, OUTPUT_CHUNK> chunk = raw_chunk(from, count);
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

// Eight neighbours of such a row on their way: asked for long before they are wanted.
template <class S>
class ComingChunk {
public:
    __device__ __forceinline__ void load(const void* rows, int is_f32, int64_t at, int count) {
        if (is_f32) {
            wide_ = raw_chunk(static_cast<const float*>(rows) + at, count);
        } else {
            stored_ = raw_chunk(static_cast<const S*>(rows) + at, count);
        }
    }

    __device__ __forceinline__ void widen(float (&values)[OUTPUT_CHUNK], int is_f32) const {
#pragma unroll
        for (int i = 0; i < OUTPUT_CHUNK; i++) {
            values[i] = is_f32 ? wide_.elements[i] : to_float(stored_.elements[i]);
        }
    }

private:
    Vector<float, OUTPUT_CHUNK> wide_;
    Vector<S, OUTPUT_CHUNK> stored_;
};

// Those of f32 are f32 either way.
template <>
class ComingChunk<float> {
public:
    __device__ __forceinline__ void load(const void* rows, int, int64_t at, int count) {
        chunk_ = raw_chunk(static_cast<const float*>(rows) + at, count);
    }

    __device__ __forceinline__ void widen(float (&values)[OUTPUT_CHUNK], int) const {
#pragma unroll
        for (int i = 0; i < OUTPUT_CHUNK; i++) {
            values[i] = chunk_.elements[i];
        }
    }

private:
    Vector<float, OUTPUT_CHUNK> chunk_;
};

template <class S>
__device__ __forceinline__ void load_rows(float (&values)[OUTPUT_CHUNK], const void* rows, int is_f32, int64_t at,
                                          int count) {
    ComingChunk<S> chunk;
    chunk.load(rows, is_f32, at, count);
    chunk.widen(values, is_f32);
}

}  // namespace da_moe
