// Tile after tile of a grouped product: the scheduler says which, a main loop multiplies, an output writes.
#pragma once

#include "abi.h"
#include "device/tf32.cuh"
#include "experts/epilogue.cuh"
#include "experts/hidden_gradient.cuh"
#include "experts/operands.cuh"
#include "experts/scheduler.cuh"

namespace da_moe {

template <class Loop, class SourceA, class SourceB, class Output>
__device__ __forceinline__ void tiles(const GroupedGemm& p, const Output& output, unsigned char* shared) {
    TileScheduler<Loop::TILE_ROWS, Loop::TILE_COLUMNS / (SourceB::GATED ? 2 : 1)> scheduler(p);
    Loop loop(shared);
    Tile tile;
    while (scheduler.next(tile)) {
        loop.run(SourceA(p, tile), SourceB(p, tile), tile.rows, p.depth);
        hand_out(loop, tile.rows, [&](int first, const auto& products) {
            output.write({tile.expert, tile.row + first, tile.rows - first, tile.column}, products);
        });
    }
}

// Products with a bias, activated.
template <class Loop, class SourceA, class SourceB>
__device__ __forceinline__ void grouped_gemm(const GroupedGemm& p, unsigned char* shared) {
    using Output = TileOutput<typename SourceB::Element, SourceB::GATED>;
    tiles<Loop, SourceA, SourceB>(p, Output(p), shared);
}

// f16 has too few exponents for gradients on their way: rounding them there loses what the end could still hold. TF32 has f32's
// and the same fraction, and the products that follow take it as it is.
template <class S>
struct BetweenLaunches {
    using Type = S;
};
template <>
struct BetweenLaunches<f16> {
    using Type = tf32;
};

// Products that are the gradient of activated values.
template <class Loop, class SourceA, class SourceB>
__device__ __forceinline__ void hidden_gradient(const HiddenGradient& p, unsigned char* shared) {
    using S = typename SourceB::Element;
    using Output = HiddenGradientOutput<S, typename BetweenLaunches<S>::Type, Loop::ALONE>;
    tiles<Loop, SourceA, SourceB>(p.product, Output(p), shared);
}

}  // namespace da_moe
