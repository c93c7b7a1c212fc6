// The ring of stages between who brings steps and who multiplies them.
//
// A stage is full when its phase has ended that waits for every copy of the step: one arrival for what TMA brings, whose bytes it
// expects from all blocks, and where threads copy rows of A, one for each of them. It is empty when every multiplying warp of
// every block has released it, because a block's part of B is written into all of them.
#pragma once

#include "experts/hopper/clocks.cuh"
#include "experts/hopper/kind.cuh"

namespace da_moe::hopper {

constexpr int MULTIPLYING_WARPS = 2 * WARPGROUP / WARP;

// Where a thread is in the ring: both sides walk it alike.
template <class K>
class Ring {
public:
    __device__ __forceinline__ explicit Ring(uint32_t shared) : shared_(shared) {}

    // By one thread, before a fence and a barrier of the cluster.
    __device__ __forceinline__ void init(int arrivals) const {
#pragma unroll
        for (int stage = 0; stage < K::STAGES; stage++) {
            ptx::mbarrier_init(full(stage), static_cast<uint32_t>(arrivals));
            ptx::mbarrier_init(empty(stage), K::Way::BLOCKS * MULTIPLYING_WARPS);
        }
    }

    __device__ __forceinline__ void wait_full() {
        waiting_.count([&] { ptx::mbarrier_wait(full(stage_), parity_); });
    }
    __device__ __forceinline__ void wait_empty() {
        waiting_.count([&] { ptx::mbarrier_wait(empty(stage_), parity_ ^ 1); });
    }
    __device__ __forceinline__ const Clocks<K::Way::CLOCKED>& waiting() const { return waiting_; }

    __device__ __forceinline__ void next() {
        if (++stage_ == K::STAGES) {
            stage_ = 0;
            parity_ ^= 1;
        }
    }

    __device__ __forceinline__ int stage() const { return stage_; }
    __device__ __forceinline__ uint32_t a() const { return shared_ + static_cast<uint32_t>(stage_ * STAGE_BYTES); }
    __device__ __forceinline__ uint32_t b() const { return a() + A_BYTES; }
    __device__ __forceinline__ uint32_t full() const { return full(stage_); }
    __device__ __forceinline__ uint32_t full(int stage) const { return barrier(stage); }
    __device__ __forceinline__ uint32_t empty(int stage) const { return barrier(K::STAGES + stage); }

private:
    __device__ __forceinline__ uint32_t barrier(int index) const {
        return shared_ + static_cast<uint32_t>(BARRIERS_AT + 8 * index);
    }

    uint32_t shared_;
    int stage_ = 0;
    uint32_t parity_ = 0;
    Clocks<K::Way::CLOCKED> waiting_;
};

// Says that a warp has read a stage, in every block.
template <class K>
class Release {
public:
    __device__ __forceinline__ explicit Release(const Ring<K>& ring)
        : empty_(ptx::map_shared(ring.empty(0), static_cast<uint32_t>(min(lane_index(), K::Way::BLOCKS - 1)))) {}

    __device__ __forceinline__ void operator()(int stage) const {
        if (lane_index() < K::Way::BLOCKS) {
            ptx::mbarrier_arrive_remote(empty_ + static_cast<uint32_t>(8 * stage));
        }
    }

private:
    // The first stage's in the block of this lane's number.
    uint32_t empty_;
};

}  // namespace da_moe::hopper
