// What compiles a kernel: nvcc for a GPU, or a host C++ compiler for the emulator, which brings its own `emulator/cuda.h`.
//
// Kernels use CUDA C++ as it is, but for three things that a host compiler cannot know:
//   SHARED_ARRAY(T, name, n)   instead of `__shared__ T name[n]`
//   DYN_SMEM(name, align)      instead of `extern __shared__`
//   GPU_KERNEL(name)           after each kernel: its name in the emulator's launch table
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define SHARED_ARRAY(T, name, n) __shared__ T name[n]
#define DYN_SMEM(name, align) extern __shared__ __align__(align) unsigned char name[]
#define GPU_KERNEL(name)
#else
#include <emulator/cuda.h>
#endif

namespace da_moe {

constexpr unsigned FULL_WARP = 0xffffffffu;
constexpr int WARP = 32;
constexpr float LARGEST = 3.4028234e38f;

using bf16 = __nv_bfloat16;
using f16 = __half;

// The same value. What is made of it is computed here, and not kept in registers from before a loop that leaves none.
__device__ __forceinline__ int computed_here(int value) {
#if defined(__CUDACC__)
    asm volatile("" : "+r"(value));
#endif
    return value;
}

}  // namespace da_moe
