// Barriers of a block, and what the lanes of a warp do together.
#pragma once

#include "kernel.h"

namespace emu {

enum class BarrierVote { None, Or, And, Count };
int block_barrier(BarrierVote vote, int predicate, Location here);

enum class Shuffle { Index, Up, Down, Xor };
uint64_t shuffle(Shuffle mode, uint32_t mask, uint64_t value, int argument, int width, Location here);

enum class Vote { Ballot, Any, All };
uint32_t vote(Vote mode, uint32_t mask, int predicate, Location here);
void sync_warp(uint32_t mask, Location here);

uint32_t match_any(uint32_t mask, uint64_t value, Location here);

enum class Reduce { Add, Min, Max, MinSigned, MaxSigned, And, Or, Xor };
uint32_t reduce(Reduce mode, uint32_t mask, uint32_t value, Location here);

template <class T>
EMULATOR_INLINE uint64_t to_bits(T value) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>, "warp functions move values of up to 8 bytes");
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &value, sizeof(T));
    return bits;
}

template <class T>
EMULATOR_INLINE T from_bits(uint64_t bits) {
    T value;
    __builtin_memcpy(&value, &bits, sizeof(T));
    return value;
}

}  // namespace emu

#define EMULATOR_HERE ::emu::Location here = ::emu::Location::current()

EMULATOR_INLINE void __syncthreads(EMULATOR_HERE) {
    emu::block_barrier(emu::BarrierVote::None, 0, here);
}
EMULATOR_INLINE int __syncthreads_or(int predicate, EMULATOR_HERE) {
    return emu::block_barrier(emu::BarrierVote::Or, predicate, here);
}
EMULATOR_INLINE int __syncthreads_and(int predicate, EMULATOR_HERE) {
    return emu::block_barrier(emu::BarrierVote::And, predicate, here);
}
EMULATOR_INLINE int __syncthreads_count(int predicate, EMULATOR_HERE) {
    return emu::block_barrier(emu::BarrierVote::Count, predicate, here);
}
EMULATOR_INLINE void __syncwarp(unsigned mask = 0xffffffffu, EMULATOR_HERE) {
    emu::sync_warp(mask, here);
}

template <class T>
EMULATOR_INLINE T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMULATOR_HERE) {
    return emu::from_bits<T>(emu::shuffle(emu::Shuffle::Index, mask, emu::to_bits(value), source, width, here));
}
template <class T>
EMULATOR_INLINE T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_HERE) {
    return emu::from_bits<T>(emu::shuffle(emu::Shuffle::Up, mask, emu::to_bits(value), (int)delta, width, here));
}
template <class T>
EMULATOR_INLINE T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMULATOR_HERE) {
    return emu::from_bits<T>(emu::shuffle(emu::Shuffle::Down, mask, emu::to_bits(value), (int)delta, width, here));
}
template <class T>
EMULATOR_INLINE T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, EMULATOR_HERE) {
    return emu::from_bits<T>(emu::shuffle(emu::Shuffle::Xor, mask, emu::to_bits(value), bits, width, here));
}

EMULATOR_INLINE unsigned __ballot_sync(unsigned mask, int predicate, EMULATOR_HERE) {
    return emu::vote(emu::Vote::Ballot, mask, predicate, here);
}
EMULATOR_INLINE int __any_sync(unsigned mask, int predicate, EMULATOR_HERE) {
    return (int)emu::vote(emu::Vote::Any, mask, predicate, here);
}
EMULATOR_INLINE int __all_sync(unsigned mask, int predicate, EMULATOR_HERE) {
    return (int)emu::vote(emu::Vote::All, mask, predicate, here);
}

// Which lanes run together is the hardware's choice, so a kernel that asks depends on luck.
__attribute__((error("__activemask() is whatever the hardware chose: pass the mask you mean"))) unsigned __activemask();

template <class T>
EMULATOR_INLINE unsigned __match_any_sync(unsigned mask, T value, EMULATOR_HERE) {
    return emu::match_any(mask, emu::to_bits(value), here);
}

EMULATOR_INLINE unsigned __reduce_add_sync(unsigned mask, unsigned value, EMULATOR_HERE) {
    return emu::reduce(emu::Reduce::Add, mask, value, here);
}
EMULATOR_INLINE int __reduce_add_sync(unsigned mask, int value, EMULATOR_HERE) {
    return (int)emu::reduce(emu::Reduce::Add, mask, (unsigned)value, here);
}
EMULATOR_INLINE unsigned __reduce_min_sync(unsigned mask, unsigned value, EMULATOR_HERE) {
    return emu::reduce(emu::Reduce::Min, mask, value, here);
}
EMULATOR_INLINE int __reduce_min_sync(unsigned mask, int value, EMULATOR_HERE) {
    return (int)emu::reduce(emu::Reduce::MinSigned, mask, (unsigned)value, here);
}
EMULATOR_INLINE unsigned __reduce_max_sync(unsigned mask, unsigned value, EMULATOR_HERE) {
    return emu::reduce(emu::Reduce::Max, mask, value, here);
}
EMULATOR_INLINE int __reduce_max_sync(unsigned mask, int value, EMULATOR_HERE) {
    return (int)emu::reduce(emu::Reduce::MaxSigned, mask, (unsigned)value, here);
}
EMULATOR_INLINE unsigned __reduce_and_sync(unsigned mask, unsigned value, EMULATOR_HERE) {
    return emu::reduce(emu::Reduce::And, mask, value, here);
}
EMULATOR_INLINE unsigned __reduce_or_sync(unsigned mask, unsigned value, EMULATOR_HERE) {
    return emu::reduce(emu::Reduce::Or, mask, value, here);
}
EMULATOR_INLINE unsigned __reduce_xor_sync(unsigned mask, unsigned value, EMULATOR_HERE) {
    return emu::reduce(emu::Reduce::Xor, mask, value, here);
}
