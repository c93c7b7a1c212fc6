// bfloat16 and half precision: storage types and conversions, rounding to nearest even, as CUDA's headers have them.
#pragma once

#include "collectives.h"
#include "types.h"

namespace emu {

inline uint16_t bfloat16_bits(float value) {
    const auto bits = (uint32_t)to_bits(value);
    if ((bits & 0x7fffffff) > 0x7f800000) {
        return 0x7fff;  // the hardware's one NaN
    }
    const uint32_t round = 0x7fff + (bits >> 16 & 1);
    return (uint16_t)((bits + round) >> 16);
}

inline float bfloat16_value(uint16_t bits) {
    return from_bits<float>((uint64_t)bits << 16);
}

inline uint16_t half_bits(float value) {
    const auto bits = (uint32_t)to_bits(value);
    const auto sign = (uint16_t)(bits >> 16 & 0x8000);
    const uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) {
        return 0x7fff;
    }
    if (magnitude >= 0x477ff000) {
        return sign | 0x7c00;  // 65520 and more round to infinity
    }
    if (magnitude < 0x38800000) {
        // Subnormal: an addition whose sum has the last place of half's subnormals rounds as it should.
        const float shifted = from_bits<float>(magnitude) + 0.5f;
        return sign | (uint16_t)(to_bits(shifted) - 0x3f000000);
    }
    const uint32_t round = 0xfff + (magnitude >> 13 & 1);
    return sign | (uint16_t)((magnitude + round - 0x38000000) >> 13);
}

inline float half_value(uint16_t bits) {
    const uint32_t sign = (uint32_t)(bits & 0x8000) << 16;
    const uint32_t magnitude = bits & 0x7fff;
    if (magnitude >= 0x7c00) {
        return from_bits<float>(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
    }
    if (magnitude < 0x400) {
        const float value = (float)magnitude * 0x1p-24f;
        return from_bits<float>(sign | to_bits(value));
    }
    return from_bits<float>(sign | ((magnitude << 13) + 0x38000000));
}

}  // namespace emu

struct __nv_bfloat16 {
    uint16_t bits;

    __nv_bfloat16() = default;
    __nv_bfloat16(float value) : bits(emu::bfloat16_bits(value)) {}
    operator float() const {
        return emu::bfloat16_value(bits);
    }
};

struct __half {
    uint16_t bits;

    __half() = default;
    __half(float value) : bits(emu::half_bits(value)) {}
    operator float() const {
        return emu::half_value(bits);
    }
};

struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

struct alignas(4) __half2 {
    __half x, y;
};

// CUDA rounds after every operation on these types. Their numbers would turn into floats here and round once at the
// end, so kernels have to say which they mean.
#define EMULATOR_NO_ARITHMETIC(T) \
    T operator+(T, T) = delete; \
    T operator-(T, T) = delete; \
    T operator*(T, T) = delete; \
    T operator/(T, T) = delete;
EMULATOR_NO_ARITHMETIC(__nv_bfloat16)
EMULATOR_NO_ARITHMETIC(__half)
#undef EMULATOR_NO_ARITHMETIC

using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;
using half = __half;
using half2 = __half2;

static inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
    __nv_bfloat16 value;
    value.bits = bits;
    return value;
}
static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) {
    return value.bits;
}
static inline __nv_bfloat16 __float2bfloat16(float value) {
    return value;
}
static inline __nv_bfloat16 __float2bfloat16_rn(float value) {
    return value;
}
static inline float __bfloat162float(__nv_bfloat16 value) {
    return value;
}
static inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) {
    return {x, y};
}
static inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {x, y};
}
static inline __nv_bfloat162 __float22bfloat162_rn(float2 value) {
    return {value.x, value.y};
}
static inline __nv_bfloat162 __float2bfloat162_rn(float value) {
    return {value, value};
}
static inline float2 __bfloat1622float2(__nv_bfloat162 value) {
    return {value.x, value.y};
}
static inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 value) {
    return value.x;
}
static inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 value) {
    return value.y;
}
static inline float __low2float(__nv_bfloat162 value) {
    return value.x;
}
static inline float __high2float(__nv_bfloat162 value) {
    return value.y;
}

static inline __half __ushort_as_half(unsigned short bits) {
    __half value;
    value.bits = bits;
    return value;
}
static inline unsigned short __half_as_ushort(__half value) {
    return value.bits;
}
static inline __half __float2half(float value) {
    return value;
}
static inline __half __float2half_rn(float value) {
    return value;
}
static inline float __half2float(__half value) {
    return value;
}
static inline __half2 __halves2half2(__half x, __half y) {
    return {x, y};
}
static inline __half2 __floats2half2_rn(float x, float y) {
    return {x, y};
}
static inline __half2 __float22half2_rn(float2 value) {
    return {value.x, value.y};
}
static inline __half2 __float2half2_rn(float value) {
    return {value, value};
}
static inline float2 __half22float2(__half2 value) {
    return {value.x, value.y};
}
static inline __half __low2half(__half2 value) {
    return value.x;
}
static inline __half __high2half(__half2 value) {
    return value.y;
}
static inline float __low2float(__half2 value) {
    return value.x;
}
static inline float __high2float(__half2 value) {
    return value.y;
}
