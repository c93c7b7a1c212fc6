// f32 values that tensor cores take as they are: with 10 fraction bits, as f16 has, and the exponents of f32.
//
// They are rounded where they are written, once. mma.sync ignores the other 13 bits, so that a value which was not rounded
// would be cut, and sums of such values be too small.
#pragma once

#include "device/ptx.cuh"
#include "device/storage.cuh"

namespace da_moe {

// In memory an f32.
struct tf32 {
    float value;
};

__device__ __forceinline__ float to_float(tf32 stored) { return stored.value; }

template <>
__device__ __forceinline__ tf32 from_float<tf32>(float value) {
    return {__uint_as_float(ptx::round_tf32(__float_as_uint(value)))};
}

}  // namespace da_moe
