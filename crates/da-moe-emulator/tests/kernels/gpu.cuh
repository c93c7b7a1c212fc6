// Wrappers of PTX instructions, as a library would have them: here only the branch for the emulator.
#pragma once

#include <emulator/cuda.h>
#include <emulator/ptx.h>

#define GPU_FN static __device__ __forceinline__

namespace gpu {

using emu::Location;

GPU_FN uint32_t smem(const void* pointer) {
    return emu::shared_address(pointer);
}
GPU_FN void cp_async16(uint32_t target, const void* source, int source_bytes) {
    emu::cp_async(target, source, 16, source_bytes);
}
GPU_FN void cp_async_commit() {
    emu::cp_async_commit();
}
template <int N>
GPU_FN void cp_async_wait() {
    emu::cp_async_wait(N);
}
GPU_FN void ldmatrix_x4(uint32_t (&r)[4], uint32_t row, Location here = Location::current()) {
    emu::ldmatrix(4, false, row, r, here);
}
GPU_FN void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row, Location here = Location::current()) {
    emu::ldmatrix(4, true, row, r, here);
}
GPU_FN void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4],
                     Location here = Location::current()) {
    emu::mma_m16n8k16(emu::Element::Bf16, d, a, b, c, here);
}
GPU_FN void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4],
                    Location here = Location::current()) {
    emu::mma_m16n8k16(emu::Element::F16, d, a, b, c, here);
}

GPU_FN void mbar_wait(uint32_t mbarrier, uint32_t parity, Location here = Location::current()) {
    while (!emu::mbarrier_try_wait(mbarrier, parity, here)) {}
}

GPU_FN void tma_load(uint32_t target, const CUtensorMap* map, uint32_t mbarrier, unsigned rank, const int* at) {
    emu::tma_load(target, map, mbarrier, rank, at, 0);
}
GPU_FN void tma_load_2d(uint32_t target, const CUtensorMap* map, uint32_t mbarrier, int x, int y) {
    const int at[2] = {x, y};
    emu::tma_load(target, map, mbarrier, 2, at, 0);
}
GPU_FN void tma_store(const CUtensorMap* map, uint32_t source, unsigned rank, const int* at) {
    emu::tma_store(map, source, rank, at);
}

GPU_FN void wgmma_m64n64k16(float (&d)[32], uint64_t a, uint64_t b, bool scale_d, Location here = Location::current()) {
    emu::wgmma(d, {emu::Element::Bf16, 64, a, b, scale_d, false, false}, here);
}

// An operand whose rows run along k, 64 elements each, with the 128-byte swizzle: 8 rows are 1024 bytes.
GPU_FN uint64_t descriptor(uint32_t address) {
    const uint64_t leading = 1, stride = 1024 >> 4, swizzle_128 = 1;
    return (address & 0x3ffff) >> 4 | leading << 16 | stride << 32 | swizzle_128 << 62;
}

}  // namespace gpu
