// Rows by their experts' weights.
#pragma once

#include "experts/hopper/output.cuh"
#include "experts/hopper/produce.cuh"
#include "experts/hopper/product.cuh"

namespace da_moe::hopper {

template <class K>
__device__ __forceinline__ void grouped_gemm(const HopperGemm& p, unsigned char* shared) {
    const auto begin = [&] {
        ptx::prefetch_tensor_map(&p.b);
        ptx::prefetch_tensor_map(&p.out);
    };
    const auto produce = [&](Ring<K>& ring, int rank) {
        if constexpr (K::GATHERED) {
            produce_gathered(p.b, p.product, ring, rank);
        } else if (uniform(warp_index()) == 0) {
            produce_packed(p, ring, rank);
        }
    };
    block<K>(Units<K>(p.product), p.clocks, shared, begin, produce,
             [&](int warpgroup) { return Output<K>(p, shared, warpgroup); });
}

}  // namespace da_moe::hopper

#define HOPPER_GEMM(storage, name, gated, gathered, across, way)                         \
    HOPPER_KERNEL(name, HopperGemm, da_moe::hopper::way::BLOCKS,                         \
                  grouped_gemm<da_moe::hopper::Kind<da_moe::storage, gated, gathered, across, da_moe::hopper::way>>)
