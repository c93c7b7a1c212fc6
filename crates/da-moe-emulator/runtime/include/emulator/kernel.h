// What every kernel source needs: who am I, shared memory, and the entry by which the launcher finds a kernel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "types.h"

// Code the checker must not see: it moves data on behalf of the machine, not of the kernel.
#define EMULATOR_UNCHECKED __attribute__((no_sanitize("thread"), noinline))
#define EMULATOR_INLINE inline __attribute__((always_inline))

namespace emu {

// A source position. Written as a default argument it is the caller's, which tells collectives of one line apart from
// those of another.
struct Location {
    const char* file;
    int line;

    static constexpr Location current(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return {file, line};
    }
};

// The part of a thread that kernels read. It lies at the low end of the aligned slot that also holds the thread's
// stack, so the running thread is found from the stack pointer alone.
struct Context {
    uint3 thread_index, block_index;
    dim3 block_dim, grid_dim;
};

constexpr uintptr_t SLOT_BYTES = 64 << 10;

// Where the thread lies in the slot at `slot`: not at the start of each, because equal distances share cache sets.
constexpr uintptr_t SLOT_COLOURS = 64;
EMULATOR_INLINE uintptr_t thread_in(uintptr_t slot) {
    return slot + slot / SLOT_BYTES % SLOT_COLOURS * 64;
}

EMULATOR_INLINE const Context& context() {
    const auto frame = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
    return *reinterpret_cast<const Context*>(thread_in(frame & ~(SLOT_BYTES - 1)));
}

// The block's array that belongs to `tag`: made when the first thread asks for it.
void* shared_array(const void* tag, const char* name, size_t bytes, size_t align);
// The block's dynamic shared memory, aligned to `align` and to no more, so that hidden assumptions show.
void* dynamic_shared(const char* name, size_t align);

// What the launcher finds: `call` takes one pointer for each parameter, as cuLaunchKernel's kernelParams. Aligned to
// its own size, so that the linker puts no gap between the entries of one array.
struct alignas(64) Entry {
    const char* name;
    const char* file;
    void (*call)(void** parameters);
    size_t parameter_count;
    const size_t* parameter_sizes;
};

template <auto Kernel>
struct Trampoline;

template <class... Parameters, void (*Kernel)(Parameters...)>
struct Trampoline<Kernel> {
    static_assert((sizeof(Parameters) + ... + 0) <= 4096, "CUDA passes at most 4 KiB of kernel parameters");
    static_assert((!std::is_reference_v<Parameters> && ...), "kernel parameters are passed by value");
    static constexpr size_t count = sizeof...(Parameters);
    // One more than there are, because an array has at least one element.
    static constexpr size_t sizes[] = {sizeof(Parameters)..., 0};

    EMULATOR_UNCHECKED static void call(void** parameters) {
        call(parameters, std::index_sequence_for<Parameters...>{});
    }

    template <size_t... I>
    EMULATOR_UNCHECKED static void call(void** parameters, std::index_sequence<I...>) {
        Kernel(*static_cast<Parameters*>(parameters[I])...);
    }
};

}  // namespace emu

#define threadIdx (::emu::context().thread_index)
#define blockIdx (::emu::context().block_index)
#define blockDim (::emu::context().block_dim)
#define gridDim (::emu::context().grid_dim)
constexpr int warpSize = 32;

// Registers an `extern "C"` kernel. The linker gathers the entries of all files into one array.
#define EMULATOR_ENTRY_1(kernel) \
    __attribute__((section("emulator_kernels"), used)) static ::emu::Entry emulator_entry_##kernel = { \
        #kernel, __FILE__, &::emu::Trampoline<&kernel>::call, ::emu::Trampoline<&kernel>::count, \
        ::emu::Trampoline<&kernel>::sizes};
#define EMULATOR_ENTRY_0(kernel)

// With EMULATOR_ONLY a file has the kernels for which EMULATOR_ONLY_<kernel> is 1. The others are inline functions that nobody
// calls, for which no code is made. A name that is no macro pastes to nothing that has a comma, and the second argument is the 0.
#if defined(EMULATOR_ONLY)
#define EMULATOR_COMMA_1 ,1
#define EMULATOR_PASTE(a, b) EMULATOR_PASTE_(a, b)
#define EMULATOR_PASTE_(a, b) a##b
#define EMULATOR_SECOND(...) EMULATOR_SECOND_(__VA_ARGS__, 0, 0)
#define EMULATOR_SECOND_(first, second, ...) second
#define GPU_KERNEL(kernel) \
    EMULATOR_PASTE(EMULATOR_ENTRY_, EMULATOR_SECOND(EMULATOR_PASTE(EMULATOR_COMMA_, EMULATOR_ONLY_##kernel)))(kernel)
#define __global__ inline
#else
#define GPU_KERNEL(kernel) EMULATOR_ENTRY_1(kernel)
#define __global__
#endif

// `SHARED_ARRAY(float, sums, 32);` declares what CUDA writes as `__shared__ float sums[32];`.
#define SHARED_ARRAY(T, name, n) \
    static const char emulator_tag_##name = 0; \
    T(&name)[n] = *static_cast<T(*)[n]>(::emu::shared_array(&emulator_tag_##name, #name, sizeof(T) * (n), alignof(T)))

// `DYN_SMEM(raw, 16);` declares `unsigned char* raw`, the launch's dynamic shared memory.
#define DYN_SMEM(name, align) unsigned char* name = static_cast<unsigned char*>(::emu::dynamic_shared(#name, align))

#define __shared__ Write_SHARED_ARRAY_or_DYN_SMEM_instead_of___shared__
#define __device__
#define __host__
#define __constant__ const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
#define __align__(n) alignas(n)
