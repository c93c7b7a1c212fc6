// SPEC §6 for a routing from the caller: each slot's gradient put back to the entry that it came from; 0 for the others.
//
//   routing_backward
//
// Grid (T / 8), block 8 warps, one a token: the lanes scatter the slots to their places in shared memory, then write the
// token's entries in order. Two barriers of a warp. Bytes: 8·T·K read, 4 an entry written; floor: that over the memory
// bandwidth, 1 µs at 3 TB/s for T 32768, K 8: a launch.

#include "abi.h"
#include "device/warp.cuh"
#include "gate/entries.cuh"

namespace da_moe {
namespace {

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * WARP;

}  // namespace
}  // namespace da_moe

extern "C" __global__ void __launch_bounds__(da_moe::THREADS) routing_backward(const __grid_constant__ RoutingBackward p) {
    using namespace da_moe;
    SHARED_ARRAY(float, of_warps, WARPS * MAX_CANDIDATES);
    const int token = static_cast<int>(blockIdx.x) * WARPS + warp_index();
    if (token >= p.tokens) {
        return;
    }
    // A token has at most as many entries as slots, and no more slots than there may be candidates.
    const int places = min(p.slots, MAX_CANDIDATES);
    float* gradients = of_warps + warp_index() * MAX_CANDIDATES;
    for (int place = lane_index(); place < places; place += WARP) {
        gradients[place] = 0.0f;
    }
    __syncwarp();
    for (int slot = lane_index(); slot < p.slots; slot += WARP) {
        const int place = p.ranked[token * p.ranked_stride + slot];
        if (place >= 0 && place < places) {
            gradients[place] = p.d_weights[token * p.d_weights_stride + slot];
        }
    }
    __syncwarp();
    const bool padded = p.offsets == nullptr;
    const EntryRange range = padded ? EntryRange{0, p.columns} : compressed_range(p.offsets, token, p.entries);
    float* to = p.d_routing + (padded ? static_cast<int64_t>(token) * p.columns : range.first);
    for (int place = lane_index(); place < range.count; place += WARP) {
        to[place] = place < places ? gradients[place] : 0.0f;
    }
}
GPU_KERNEL(routing_backward)
