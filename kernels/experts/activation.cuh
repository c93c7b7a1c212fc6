// SPEC §5 and §6: the function between an expert's two matrices, and its derivative. Written so that NaN passes through.
#pragma once

#include "abi.h"
#include "device/platform.cuh"

namespace da_moe {

// Value and derivative; of the gate for the gated kinds. What a caller does not use is not computed.
struct Curve {
    float value;
    float slope;
};

__device__ __forceinline__ bool is_gated(int activation) { return activation >= ACTIVATION_SWIGLU; }

// Φ(h): the normal distribution function, without cancellation for negative h.
__device__ __forceinline__ float normal_distribution(float h) { return 0.5f * erfcf(-0.70710678f * h); }

// How a sigmoid is computed: to the last place but one.
struct Accurate {
    __device__ __forceinline__ static float sigmoid(float h) { return 1.0f / (1.0f + expf(-h)); }
};

__device__ __forceinline__ Curve relu(float h) { return {h <= 0.0f ? 0.0f : h, h > 0.0f ? 1.0f : 0.0f}; }

__device__ __forceinline__ Curve gelu(float h) {
    const float distribution = normal_distribution(h);
    return {h * distribution, distribution + h * 0.39894228f * expf(-0.5f * h * h)};
}

// (1 + tanh u) / 2 = σ(2u), which is exactly 0 or 1 long before h³ could overflow.
template <class Precision>
__device__ __forceinline__ Curve gelu_tanh(float h) {
    const float c = h > 64.0f ? 64.0f : h < -64.0f ? -64.0f : h;
    const float s = Precision::sigmoid(1.59576912f * (c + 0.044715f * c * c * c));
    return {h * s, s + c * s * (1.0f - s) * (1.59576912f * (1.0f + 0.134145f * c * c))};
}

template <class Precision>
__device__ __forceinline__ Curve silu(float h) {
    const float s = Precision::sigmoid(h);
    return {h * s, s + h * s * (1.0f - s)};
}

// Of the gated kinds alone.
template <class Precision>
__device__ __forceinline__ Curve gate_curve(int activation, float h) {
    switch (activation) {
        case ACTIVATION_REGLU:
            return relu(h);
        case ACTIVATION_GEGLU:
            return gelu(h);
        default:
            return silu<Precision>(h);
    }
}

template <class Precision = Accurate>
__device__ __forceinline__ Curve curve(int activation, float h) {
    switch (activation) {
        case ACTIVATION_RELU:
        case ACTIVATION_REGLU:
            return relu(h);
        case ACTIVATION_GELU:
        case ACTIVATION_GEGLU:
            return gelu(h);
        case ACTIVATION_GELU_TANH:
            return gelu_tanh<Precision>(h);
        case ACTIVATION_SILU:
        case ACTIVATION_SWIGLU:
            return silu<Precision>(h);
        default:
            return {h, 1.0f};
    }
}

}  // namespace da_moe
