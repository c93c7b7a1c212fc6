// The main loop of a warpgroup: 64 rows by 256 columns, step by step as the ring has them, in the order of the depth.
//
// What keeps ptxas from serialising it: the first wgmma of a unit only writes the accumulators and is not in the loop; nothing but
// wgmma writes them; and a warpgroup without rows has a loop of its own.
#pragma once

#include "experts/hopper/ring.cuh"

namespace da_moe::hopper {

constexpr int ACCUMULATORS = WARPGROUP_ROWS * COLUMNS / WARPGROUP;

template <class S>
struct Mma;
template <>
struct Mma<bf16> {
    template <bool A_ACROSS, bool B_ACROSS>
    __device__ __forceinline__ static void first(float (&d)[ACCUMULATORS], uint64_t a, uint64_t b) {
        ptx::wgmma_first_bf16<A_ACROSS, B_ACROSS>(d, a, b);
    }
    template <bool A_ACROSS, bool B_ACROSS>
    __device__ __forceinline__ static void add(float (&d)[ACCUMULATORS], uint64_t a, uint64_t b) {
        ptx::wgmma_bf16<A_ACROSS, B_ACROSS>(d, a, b);
    }
    __device__ __forceinline__ static uint32_t pack(float first, float second) { return ptx::pack_bf16(first, second); }
};
template <>
struct Mma<f16> {
    template <bool A_ACROSS, bool B_ACROSS>
    __device__ __forceinline__ static void first(float (&d)[ACCUMULATORS], uint64_t a, uint64_t b) {
        ptx::wgmma_first_f16<A_ACROSS, B_ACROSS>(d, a, b);
    }
    template <bool A_ACROSS, bool B_ACROSS>
    __device__ __forceinline__ static void add(float (&d)[ACCUMULATORS], uint64_t a, uint64_t b) {
        ptx::wgmma_f16<A_ACROSS, B_ACROSS>(d, a, b);
    }
    __device__ __forceinline__ static uint32_t pack(float first, float second) { return ptx::pack_f16(first, second); }
};

// Multiplies the ring's stage. Gathered rows were written by threads, and are read by another proxy.
template <class K, bool FIRST>
__device__ __forceinline__ void multiply_stage(float (&d)[ACCUMULATORS], Ring<K>& ring, int warpgroup) {
    using Products = Mma<typename K::Storage>;
    ring.wait_full();
    if constexpr (K::GATHERED) {
        ptx::fence_proxy_async();
    }
    const uint32_t a = ring.a() + static_cast<uint32_t>(warpgroup * PLANE_BYTES), b = ring.b();
    ptx::wgmma_fence();
    if constexpr (FIRST) {
        Products::template first<K::A_ACROSS, K::B_ACROSS>(d, descriptor<K::A_ACROSS>(a, 0), descriptor<K::B_ACROSS>(b, 0));
    }
#pragma unroll
    for (int k = FIRST ? 1 : 0; k < DEPTH / 16; k++) {
        Products::template add<K::A_ACROSS, K::B_ACROSS>(d, descriptor<K::A_ACROSS>(a, k), descriptor<K::B_ACROSS>(b, k));
    }
    ptx::wgmma_commit();
}

// All steps of a unit. `meanwhile` runs under the first.
template <class K, class Meanwhile>
__device__ __forceinline__ void multiply(float (&d)[ACCUMULATORS], Ring<K>& ring, const Release<K>& release, int warpgroup,
                                         int depth, const Meanwhile& meanwhile) {
    int before = ring.stage();
    multiply_stage<K, true>(d, ring, warpgroup);
    ring.next();
    meanwhile();
#pragma unroll 1
    for (int at = DEPTH; at < depth; at += DEPTH) {
        multiply_stage<K, false>(d, ring, warpgroup);
        // The step before is done: its stage may be filled again.
        ptx::wgmma_wait<1>();
        release(before);
        before = ring.stage();
        ring.next();
    }
    ptx::wgmma_wait<0>();
    release(before);
}

// The same ring for a warpgroup without rows. A warp releases a stage when all of its lanes have seen it full: one that looked later could
// find it filled again, and wait for the wrong phase.
template <class K>
__device__ __forceinline__ void pass_over(Ring<K>& ring, const Release<K>& release, int depth) {
#pragma unroll 1
    for (int at = 0; at < depth; at += DEPTH) {
        ring.wait_full();
        __syncwarp();
        release(ring.stage());
        ring.next();
    }
}

}  // namespace da_moe::hopper
