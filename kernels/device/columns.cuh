// The columns of a row that one lane adds up: VECTORS vectors of VEC elements, a warp's width apart, in f32.
#pragma once

#include "device/storage.cuh"
#include "device/warp.cuh"

namespace da_moe {

template <int VEC>
struct Columns {
    static constexpr int VECTORS = 2;

    float values[VECTORS * VEC];
    int first;

    // Zeros, for the `part`-th share of a row, each as wide as a warp's columns.
    __device__ __forceinline__ static Columns of_part(int part) {
        Columns columns = {};
        columns.first = (part * VECTORS * WARP + lane_index()) * VEC;
        return columns;
    }

    template <class S>
    __device__ __forceinline__ void add(float factor, const S* row, int width) {
#pragma unroll
        for (int n = 0; n < VECTORS; n++) {
            const int column = first + n * WARP * VEC;
            if (column < width) {
                const auto vector = Vector<S, VEC>::load(row + column);
#pragma unroll
                for (int v = 0; v < VEC; v++) {
                    values[n * VEC + v] += factor * to_float(vector.elements[v]);
                }
            }
        }
    }

    template <class S>
    __device__ __forceinline__ void store(S* row, int width) const {
#pragma unroll
        for (int n = 0; n < VECTORS; n++) {
            const int column = first + n * WARP * VEC;
            if (column < width) {
                Vector<S, VEC> vector;
#pragma unroll
                for (int v = 0; v < VEC; v++) {
                    vector.elements[v] = from_float<S>(values[n * VEC + v]);
                }
                vector.store(row + column);
            }
        }
    }
};

}  // namespace da_moe
