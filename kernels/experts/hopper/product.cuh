// A block of a Hopper product: who does what in it.
#pragma once

#include "experts/hopper/output.cuh"
#include "experts/hopper/produce.cuh"

namespace da_moe::hopper {

// Registers of a thread, of the 168 that all start with.
template <bool GATHERED>
struct Registers {
    static constexpr int BRINGING = GATHERED ? 56 : 40;
    static constexpr int MULTIPLYING = GATHERED ? 224 : 232;
};

template <class S, bool GATED, bool GATHERED, bool CLOCKED>
__device__ __forceinline__ void consume(const HopperGemm& p, Ring<CLOCKED>& ring, Clocks<CLOCKED>& leaving, int rank, int warpgroup,
                                        unsigned char* shared) {
    const Release release(ring);
    Output<S, GATED> output(p, shared, warpgroup);
    Units<GATED> units(p.product);
    Unit unit;
    bool is_more = units.next(unit);
    while (is_more) {
        const Segment rows = of_warpgroup(unit.of_block(rank), warpgroup);
        if (rows.count == 0) {
            pass_over(ring, release, p.product.depth);
            is_more = units.next(unit);
            continue;
        }
        float d[ACCUMULATORS];
        Unit next;
        multiply<S, GATHERED>(d, ring, release, warpgroup, p.product.depth, [&] { is_more = units.next(next); });
        leaving.count([&] { output.write(unit, rows, d); });
        unit = next;
    }
    output.finish();
}

// What a block does. CLOCKED tells how long it took.
template <class S, bool GATED, bool GATHERED, bool CLOCKED>
__device__ __forceinline__ void product(const HopperGemm& p, unsigned char* shared) {
    Ring<CLOCKED> ring(ptx::shared_address(shared));
    Clocks<CLOCKED> all, leaving;
    const int rank = static_cast<int>(ptx::cluster_rank());
    const int warpgroup = uniform(static_cast<int>(threadIdx.x) / WARPGROUP);
    if (threadIdx.x == 0) {
        ring.init(GATHERED ? WARPGROUP + 1 : 1);
        ptx::prefetch_tensor_map(&p.b);
        ptx::prefetch_tensor_map(&p.out);
    }
    ptx::cluster_arrive();
    ptx::cluster_wait();
    if (warpgroup == 0) {
        ptx::give_registers<Registers<GATHERED>::BRINGING>();
        all.count([&] {
            if constexpr (GATHERED) {
                produce_gathered<S, GATED>(p, ring, rank);
            } else if (uniform(warp_index()) == 0) {
                produce_packed<GATED>(p, ring, rank);
            }
        });
        all.store(p, 0);
        ring.waiting().store(p, 1);
    } else {
        ptx::take_registers<Registers<GATHERED>::MULTIPLYING>();
        all.count([&] { consume<S, GATED, GATHERED>(p, ring, leaving, rank, warpgroup - 1, shared); });
        if (warpgroup == 1) {
            all.store(p, 2);
            ring.waiting().store(p, 3);
            leaving.store(p, 4);
        }
    }
    // The other block may still write into this one's shared memory, and arrive there.
    ptx::cluster_arrive();
    ptx::cluster_wait();
}

}  // namespace da_moe::hopper

// One block a multiprocessor, two of them a cluster.
#define HOPPER_GEMM(storage, name, gated, gathered, clocked)                                                    \
    extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1)                              \
        grouped_gemm_##name(const __grid_constant__ HopperGemm p) {                                             \
        DYN_SMEM(shared, 1024);                                                                                 \
        da_moe::hopper::product<storage, gated, gathered, clocked>(p, shared);                                  \
    }                                                                                                           \
    GPU_KERNEL(grouped_gemm_##name)
