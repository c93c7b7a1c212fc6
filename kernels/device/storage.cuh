// Elements in memory: widened to f32 when read, rounded to nearest even when written.
//
// `Vector<S, N>` is N consecutive elements, moved by 128-bit accesses where N elements fill them. The caller guarantees
// the alignment; host code picks N = 1 where it cannot (src/cuda/launch/vectorized.rs).
#pragma once

#include "device/platform.cuh"

namespace da_moe {

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(bf16 value) { return __bfloat162float(value); }
__device__ __forceinline__ float to_float(f16 value) { return __half2float(value); }

template <class S>
__device__ __forceinline__ S from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) { return value; }
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float value) { return __float2bfloat16(value); }
template <>
__device__ __forceinline__ f16 from_float<f16>(float value) { return __float2half(value); }

template <class S, int N>
struct Vector {
    static constexpr int BYTES = N * static_cast<int>(sizeof(S));
    static_assert(N == 1 || BYTES % 16 == 0, "a vector is one element or whole 128-bit accesses");

    alignas(N == 1 ? sizeof(S) : 16) S elements[N];

    __device__ __forceinline__ static Vector load(const S* from) {
        Vector vector;
        if constexpr (N == 1) {
            vector.elements[0] = *from;
        } else {
#pragma unroll
            for (int i = 0; i < BYTES / 16; i++) {
                reinterpret_cast<uint4*>(vector.elements)[i] = reinterpret_cast<const uint4*>(from)[i];
            }
        }
        return vector;
    }

    // Zeros unless `keep`.
    __device__ __forceinline__ void keep_if(bool keep) {
        if constexpr (N == 1) {
            elements[0] = keep ? elements[0] : from_float<S>(0.0f);
        } else {
#pragma unroll
            for (int i = 0; i < BYTES / 4; i++) {
                uint32_t& word = reinterpret_cast<uint32_t*>(elements)[i];
                word = keep ? word : 0u;
            }
        }
    }

    __device__ __forceinline__ void store(S* to) const {
        if constexpr (N == 1) {
            *to = elements[0];
        } else {
#pragma unroll
            for (int i = 0; i < BYTES / 16; i++) {
                reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(elements)[i];
            }
        }
    }
};

}  // namespace da_moe
