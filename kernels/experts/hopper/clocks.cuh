// Where a block's clocks go, in kernels that are compiled to tell: how long the bringing warpgroup waits for a free stage, how long the
// first multiplying one waits for a full one, and how long it takes to leave. Elsewhere all of this is nothing.
#pragma once

#include "experts/hopper/tile.cuh"

namespace da_moe::hopper {

// A thread's clocks while some part of its work was done, added up.
template <bool ON>
class Clocks {
public:
    // Runs `part` and adds what it takes.
    template <class Part>
    __device__ __forceinline__ void count(const Part& part) {
        if constexpr (ON) {
            const long long start = clock64();
            part();
            sum_ += clock64() - start;
        } else {
            part();
        }
    }

    // What the thread of the first warp of a warpgroup has that counted most: one of them may have done it all.
    __device__ __forceinline__ void store(int64_t* clocks, int column) const {
        if constexpr (ON) {
            if (warp_index() % (WARPGROUP / WARP) != 0) {
                return;
            }
            long long most = sum_;
#pragma unroll
            for (int distance = WARP / 2; distance > 0; distance /= 2) {
                const long long other = __shfl_xor_sync(FULL_WARP, most, distance);
                most = other > most ? other : most;
            }
            if (lane_index() == 0) {
                clocks[blockIdx.x * HOPPER_CLOCKS + column] = most;
            }
        }
    }

private:
    long long sum_ = 0;
};

}  // namespace da_moe::hopper
