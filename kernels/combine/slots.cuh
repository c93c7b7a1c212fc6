// A token's slots that give something, in slot order: 32 of them are read by the lanes at once and handed round the warp.
#pragma once

#include "abi.h"
#include "device/warp.cuh"

namespace da_moe {

// The place of an expert among the null experts; negative for routed experts and for none.
__device__ __forceinline__ int null_of(int expert, int routed) { return expert >= routed ? expert - routed : -1; }

// A token's row of the shared expert, negative for a masked one. There are no more rows than tokens.
template <class P>
__device__ __forceinline__ int row_of_shared(const P& p, int token) {
    return p.shared_row == nullptr ? token : min(p.shared_row[token], p.tokens - 1);
}

// Calls `visit(row, null, weight)`, all lanes alike, for every slot with a row below `row_count` or a null expert. The row
// is -1 where there is none. Called by the whole warp with parameters that have a selection and a plan.
template <class P, class Visit>
__device__ __forceinline__ void each_slot(const P& p, int token, Visit visit) {
    for (int first = 0; first < p.slots; first += WARP) {
        const int slot = first + lane_index();
        const bool mine = slot < p.slots;
        const int null = mine ? null_of(p.experts[token * p.experts_stride + slot], p.routed) : -1;
        int row = mine ? p.token_row[token * p.token_row_stride + slot] : -1;
        row = row < p.row_count ? row : -1;
        const float weight = mine ? p.weights[token * p.weights_stride + slot] : 0.0f;
        for (unsigned rest = __ballot_sync(FULL_WARP, row >= 0 || null >= 0); rest != 0; rest &= rest - 1) {
            const int lane = __ffs(static_cast<int>(rest)) - 1;
            visit(__shfl_sync(FULL_WARP, row, lane), __shfl_sync(FULL_WARP, null, lane),
                  __shfl_sync(FULL_WARP, weight, lane));
        }
    }
}

}  // namespace da_moe
