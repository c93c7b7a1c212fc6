// SPEC §6 for a routing from the caller: each slot's gradient put back to the entry that it came from; 0 for the others.
//
//   routing_backward
//
// Grid (T / 8), block 8 warps, one a token: the lanes scatter the slots to their places in shared memory, then write the
// token's entries in order. One barrier of a warp, and one for every 32 slots. Bytes: 8·T·K read, 4 an entry written, and
// 4·T from the L1, again and again, to find a compressed entry's token; floor: that over the memory bandwidth, 1 µs at
// 3 TB/s for T 32768, K 8: a launch.

#include "abi.h"
#include "device/partition.cuh"
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
    for (int first = 0; first < p.slots; first += WARP) {
        const int slot = first + lane_index();
        const int place = slot < p.slots ? p.ranked[token * p.ranked_stride + slot] : -1;
        // That every place is named once is no more than the caller's word, and so is the order of offsets below.
        if (is_first_with(place) && place >= 0 && place < places) {
            gradients[place] = p.d_weights[token * p.d_weights_stride + slot];
        }
        __syncwarp();
    }
    const bool padded = p.offsets == nullptr;
    const EntryRange range = padded ? EntryRange{token * p.columns, p.columns} : compressed_range(p.offsets, token, p.entries);
    const Partition tokens = {p.offsets, p.tokens, p.entries};
    for (int place = lane_index(); place < range.count; place += WARP) {
        if (padded || tokens.of(range.first + place) == token) {
            p.d_routing[range.first + place] = place < places ? gradients[place] : 0.0f;
        }
    }
}
GPU_KERNEL(routing_backward)
