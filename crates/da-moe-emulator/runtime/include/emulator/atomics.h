// Atomic functions on global and shared memory, and the fences that make them synchronise.
#pragma once

#include "kernel.h"

namespace emu {

// Checks an atomic access made by the kernel code at `site`, and may let other threads run first.
void atomic_access(const void* target, size_t bytes, const void* site);
void atomic_done(bool changed);

enum class FenceScope { Block, Device };
void fence(FenceScope scope);
void nanosleep();
[[noreturn]] void trap();

// `T` is what CUDA has atomics for; `value` is not deduced, so that `atomicAdd(&unsigned_counter, 1)` compiles.
template <class T>
struct Same {
    using type = T;
};
template <class T>
using Value = typename Same<T>::type;

template <class T, class Update>
EMULATOR_UNCHECKED T atomic_update(T* target, Update update) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "atomics are 4 or 8 bytes wide");
    atomic_access(target, sizeof(T), __builtin_return_address(0));
    const T old = *target;
    const T value = update(old);
    *target = value;
    atomic_done(__builtin_memcmp(&old, &value, sizeof(T)) != 0);
    return old;
}

}  // namespace emu

template <class T>
EMULATOR_INLINE T atomicAdd(T* target, emu::Value<T> value) {
    return emu::atomic_update(target, [value](T old) { return (T)(old + value); });
}
template <class T>
EMULATOR_INLINE T atomicSub(T* target, emu::Value<T> value) {
    static_assert(std::is_integral_v<T>, "CUDA has no atomicSub of floating-point numbers");
    return emu::atomic_update(target, [value](T old) { return (T)(old - value); });
}
template <class T>
EMULATOR_INLINE T atomicMin(T* target, emu::Value<T> value) {
    static_assert(std::is_integral_v<T>, "CUDA has no atomicMin of floating-point numbers");
    return emu::atomic_update(target, [value](T old) { return value < old ? value : old; });
}
template <class T>
EMULATOR_INLINE T atomicMax(T* target, emu::Value<T> value) {
    static_assert(std::is_integral_v<T>, "CUDA has no atomicMax of floating-point numbers");
    return emu::atomic_update(target, [value](T old) { return old < value ? value : old; });
}
template <class T>
EMULATOR_INLINE T atomicAnd(T* target, emu::Value<T> value) {
    return emu::atomic_update(target, [value](T old) { return (T)(old & value); });
}
template <class T>
EMULATOR_INLINE T atomicOr(T* target, emu::Value<T> value) {
    return emu::atomic_update(target, [value](T old) { return (T)(old | value); });
}
template <class T>
EMULATOR_INLINE T atomicXor(T* target, emu::Value<T> value) {
    return emu::atomic_update(target, [value](T old) { return (T)(old ^ value); });
}
template <class T>
EMULATOR_INLINE T atomicExch(T* target, emu::Value<T> value) {
    return emu::atomic_update(target, [value](T) { return value; });
}
template <class T>
EMULATOR_INLINE T atomicCAS(T* target, emu::Value<T> expected, emu::Value<T> value) {
    static_assert(std::is_integral_v<T>, "CUDA compares and swaps integers");
    return emu::atomic_update(target, [expected, value](T old) { return old == expected ? value : old; });
}
EMULATOR_INLINE unsigned atomicInc(unsigned* target, unsigned limit) {
    return emu::atomic_update(target, [limit](unsigned old) { return old >= limit ? 0 : old + 1; });
}
EMULATOR_INLINE unsigned atomicDec(unsigned* target, unsigned limit) {
    return emu::atomic_update(target, [limit](unsigned old) { return old == 0 || old > limit ? limit : old - 1; });
}

EMULATOR_INLINE void __threadfence() {
    emu::fence(emu::FenceScope::Device);
}
EMULATOR_INLINE void __threadfence_block() {
    emu::fence(emu::FenceScope::Block);
}
EMULATOR_INLINE void __nanosleep(unsigned) {
    emu::nanosleep();
}
[[noreturn]] EMULATOR_INLINE void __trap() {
    emu::trap();
}
