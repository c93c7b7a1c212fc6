// As device/ptx.cuh, for what sm_90a has: clusters, mbarriers, the tensor memory accelerator (TMA), wgmma. No kernel for another
// architecture includes this.
//
// Shared memory has two proxies. What threads write, cp.async included, is written through the generic one; TMA and wgmma read
// through the async one, and see it only after a `fence_proxy_async`.
#pragma once

#include "abi.h"
#include "device/ptx.cuh"

namespace da_moe::ptx {

#if defined(__CUDACC__)

// ---- Clusters

PTX_FN uint32_t cluster_rank() {
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// The address, in that block of the cluster, of what lies at `address` in this one.
PTX_FN uint32_t map_shared(uint32_t address, uint32_t rank) {
    uint32_t mapped;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
    return mapped;
}

// What happened before the arrival of every thread of the cluster is seen after the wait of any.
PTX_FN void cluster_arrive() { asm volatile("barrier.cluster.arrive.aligned;" ::: "memory"); }
PTX_FN void cluster_wait() { asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }

// ---- mbarriers

PTX_FN void mbarrier_init(uint32_t mbarrier, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(mbarrier), "r"(count) : "memory");
}

// Initialised mbarriers are such for the cluster, and for TMA, after the next barrier of the cluster.
PTX_FN void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Arrives, and has the phase wait for so many bytes of TMA.
PTX_FN void mbarrier_arrive_expect(uint32_t mbarrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(mbarrier), "r"(bytes) : "memory");
}

// Arrives at what `map_shared` gave. That says what this thread is done with, as what it read; what it wrote is not handed over
// to the other block by it, but by a barrier of the cluster. (The release is the block's: the cluster's is a fence of the whole GPU.)
PTX_FN void mbarrier_arrive_remote(uint32_t mbarrier) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(mbarrier) : "memory");
}

// Arrives when all earlier cp.async of this thread have landed: one of the arrivals that the phase counts.
PTX_FN void cp_async_arrive(uint32_t mbarrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(mbarrier) : "memory");
}

// Waits for the end of the phase of that parity. The phase before the first counts as ended with parity 1.
PTX_FN void mbarrier_wait(uint32_t mbarrier, uint32_t parity) {
    asm volatile("{ .reg .pred done; again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1; @!done bra again; }" ::"r"(
                     mbarrier),
                 "r"(parity)
                 : "memory");
}

// ---- The async proxy

PTX_FN void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

PTX_FN void prefetch_tensor_map(const TensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }

// A box into shared memory, which completes as many bytes of the mbarrier. What is outside the tensor is zeros.
PTX_FN void tma_load_2d(uint32_t target, const TensorMap* map, uint32_t mbarrier, int x, int y) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
            target),
        "l"(map), "r"(mbarrier), "r"(x), "r"(y)
        : "memory");
}

PTX_FN void tma_load_3d(uint32_t target, const TensorMap* map, uint32_t mbarrier, int x, int y, int z) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(
            target),
        "l"(map), "r"(mbarrier), "r"(x), "r"(y), "r"(z)
        : "memory");
}

PTX_FN void tma_load_4d(uint32_t target, const TensorMap* map, uint32_t mbarrier, int x, int y, int z, int w) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(
            target),
        "l"(map), "r"(mbarrier), "r"(x), "r"(y), "r"(z), "r"(w)
        : "memory");
}

// The same box for every block of the cluster in the mask: there it has the same place, and completes the mbarrier at the same place.
PTX_FN void tma_load_4d_multicast(uint32_t target, const TensorMap* map, uint32_t mbarrier, int x, int y, int z, int w,
                                  uint16_t blocks) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
        "[%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(target),
        "l"(map), "r"(mbarrier), "r"(x), "r"(y), "r"(z), "r"(w), "h"(blocks)
        : "memory");
}

// A box out of shared memory. What is outside the tensor is not written.
PTX_FN void tma_store_2d(const TensorMap* map, uint32_t source, int x, int y) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map), "r"(source),
                 "r"(x), "r"(y)
                 : "memory");
}

PTX_FN void tma_store_3d(const TensorMap* map, uint32_t source, int x, int y, int z) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
                 "r"(source), "r"(x), "r"(y), "r"(z)
                 : "memory");
}

// The same for f32, added to what is there: one addition for each element.
PTX_FN void tma_add_3d(const TensorMap* map, uint32_t source, int x, int y, int z) {
    asm volatile("cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
                 "r"(source), "r"(x), "r"(y), "r"(z)
                 : "memory");
}

PTX_FN void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Waits until at most `GROUPS` of this thread's groups of stores have shared memory still to read.
template <int GROUPS>
PTX_FN void bulk_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(GROUPS) : "memory");
}

// ---- Warps and warpgroups

// True in one lane of the warp, whose lanes are all here.
PTX_FN bool elect() {
    uint32_t elected;
    asm volatile("{ .reg .pred here; elect.sync _|here, 0xffffffff; selp.u32 %0, 1, 0, here; }" : "=r"(elected));
    return elected != 0;
}

template <int REGISTERS>
PTX_FN void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS>
PTX_FN void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// A barrier of some warps of the block, which all name it and their number.
template <int ID, int THREADS>
PTX_FN void barrier() {
    asm volatile("bar.sync %0, %1;" ::"n"(ID), "n"(THREADS) : "memory");
}

// Arrives at such a barrier, and does not wait.
template <int ID, int THREADS>
PTX_FN void barrier_arrive() {
    asm volatile("bar.arrive %0, %1;" ::"n"(ID), "n"(THREADS) : "memory");
}

// Four 8 × 8 matrices of 16-bit elements; lane l gives the address of row l mod 8 of matrix l / 8.
PTX_FN void stmatrix_x4(uint32_t row, const uint32_t (&in)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(in[0]), "r"(in[1]),
                 "r"(in[2]), "r"(in[3])
                 : "memory");
}

// The same of matrices that are turned: what a thread has of a row is stored to a column.
PTX_FN void stmatrix_x4_trans(uint32_t row, const uint32_t (&in)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(in[0]), "r"(in[1]),
                 "r"(in[2]), "r"(in[3])
                 : "memory");
}

// Two values in their storage type, the first in the lower half.
PTX_FN uint32_t pack_bf16(float first, float second) {
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(second), "f"(first));
    return packed;
}
PTX_FN uint32_t pack_f16(float first, float second) {
    uint32_t packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(second), "f"(first));
    return packed;
}

// 1 / x within 2^-23 of it; what is subnormal becomes 0.
PTX_FN float rcp(float x) {
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

// Accumulators and operands are as this thread left them, for the wgmma that follow.
PTX_FN void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
PTX_FN void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most `GROUPS` of the warp's groups are in flight.
template <int GROUPS>
PTX_FN void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(GROUPS) : "memory");
}

#define PTX_TIMES_8(of, c, i) \
    c(of[i]), c(of[i + 1]), c(of[i + 2]), c(of[i + 3]), c(of[i + 4]), c(of[i + 5]), c(of[i + 6]), c(of[i + 7])
#define PTX_TIMES_32(of, c, i) \
    PTX_TIMES_8(of, c, i), PTX_TIMES_8(of, c, i + 8), PTX_TIMES_8(of, c, i + 16), PTX_TIMES_8(of, c, i + 24)
#define PTX_TIMES_128(of, c) \
    PTX_TIMES_32(of, c, 0), PTX_TIMES_32(of, c, 32), PTX_TIMES_32(of, c, 64), PTX_TIMES_32(of, c, 96)
#define PTX_NAMES_128                                                                                                   \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "   \
    "%24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, "    \
    "%46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, "    \
    "%68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, "    \
    "%90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, "    \
    "%110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}"
#define PTX_READ_WRITTEN(x) "+f"(x)
#define PTX_WRITTEN(x) "=f"(x)
#define PTX_WGMMA(type, add, accumulators)                                                                             \
    asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type " " PTX_NAMES_128 ", %128, %129, " add   \
                 ", 1, 1, %130, %131;"                                                                                 \
                 : PTX_TIMES_128(d, accumulators)                                                                      \
                 : "l"(a), "l"(b), "n"(A_ACROSS), "n"(B_ACROSS))

// d += a · bᵀ by a warpgroup: 64 rows of A and 256 of B, which run along the depth of 16, or across it.
template <int A_ACROSS, int B_ACROSS>
PTX_FN void wgmma_bf16(float (&d)[128], uint64_t a, uint64_t b) {
    PTX_WGMMA("bf16", "1", PTX_READ_WRITTEN);
}
template <int A_ACROSS, int B_ACROSS>
PTX_FN void wgmma_f16(float (&d)[128], uint64_t a, uint64_t b) {
    PTX_WGMMA("f16", "1", PTX_READ_WRITTEN);
}
// d = a · bᵀ. The accumulators are outputs alone, or the compiler would keep them in registers from before.
template <int A_ACROSS, int B_ACROSS>
PTX_FN void wgmma_first_bf16(float (&d)[128], uint64_t a, uint64_t b) {
    PTX_WGMMA("bf16", "0", PTX_WRITTEN);
}
template <int A_ACROSS, int B_ACROSS>
PTX_FN void wgmma_first_f16(float (&d)[128], uint64_t a, uint64_t b) {
    PTX_WGMMA("f16", "0", PTX_WRITTEN);
}

#else

PTX_FN const CUtensorMap* encoded(const TensorMap* map) { return reinterpret_cast<const CUtensorMap*>(map); }

PTX_FN uint32_t cluster_rank() { return emu::cluster_rank(); }
PTX_FN uint32_t map_shared(uint32_t address, uint32_t rank) { return emu::map_shared(address, rank); }
PTX_FN void cluster_arrive() { emu::cluster_arrive(); }
PTX_FN void cluster_wait() { emu::cluster_wait(); }
PTX_FN void mbarrier_init(uint32_t mbarrier, uint32_t count) { emu::mbarrier_init(mbarrier, count); }
PTX_FN void fence_mbarrier_init() { emu::fence_mbarrier_init(); }
PTX_FN void mbarrier_arrive_expect(uint32_t mbarrier, uint32_t bytes) { emu::mbarrier_arrive(mbarrier, bytes); }
PTX_FN void mbarrier_arrive_remote(uint32_t mbarrier) { emu::mbarrier_arrive_remote(mbarrier); }
PTX_FN void cp_async_arrive(uint32_t mbarrier) { emu::cp_async_mbarrier_arrive_noinc(mbarrier); }
PTX_FN void mbarrier_wait(uint32_t mbarrier, uint32_t parity) {
    while (!emu::mbarrier_try_wait(mbarrier, parity)) {
    }
}
PTX_FN void fence_proxy_async() { emu::fence_proxy_async(); }
PTX_FN void prefetch_tensor_map(const TensorMap* map) { emu::prefetch_tensor_map(encoded(map)); }
PTX_FN void tma_load_2d(uint32_t target, const TensorMap* map, uint32_t mbarrier, int x, int y) {
    const int at[] = {x, y};
    emu::tma_load(target, encoded(map), mbarrier, 2, at, 0);
}
PTX_FN void tma_load_3d(uint32_t target, const TensorMap* map, uint32_t mbarrier, int x, int y, int z) {
    const int at[] = {x, y, z};
    emu::tma_load(target, encoded(map), mbarrier, 3, at, 0);
}
PTX_FN void tma_load_4d(uint32_t target, const TensorMap* map, uint32_t mbarrier, int x, int y, int z, int w) {
    const int at[] = {x, y, z, w};
    emu::tma_load(target, encoded(map), mbarrier, 4, at, 0);
}
PTX_FN void tma_load_4d_multicast(uint32_t target, const TensorMap* map, uint32_t mbarrier, int x, int y, int z, int w,
                                  uint16_t blocks) {
    const int at[] = {x, y, z, w};
    emu::tma_load(target, encoded(map), mbarrier, 4, at, blocks);
}
PTX_FN void tma_store_2d(const TensorMap* map, uint32_t source, int x, int y) {
    const int at[] = {x, y};
    emu::tma_store(encoded(map), source, 2, at);
}
PTX_FN void tma_store_3d(const TensorMap* map, uint32_t source, int x, int y, int z) {
    const int at[] = {x, y, z};
    emu::tma_store(encoded(map), source, 3, at);
}
PTX_FN void tma_add_3d(const TensorMap* map, uint32_t source, int x, int y, int z) {
    const int at[] = {x, y, z};
    emu::tma_add(encoded(map), source, 3, at);
}
PTX_FN void bulk_commit() { emu::bulk_commit(); }
template <int GROUPS>
PTX_FN void bulk_wait_read() {
    emu::bulk_wait(GROUPS, true);
}
PTX_FN bool elect() { return emu::elect_sync(); }
template <int REGISTERS>
PTX_FN void take_registers() {
    emu::set_max_registers(REGISTERS, true);
}
template <int REGISTERS>
PTX_FN void give_registers() {
    emu::set_max_registers(REGISTERS, false);
}
template <int ID, int THREADS>
PTX_FN void barrier() {
    emu::named_barrier(ID, THREADS, true);
}
template <int ID, int THREADS>
PTX_FN void barrier_arrive() {
    emu::named_barrier(ID, THREADS, false);
}
PTX_FN void stmatrix_x4(uint32_t row, const uint32_t (&in)[4]) { emu::stmatrix(4, false, row, in); }
PTX_FN void stmatrix_x4_trans(uint32_t row, const uint32_t (&in)[4]) { emu::stmatrix(4, true, row, in); }
PTX_FN uint32_t pack_bf16(float first, float second) {
    return emu::bfloat16_bits(first) | static_cast<uint32_t>(emu::bfloat16_bits(second)) << 16;
}
PTX_FN uint32_t pack_f16(float first, float second) {
    return emu::half_bits(first) | static_cast<uint32_t>(emu::half_bits(second)) << 16;
}
PTX_FN float rcp(float x) { return emu::rcp(x); }
PTX_FN void wgmma_fence() { emu::wgmma_fence(); }
PTX_FN void wgmma_commit() { emu::wgmma_commit(); }
template <int GROUPS>
PTX_FN void wgmma_wait() {
    emu::wgmma_wait(GROUPS);
}
template <int A_ACROSS, int B_ACROSS>
PTX_FN void wgmma_bf16(float (&d)[128], uint64_t a, uint64_t b) {
    emu::wgmma(d, {emu::Element::Bf16, 256, a, b, true, A_ACROSS != 0, B_ACROSS != 0});
}
template <int A_ACROSS, int B_ACROSS>
PTX_FN void wgmma_f16(float (&d)[128], uint64_t a, uint64_t b) {
    emu::wgmma(d, {emu::Element::F16, 256, a, b, true, A_ACROSS != 0, B_ACROSS != 0});
}
template <int A_ACROSS, int B_ACROSS>
PTX_FN void wgmma_first_bf16(float (&d)[128], uint64_t a, uint64_t b) {
    emu::wgmma(d, {emu::Element::Bf16, 256, a, b, false, A_ACROSS != 0, B_ACROSS != 0});
}
template <int A_ACROSS, int B_ACROSS>
PTX_FN void wgmma_first_f16(float (&d)[128], uint64_t a, uint64_t b) {
    emu::wgmma(d, {emu::Element::F16, 256, a, b, false, A_ACROSS != 0, B_ACROSS != 0});
}

#endif

}  // namespace da_moe::ptx
