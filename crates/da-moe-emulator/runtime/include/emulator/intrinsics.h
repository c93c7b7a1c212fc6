// Functions of one thread: bits, conversions, arithmetic. The fast-math ones are the accurate host functions here.
#pragma once

#include <math.h>

#include "collectives.h"
#include "types.h"

// Later calls give more, whichever thread makes them: how much says nothing of a GPU.
long long clock64();

static inline int __popc(unsigned value) {
    return __builtin_popcount(value);
}
static inline int __popcll(unsigned long long value) {
    return __builtin_popcountll(value);
}
static inline int __ffs(int value) {
    return __builtin_ffs(value);
}
static inline int __ffsll(long long value) {
    return __builtin_ffsll(value);
}
static inline int __clz(int value) {
    return value == 0 ? 32 : __builtin_clz((unsigned)value);
}
static inline int __clzll(long long value) {
    return value == 0 ? 64 : __builtin_clzll((unsigned long long)value);
}
static inline unsigned __brev(unsigned value) {
    unsigned reversed = 0;
    for (int bit = 0; bit < 32; bit++) {
        reversed |= (value >> bit & 1) << (31 - bit);
    }
    return reversed;
}
static inline unsigned long long __brevll(unsigned long long value) {
    return (unsigned long long)__brev((unsigned)value) << 32 | __brev((unsigned)(value >> 32));
}
static inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    const uint64_t bytes = (uint64_t)high << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned nibble = selector >> (4 * i) & 0xf;
        unsigned byte = (unsigned)(bytes >> (8 * (nibble & 7))) & 0xff;
        if (nibble & 8) {
            byte = byte & 0x80 ? 0xff : 0;  // the sign of the byte, repeated
        }
        result |= byte << (8 * i);
    }
    return result;
}
static inline int __mulhi(int a, int b) {
    return (int)((long long)a * b >> 32);
}
static inline unsigned __umulhi(unsigned a, unsigned b) {
    return (unsigned)((unsigned long long)a * b >> 32);
}
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
static inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)(((uint64_t)high << 32 | low) << (shift & 31) >> 32);
}
static inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)(((uint64_t)high << 32 | low) >> (shift & 31));
}

static inline unsigned __float_as_uint(float value) {
    return (unsigned)emu::to_bits(value);
}
static inline int __float_as_int(float value) {
    return (int)emu::to_bits(value);
}
static inline float __uint_as_float(unsigned bits) {
    return emu::from_bits<float>(bits);
}
static inline float __int_as_float(int bits) {
    return emu::from_bits<float>((unsigned)bits);
}
static inline long long __double_as_longlong(double value) {
    return (long long)emu::to_bits(value);
}
static inline double __longlong_as_double(long long bits) {
    return emu::from_bits<double>((uint64_t)bits);
}

static inline float __int2float_rn(int value) {
    return (float)value;
}
static inline float __uint2float_rn(unsigned value) {
    return (float)value;
}
static inline float __ll2float_rn(long long value) {
    return (float)value;
}
static inline float __double2float_rn(double value) {
    return (float)value;
}

// Out of range, the hardware clamps and NaN becomes 0, where a C++ cast is undefined.
namespace emu {
static inline int saturated_int(float value) {
    if (value != value) {
        return 0;
    }
    return value >= 0x1p31f ? INT32_MAX : value <= -0x1p31f ? INT32_MIN : (int)value;
}
static inline unsigned saturated_uint(float value) {
    if (!(value > 0)) {
        return 0;
    }
    return value >= 0x1p32f ? UINT32_MAX : (unsigned)value;
}
}  // namespace emu
static inline int __float2int_rn(float value) {
    return emu::saturated_int(rintf(value));
}
static inline int __float2int_rz(float value) {
    return emu::saturated_int(truncf(value));
}
static inline int __float2int_rd(float value) {
    return emu::saturated_int(floorf(value));
}
static inline int __float2int_ru(float value) {
    return emu::saturated_int(ceilf(value));
}
static inline unsigned __float2uint_rn(float value) {
    return emu::saturated_uint(rintf(value));
}
static inline unsigned __float2uint_rz(float value) {
    return emu::saturated_uint(truncf(value));
}

// Macros, because C libraries declare some of these names themselves.
#define __expf(x) expf(x)
#define __exp10f(x) powf(10.0f, x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __powf(x, y) powf(x, y)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanhf(x) tanhf(x)
#define rsqrtf(x) __frsqrt_rn(x)
#define rsqrt(x) (1.0 / sqrt(x))

static inline float __fdividef(float x, float y) {
    return x / y;
}
static inline float __frcp_rn(float x) {
    return 1.0f / x;
}
static inline float __fsqrt_rn(float x) {
    return sqrtf(x);
}
static inline float __frsqrt_rn(float x) {
    return (float)(1.0 / sqrt((double)x));
}
static inline float __fadd_rn(float x, float y) {
    return x + y;
}
static inline float __fsub_rn(float x, float y) {
    return x - y;
}
static inline float __fmul_rn(float x, float y) {
    return x * y;
}
static inline float __fdiv_rn(float x, float y) {
    return x / y;
}
static inline float __fmaf_rn(float x, float y, float z) {
    return fmaf(x, y, z);
}
static inline float __saturatef(float x) {
    return fminf(fmaxf(x, 0.0f), 1.0f);
}

#define EMULATOR_MIN_MAX(T, A, B) \
    static inline T min(A a, B b) { \
        return (T)a < (T)b ? (T)a : (T)b; \
    } \
    static inline T max(A a, B b) { \
        return (T)a < (T)b ? (T)b : (T)a; \
    }
EMULATOR_MIN_MAX(int, int, int)
EMULATOR_MIN_MAX(unsigned, unsigned, unsigned)
EMULATOR_MIN_MAX(unsigned, int, unsigned)
EMULATOR_MIN_MAX(unsigned, unsigned, int)
EMULATOR_MIN_MAX(long, long, long)
EMULATOR_MIN_MAX(unsigned long, unsigned long, unsigned long)
EMULATOR_MIN_MAX(long long, long long, long long)
EMULATOR_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
#undef EMULATOR_MIN_MAX
// NaN loses, as in CUDA.
static inline float min(float a, float b) {
    return fminf(a, b);
}
static inline float max(float a, float b) {
    return fmaxf(a, b);
}
static inline double min(double a, double b) {
    return fmin(a, b);
}
static inline double max(double a, double b) {
    return fmax(a, b);
}

// Loads and stores with cache hints: the hint changes nothing that the emulator models.
template <class T>
EMULATOR_INLINE T __ldg(const T* source) {
    return *source;
}
template <class T>
EMULATOR_INLINE T __ldcg(const T* source) {
    return *source;
}
template <class T>
EMULATOR_INLINE T __ldcs(const T* source) {
    return *source;
}
template <class T>
EMULATOR_INLINE void __stcg(T* target, T value) {
    *target = value;
}
template <class T>
EMULATOR_INLINE void __stcs(T* target, T value) {
    *target = value;
}
