// A sigmoid by two instructions of the special-function units, each to 22 bits: more than any storage type here keeps.
#pragma once

#include "device/ptx_sm90.cuh"

namespace da_moe::hopper {

struct Approximate {
    __device__ __forceinline__ static float sigmoid(float h) { return ptx::rcp(1.0f + ptx::ex2(-1.44269504f * h)); }
};

}  // namespace da_moe::hopper
