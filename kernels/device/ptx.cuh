// One PTX instruction a function, for what CUDA C++ has no function for. Under nvcc it is inline PTX; on the emulator the
// call of the same name, which follows the PTX manual. Shared memory addresses are 32 bits wide, as PTX has them.
#pragma once

#include "device/platform.cuh"

#if !defined(__CUDACC__)
#include <emulator/ptx.h>
#endif

namespace da_moe::ptx {

#if defined(__CUDACC__)

#define PTX_FN static __device__ __forceinline__

PTX_FN uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Copies 16 bytes from global to shared memory in the background; those past `source_bytes` become zero.
PTX_FN void cp_async_16(uint32_t target, const void* source, int source_bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(source_bytes) : "memory");
}

// As above: all 16 bytes, or zeros.
PTX_FN void cp_async_16_if(uint32_t target, const void* source, bool is_there) {
    asm volatile("{ .reg .pred ignore; setp.eq.u32 ignore, %2, 0; cp.async.cg.shared.global [%0], [%1], 16, ignore; }" ::"r"(
                     target),
                 "l"(source), "r"(static_cast<uint32_t>(is_there))
                 : "memory");
}

PTX_FN void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `GROUPS` of this thread's committed groups are in flight.
template <int GROUPS>
PTX_FN void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
}

// Four 8 × 8 matrices of 16-bit elements; lane l gives the address of row l mod 8 of matrix l / 8.
PTX_FN void ldmatrix_x4(uint32_t (&out)[4], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(row)
                 : "memory");
}

// As above, each matrix transposed.
PTX_FN void ldmatrix_x4_trans(uint32_t (&out)[4], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(row)
                 : "memory");
}

// d = a · b + d for a 16 × 16 by 16 × 8 product, f32 accumulators.
PTX_FN void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

PTX_FN void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// 2^x within 2^-22 of it; what is subnormal becomes 0.
PTX_FN float ex2(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

// An f32 value rounded to the 10 fraction bits of TF32, halves away from zero. Not volatile: the same value may be rounded
// once for several products.
PTX_FN uint32_t round_tf32(uint32_t bits) {
    uint32_t rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
    return rounded;
}

// As above for a 16 × 8 by 8 × 8 product of f32 values, of which the lower 13 bits are ignored.
PTX_FN void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#else

// The emulator's reports name the place of the call, so every wrapper passes its caller's on.
#define PTX_FN static inline __attribute__((always_inline))

PTX_FN uint32_t shared_address(const void* pointer) { return emu::shared_address(pointer); }
PTX_FN void cp_async_16(uint32_t target, const void* source, int source_bytes) {
    emu::cp_async(target, source, 16, static_cast<uint32_t>(source_bytes));
}
PTX_FN void cp_async_16_if(uint32_t target, const void* source, bool is_there) {
    emu::cp_async(target, source, 16, is_there ? 16 : 0);
}
PTX_FN void cp_async_commit() { emu::cp_async_commit(); }
template <int GROUPS>
PTX_FN void cp_async_wait() {
    emu::cp_async_wait(GROUPS);
}
PTX_FN void ldmatrix_x4(uint32_t (&out)[4], uint32_t row) { emu::ldmatrix(4, false, row, out); }
PTX_FN void ldmatrix_x4_trans(uint32_t (&out)[4], uint32_t row) { emu::ldmatrix(4, true, row, out); }
PTX_FN void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emu::mma_m16n8k16(emu::Element::Bf16, d, a, b, d);
}
PTX_FN void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emu::mma_m16n8k16(emu::Element::F16, d, a, b, d);
}
PTX_FN uint32_t round_tf32(uint32_t bits) { return emu::round_tf32(bits); }
PTX_FN void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emu::mma_m16n8k8_tf32(d, a, b, d);
}
PTX_FN float ex2(float x) { return emu::ex2(x); }

#endif

}  // namespace da_moe::ptx
