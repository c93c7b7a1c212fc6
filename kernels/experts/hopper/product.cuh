// A block of a Hopper product: who does what in it.
#pragma once

#include "experts/hopper/clocks.cuh"
#include "experts/hopper/multiply.cuh"
#include "experts/hopper/units.cuh"

namespace da_moe::hopper {

// Registers of a thread, of the 168 that all start with.
template <bool GATHERED>
struct Registers {
    static constexpr int BRINGING = GATHERED ? 56 : 40;
    static constexpr int MULTIPLYING = GATHERED ? 224 : 232;
};

// Has the second warpgroup wait, once, until the first has its first step.
template <class Way>
class Skew {
public:
    __device__ __forceinline__ void wait(int warpgroup) const {
        if constexpr (Way::SKEWED) {
            if (warpgroup == 1) {
                ptx::barrier<STARTED, 2 * WARPGROUP>();
            }
        }
    }
    __device__ __forceinline__ void started(int warpgroup) {
        if constexpr (Way::SKEWED) {
            if (warpgroup == 0 && !is_started_) {
                ptx::barrier_arrive<STARTED, 2 * WARPGROUP>();
                is_started_ = true;
            }
        }
    }

private:
    static constexpr int STARTED = 3;

    bool is_started_ = false;
};

// Unit after unit by a warpgroup. While the first step of one is multiplied, the next is found, and what `output` wants to have at hand
// is asked for.
template <class K, class Output>
__device__ __forceinline__ void consume(typename K::Units units, Output& output, Ring<K>& ring, Clocks<K::Way::CLOCKED>& leaving,
                                        int rank, int warpgroup) {
    const Release<K> release(ring);
    Skew<typename K::Way> skew;
    typename K::Unit unit;
    bool is_more = units.next(unit);
    if (is_more) {
        skew.wait(warpgroup);
    }
    while (is_more) {
        const Segment rows = of_warpgroup(unit.template of_block<K::Way::BLOCKS>(rank), warpgroup);
        if (rows.count == 0) {
            skew.started(warpgroup);
            pass_over(ring, release, units.depth(unit));
            is_more = units.next(unit);
            continue;
        }
        if constexpr (K::MAY_BE_EMPTY) {
            if (units.depth(unit) == 0) {
                output.write_empty(unit, rows);
                is_more = units.next(unit);
                continue;
            }
        }
        float d[ACCUMULATORS];
        typename K::Unit next;
        multiply(d, ring, release, warpgroup, units.depth(unit), [&] {
            skew.started(warpgroup);
            output.prepare(unit, rows);
            is_more = units.next(next);
        });
        leaving.count([&] { output.write(unit, rows, d); });
        unit = next;
    }
    output.finish();
}

// `begin()` is for one thread, before anything: what is to be fetched ahead, and mbarriers beside the ring's. `produce(ring, rank)` brings all
// steps, `output(warpgroup)` makes the way out of a warpgroup.
template <class K, class Begin, class Produce, class MakeOutput>
__device__ __forceinline__ void block(const typename K::Units& units, int64_t* clocks, unsigned char* shared,
                                      const Begin& begin, const Produce& produce, const MakeOutput& make_output) {
    Ring<K> ring(ptx::shared_address(shared));
    Clocks<K::Way::CLOCKED> all, leaving;
    const int rank = static_cast<int>(ptx::cluster_rank());
    const int warpgroup = uniform(static_cast<int>(threadIdx.x) / WARPGROUP);
    if (threadIdx.x == 0) {
        ring.init(K::GATHERED ? WARPGROUP + 1 : 1);
        begin();
        ptx::fence_mbarrier_init();
    }
    ptx::cluster_arrive();
    ptx::cluster_wait();
    if (warpgroup == 0) {
        ptx::give_registers<Registers<K::GATHERED>::BRINGING>();
        all.count([&] { produce(ring, rank); });
        all.store(clocks, 0);
        ring.waiting().store(clocks, 1);
    } else {
        ptx::take_registers<Registers<K::GATHERED>::MULTIPLYING>();
        all.count([&] {
            auto output = make_output(warpgroup - 1);
            consume(units, output, ring, leaving, rank, warpgroup - 1);
        });
        if (warpgroup == 1) {
            all.store(clocks, 2);
            ring.waiting().store(clocks, 3);
            leaving.store(clocks, 4);
        }
    }
    // The other block may still write into this one's shared memory, and arrive there.
    ptx::cluster_arrive();
    ptx::cluster_wait();
}

}  // namespace da_moe::hopper

// One block a multiprocessor, of which some are a cluster.
#define HOPPER_KERNEL(name, Parameters, blocks, ...)                                                                   \
    extern "C" __global__ void __cluster_dims__(blocks, 1, 1) __launch_bounds__(384, 1)                                \
        grouped_gemm_##name(const __grid_constant__ Parameters p) {                                                    \
        DYN_SMEM(shared, 1024);                                                                                        \
        da_moe::hopper::__VA_ARGS__(p, shared);                                                                        \
    }                                                                                                                  \
    GPU_KERNEL(grouped_gemm_##name)
