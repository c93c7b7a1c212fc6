// Sums over all tokens: every block writes its part, the last block to arrive adds the parts in the order of the blocks.
#pragma once

#include "device/block.cuh"

namespace da_moe {

// The sum of `parts[b, column]` over the blocks b of the grid, for each of up to `columns` columns, handed to
// `finish(column, sum)`. A column is shared by as many threads as there are, each taking every so-manieth block; their
// sums are added in order through `scratch`, one value a thread. Called by the whole block.
template <class Sum, class Part, class Finish>
__device__ __forceinline__ void column_sums(const Part* parts, int columns, Sum* scratch, Finish finish) {
    const int threads = static_cast<int>(blockDim.x);
    const int blocks = static_cast<int>(gridDim.x);
    for (int first = 0; first < columns; first += threads) {
        const int width = min(columns - first, threads);
        const int sharers = threads / width;
        const int column = static_cast<int>(threadIdx.x) % width;
        const int sharer = static_cast<int>(threadIdx.x) / width;
        Sum sum = 0;
        // Read in batches: nobody else is left to work while one load waits for another.
        constexpr int BATCH = 16;
        for (int start = sharer < sharers ? sharer : blocks; start < blocks; start += BATCH * sharers) {
            Part batch[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                const int b = start + i * sharers;
                // Counted in 32 bits: there is less of this than of the logits.
                batch[i] = b < blocks ? parts[static_cast<unsigned>(b * columns + first + column)] : Part(0);
            }
#pragma unroll
            for (int i = 0; i < BATCH; i++) {
                sum += static_cast<Sum>(batch[i]);
            }
        }
        scratch[threadIdx.x] = sum;
        __syncthreads();
        if (sharer == 0) {
            for (int other = 1; other < sharers; other++) {
                sum += scratch[other * width + column];
            }
            finish(first + column, sum);
        }
        __syncthreads();
    }
}

}  // namespace da_moe
