// How a weight's gradient is written: in place of what is there, or added to it; in the weight's type or in f32.
#pragma once

#include "device/storage.cuh"

namespace da_moe {

template <class G, int VEC>
__device__ __forceinline__ void write_gradient_as(G* to, Vector<float, VEC> sum, float beta) {
    // What nobody has written is not read.
    if (beta != 0.0f) {
        const auto old = Vector<G, VEC>::load(to);
#pragma unroll
        for (int v = 0; v < VEC; v++) {
            sum.elements[v] += beta * to_float(old.elements[v]);
        }
    }
    Vector<G, VEC> rounded;
#pragma unroll
    for (int v = 0; v < VEC; v++) {
        rounded.elements[v] = from_float<G>(sum.elements[v]);
    }
    rounded.store(to);
}

// VEC elements from the `at`-th, of type f32 or S.
template <class S, int VEC>
__device__ __forceinline__ void write_gradient(void* to, int is_f32, int64_t at, const Vector<float, VEC>& sum,
                                               float beta) {
    if (is_f32) {
        write_gradient_as(static_cast<float*>(to) + at, sum, beta);
    } else {
        write_gradient_as(static_cast<S*>(to) + at, sum, beta);
    }
}

}  // namespace da_moe
