// Host twins of PTX instructions that CUDA C++ has no functions for. A kernel's wrapper is inline PTX for nvcc and one
// of these calls here. Shared addresses are 32 bits wide, as in PTX.
//
// Wrappers should be forced inline: reports name the line of the call, and the lines that it was inlined into.
#pragma once

#include "kernel.h"

// 128 bytes that the host encodes and the tensor memory accelerator reads. Kernels take it by value.
struct alignas(64) CUtensorMap {
    uint64_t opaque[16];
};

namespace emu {

// cvta.generic.to.shared
uint32_t shared_address(const void* pointer);

// bar.sync and bar.arrive: `wait` is false for the latter.
void named_barrier(unsigned id, unsigned threads, bool wait, Location here = Location::current());

// ---- cp.async: `bytes` is 4, 8 or 16; past `source_bytes` the target is zeroed.
void cp_async(uint32_t target, const void* source, uint32_t bytes, uint32_t source_bytes);
void cp_async_commit();
// Waits until at most `groups` of the thread's committed groups are in flight.
void cp_async_wait(unsigned groups);

// ---- Matrices in the registers of a warp.
enum class Element { Bf16, F16, Tf32 };
// ldmatrix.sync.aligned.m8n8.x1, x2 or x4
void ldmatrix(unsigned matrices, bool transpose, uint32_t row, uint32_t* out, Location here = Location::current());
// stmatrix.sync.aligned.m8n8.x1, x2 or x4
void stmatrix(unsigned matrices, bool transpose, uint32_t row, const uint32_t* in,
              Location here = Location::current());
// mma.sync.aligned.m16n8k16.row.col.f32.T.T.f32
void mma_m16n8k16(Element element, float* d, const uint32_t* a, const uint32_t* b, const float* c,
                  Location here = Location::current());
// ex2.approx.ftz.f32: 2^x, and 0 instead of what is subnormal. A subnormal x counts as zero, of which the result is 1 as
// well.
float ex2(float x);
// rcp.approx.ftz.f32: 1 / x, and a zero of its sign instead of what is subnormal. A subnormal x counts as zero.
float rcp(float x);
// cvt.rna.tf32.f32: to the nearest value with 10 fraction bits, halves away from zero. Infinities stay; a NaN loses its
// lower 13 bits like all others, and is infinite then if it had no more.
uint32_t round_tf32(uint32_t bits);
// mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32
void mma_m16n8k8_tf32(float* d, const uint32_t* a, const uint32_t* b, const float* c,
                      Location here = Location::current());

// ---- mbarriers in shared memory
void mbarrier_init(uint32_t mbarrier, uint32_t count);
// mbarrier.arrive, with expect_tx if `expected_bytes` is not zero
void mbarrier_arrive(uint32_t mbarrier, uint32_t expected_bytes = 0);
// mbarrier.try_wait.parity: may give false although nothing is missing, as the hardware may.
bool mbarrier_try_wait(uint32_t mbarrier, uint32_t parity, Location here = Location::current());

// ---- The async proxy: what the tensor memory accelerator and wgmma go through.
void fence_proxy_async();
// cp.async.bulk.tensor.{1..5}d.shared::cluster.global.tile.mbarrier::complete_tx::bytes: the box at `at`, `rank`
// coordinates of which the innermost is first. With `to_blocks` it is .multicast::cluster with that mask, else only the
// executing block gets it.
void tma_load(uint32_t target, const CUtensorMap* map, uint32_t mbarrier, unsigned rank, const int* at,
              uint16_t to_blocks);
// cp.async.bulk.tensor.{1..5}d.global.shared::cta.tile.bulk_group
void tma_store(const CUtensorMap* map, uint32_t source, unsigned rank, const int* at);
// cp.reduce.async.bulk.tensor.{1..5}d.global.shared::cta.add.tile.bulk_group, of f32
void tma_add(const CUtensorMap* map, uint32_t source, unsigned rank, const int* at);
// cp.async.bulk.commit_group
void bulk_commit();
// cp.async.bulk.wait_group, with .read if `read`: of all but the last `groups` groups of the thread.
void bulk_wait(unsigned groups, bool read);
// prefetch.tensormap
void prefetch_tensor_map(const CUtensorMap* map);

// ---- wgmma of m64nNk16, or m64nNk8 of TF32, with f32 accumulators: `d` are the thread's N / 2 of them.
struct WgmmaOperands {
    Element element;
    int n;
    uint64_t a, b;  // shared memory descriptors
    bool scale_d, transpose_a, transpose_b;
    const uint32_t* a_words = nullptr;  // the thread's four words of A, if that is in registers; `a` is 0 then
};
void wgmma_fence(Location here = Location::current());
void wgmma(float* d, const WgmmaOperands& operands, Location here = Location::current());
void wgmma_commit(Location here = Location::current());
void wgmma_wait(unsigned groups, Location here = Location::current());

// ---- Clusters of blocks. A shared address that `map_shared` gave means a block of the cluster, a plain one the
// thread's own. %cluster_ctarank
uint32_t cluster_rank();
// mapa.shared::cluster.u32: the same place in the cluster's block of that rank
uint32_t map_shared(uint32_t address, uint32_t rank);
// barrier.cluster.arrive.aligned, which releases, and barrier.cluster.wait.aligned, which acquires
void cluster_arrive(Location here = Location::current());
void cluster_wait(Location here = Location::current());
// fence.mbarrier_init.release.cluster
void fence_mbarrier_init();
// mbarrier.arrive.release.cluster.shared::cluster.b64, in any block of the cluster
void mbarrier_arrive_remote(uint32_t mbarrier);

// ---- What lanes and warps agree about
// cp.async.mbarrier.arrive.noinc.shared::cta.b64: arrives when all copies that the thread has started have come.
void cp_async_mbarrier_arrive_noinc(uint32_t mbarrier);
// elect.sync _|p, 0xffffffff: true in one lane of the warp.
bool elect_sync(Location here = Location::current());
// setmaxnreg.inc.sync.aligned.u32, or dec
void set_max_registers(unsigned count, bool increase, Location here = Location::current());

}  // namespace emu
