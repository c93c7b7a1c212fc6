// As conformance.cu, for what Hopper alone has. Kernels take (in, out) and the tensor maps that src/cuda/conformance.rs lists for
// them. Where memory is shown, it is as it lies, so that the swizzle is held against tables of its own. Floor: a launch.

#include "experts/hopper/tile.cuh"

namespace da_moe {
namespace {

using namespace hopper;

// First of the `words` words of this thread.
__device__ __forceinline__ int first_word(int words) {
    return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) * words;
}

__device__ __forceinline__ void show(const unsigned char* shared, int bytes, uint32_t* out) {
    for (int i = static_cast<int>(threadIdx.x); i < bytes / 4; i += static_cast<int>(blockDim.x)) {
        out[i] = reinterpret_cast<const uint32_t*>(shared)[i];
    }
}

__device__ __forceinline__ void bring(unsigned char* shared, int bytes, const uint32_t* in) {
    for (int i = static_cast<int>(threadIdx.x); i < bytes / 4; i += static_cast<int>(blockDim.x)) {
        reinterpret_cast<uint32_t*>(shared)[i] = in[i];
    }
}

// An mbarrier for so many arrivals, of which all threads of the block know after it.
__device__ __forceinline__ void make_barrier(uint32_t mbarrier, uint32_t arrivals) {
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(mbarrier, arrivals);
        ptx::fence_mbarrier_init();
    }
    ptx::cluster_arrive();
    ptx::cluster_wait();
}

// 64 rows of A, then 256 of B, 64 elements deep.
constexpr int OPERAND_ROWS = WARPGROUP_ROWS + COLUMNS;
constexpr int OPERAND_BYTES = OPERAND_ROWS * ROW_BYTES;

// Across the depth, planes are 64 of it by 64 rows.
template <bool A_ACROSS, bool B_ACROSS, class First, class Add>
__device__ __forceinline__ void wgmma(uint32_t operands, float* out, First first, Add add) {
    float d[128];
    const uint32_t b = operands + PLANE_BYTES;
    ptx::wgmma_fence();
    first(d, descriptor<A_ACROSS>(operands, 0), descriptor<B_ACROSS>(b, 0));
#pragma unroll
    for (int k = 1; k < DEPTH / 16; k++) {
        add(d, descriptor<A_ACROSS>(operands, k), descriptor<B_ACROSS>(b, k));
    }
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < 128; i++) {
        out[first_word(128) + i] = d[i];
    }
}

// Operands are written by threads.
template <bool A_ACROSS, bool B_ACROSS, class First, class Add>
__device__ __forceinline__ void wgmma_of_stores(const uint4* in, float* out, unsigned char* shared, First first, Add add) {
    for (int i = static_cast<int>(threadIdx.x); i < OPERAND_ROWS * PIECES; i += WARPGROUP) {
        *reinterpret_cast<uint4*>(shared + swizzled(i / PIECES, i % PIECES)) = in[i];
    }
    ptx::fence_proxy_async();
    __syncthreads();
    wgmma<A_ACROSS, B_ACROSS>(ptx::shared_address(shared), out, first, add);
}

// So many planes, each by one copy.
template <class Copy>
__device__ __forceinline__ void load(uint32_t* out, int boxes, unsigned char* shared, Copy copy) {
    const uint32_t first = ptx::shared_address(shared), full = first + static_cast<uint32_t>(boxes * PLANE_BYTES);
    make_barrier(full, 1);
    if (threadIdx.x == 0) {
        ptx::mbarrier_arrive_expect(full, static_cast<uint32_t>(boxes * PLANE_BYTES));
        for (int i = 0; i < boxes; i++) {
            copy(first + static_cast<uint32_t>(i * PLANE_BYTES), full, i);
        }
    }
    ptx::mbarrier_wait(full, 0);
    show(shared, boxes * PLANE_BYTES, out);
}

// Four boxes that stand out over the tensor's four corners.
__device__ __forceinline__ void load_2d(uint32_t* out, const TensorMap* map, unsigned char* shared) {
    ptx::prefetch_tensor_map(map);
    load(out, 4, shared, [&](uint32_t to, uint32_t full, int i) {
        ptx::tma_load_2d(to, map, full, i % 2 == 0 ? -5 : 40, i / 2 == 0 ? -3 : 40);
    });
}

}  // namespace
}  // namespace da_moe

using namespace da_moe;

extern "C" __global__ void __launch_bounds__(128) conformance_wgmma_bf16(const uint4* in, float* out) {
    DYN_SMEM(shared, 1024);
    wgmma_of_stores<false, false>(
        in, out, shared, [](float(&d)[128], uint64_t a, uint64_t b) { ptx::wgmma_first_bf16<false, false>(d, a, b); },
        [](float(&d)[128], uint64_t a, uint64_t b) { ptx::wgmma_bf16<false, false>(d, a, b); });
}
GPU_KERNEL(conformance_wgmma_bf16)

extern "C" __global__ void __launch_bounds__(128) conformance_wgmma_f16(const uint4* in, float* out) {
    DYN_SMEM(shared, 1024);
    wgmma_of_stores<false, false>(
        in, out, shared, [](float(&d)[128], uint64_t a, uint64_t b) { ptx::wgmma_first_f16<false, false>(d, a, b); },
        [](float(&d)[128], uint64_t a, uint64_t b) { ptx::wgmma_f16<false, false>(d, a, b); });
}
GPU_KERNEL(conformance_wgmma_f16)

extern "C" __global__ void __launch_bounds__(128) conformance_wgmma_b_across(const uint4* in, float* out) {
    DYN_SMEM(shared, 1024);
    wgmma_of_stores<false, true>(
        in, out, shared, [](float(&d)[128], uint64_t a, uint64_t b) { ptx::wgmma_first_bf16<false, true>(d, a, b); },
        [](float(&d)[128], uint64_t a, uint64_t b) { ptx::wgmma_bf16<false, true>(d, a, b); });
}
GPU_KERNEL(conformance_wgmma_b_across)

extern "C" __global__ void __launch_bounds__(128) conformance_wgmma_both_across(const uint4* in, float* out) {
    DYN_SMEM(shared, 1024);
    wgmma_of_stores<true, true>(
        in, out, shared, [](float(&d)[128], uint64_t a, uint64_t b) { ptx::wgmma_first_bf16<true, true>(d, a, b); },
        [](float(&d)[128], uint64_t a, uint64_t b) { ptx::wgmma_bf16<true, true>(d, a, b); });
}
GPU_KERNEL(conformance_wgmma_both_across)

// Operands come by cp.async, every fifth row as zeros: each thread arrives when its own have landed, and reads all of them.
extern "C" __global__ void __launch_bounds__(128) conformance_wgmma_of_copies(const uint4* in, float* out) {
    DYN_SMEM(shared, 1024);
    const uint32_t operands = ptx::shared_address(shared), full = operands + OPERAND_BYTES;
    make_barrier(full, WARPGROUP);
    for (int i = static_cast<int>(threadIdx.x); i < OPERAND_ROWS * PIECES; i += WARPGROUP) {
        const int row = i / PIECES;
        ptx::cp_async_16_if(operands + static_cast<uint32_t>(swizzled(row, i % PIECES)), in + i, row % 5 != 0);
    }
    ptx::cp_async_arrive(full);
    ptx::mbarrier_wait(full, 0);
    ptx::fence_proxy_async();
    wgmma<false, false>(
        operands, out, [](float(&d)[128], uint64_t a, uint64_t b) { ptx::wgmma_first_f16<false, false>(d, a, b); },
        [](float(&d)[128], uint64_t a, uint64_t b) { ptx::wgmma_f16<false, false>(d, a, b); });
}
GPU_KERNEL(conformance_wgmma_of_copies)

extern "C" __global__ void __launch_bounds__(128)
    conformance_tma_load_2d(const uint32_t*, uint32_t* out, const __grid_constant__ TensorMap map) {
    DYN_SMEM(shared, 1024);
    load_2d(out, &map, shared);
}
GPU_KERNEL(conformance_tma_load_2d)

extern "C" __global__ void __launch_bounds__(128)
    conformance_tma_load_2d_f32(const uint32_t*, uint32_t* out, const __grid_constant__ TensorMap map) {
    DYN_SMEM(shared, 1024);
    load_2d(out, &map, shared);
}
GPU_KERNEL(conformance_tma_load_2d_f32)

// Boxes of both halves of the rows, over the edges of the tensor; and of two of its matrices.
extern "C" __global__ void __launch_bounds__(128)
    conformance_tma_load_3d(const uint32_t*, uint32_t* out, const __grid_constant__ TensorMap map) {
    DYN_SMEM(shared, 1024);
    load(out, 2, shared, [&](uint32_t to, uint32_t full, int i) { ptx::tma_load_3d(to, &map, full, 30 - 40 * i, i, 40 * i - 5); });
}
GPU_KERNEL(conformance_tma_load_3d)

extern "C" __global__ void __launch_bounds__(128)
    conformance_tma_load_4d(const uint32_t*, uint32_t* out, const __grid_constant__ TensorMap map) {
    DYN_SMEM(shared, 1024);
    load(out, 2, shared, [&](uint32_t to, uint32_t full, int i) { ptx::tma_load_4d(to, &map, full, 30 - 40 * i, 40 * i - 5, i, 1 - i); });
}
GPU_KERNEL(conformance_tma_load_4d)

// Each block brings a box for both, and one for the other alone.
extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(128)
    conformance_tma_multicast(const uint32_t*, uint32_t* out, const __grid_constant__ TensorMap map) {
    DYN_SMEM(shared, 1024);
    constexpr int BOX_BYTES = 2 * PLANE_BYTES, BOXES = 3;
    const int rank = static_cast<int>(ptx::cluster_rank());
    const uint32_t boxes = ptx::shared_address(shared), full = boxes + BOXES * BOX_BYTES;
    make_barrier(full, 1);
    if (threadIdx.x == 0) {
        ptx::mbarrier_arrive_expect(full, BOXES * BOX_BYTES);
        ptx::tma_load_4d_multicast(boxes + static_cast<uint32_t>(rank * BOX_BYTES), &map, full, rank * 16, 100 - rank * 80, rank,
                                   1 - rank, 0b11);
        ptx::tma_load_4d_multicast(boxes + 2 * BOX_BYTES, &map, full, -8, 5 + rank, 1 - rank, 1,
                                   static_cast<uint16_t>(0b10 >> rank));
    }
    ptx::mbarrier_wait(full, 0);
    show(shared, BOXES * BOX_BYTES, out + rank * (BOXES * BOX_BYTES / 4));
    // The other block's box may still be on its way out of this one.
    ptx::cluster_arrive();
    ptx::cluster_wait();
}
GPU_KERNEL(conformance_tma_multicast)

// Two boxes, over two corners of the tensor.
extern "C" __global__ void __launch_bounds__(128)
    conformance_tma_store_2d_f32(const uint32_t* in, uint32_t*, const __grid_constant__ TensorMap map) {
    DYN_SMEM(shared, 1024);
    bring(shared, 2 * PLANE_BYTES, in);
    ptx::fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        const uint32_t planes = ptx::shared_address(shared);
        ptx::tma_store_2d(&map, planes, -7, -9);
        ptx::tma_store_2d(&map, planes + PLANE_BYTES, 25, 40);
        ptx::bulk_commit();
        ptx::bulk_wait_read<0>();
    }
}
GPU_KERNEL(conformance_tma_store_2d_f32)

// A box of each half of the tensor's rows.
extern "C" __global__ void __launch_bounds__(128)
    conformance_tma_store_3d(const uint32_t* in, uint32_t*, const __grid_constant__ TensorMap map) {
    DYN_SMEM(shared, 1024);
    bring(shared, 2 * PLANE_BYTES, in);
    ptx::fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        const uint32_t planes = ptx::shared_address(shared);
        ptx::tma_store_3d(&map, planes, -6, 0, -9);
        ptx::tma_store_3d(&map, planes + PLANE_BYTES, 40, 1, 20);
        ptx::bulk_commit();
        ptx::bulk_wait_read<0>();
    }
}
GPU_KERNEL(conformance_tma_store_3d)

// Added to what is there, over a corner.
extern "C" __global__ void __launch_bounds__(128)
    conformance_tma_add_3d(const uint32_t* in, uint32_t*, const __grid_constant__ TensorMap map) {
    DYN_SMEM(shared, 1024);
    bring(shared, PLANE_BYTES, in);
    ptx::fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        ptx::tma_add_3d(&map, ptx::shared_address(shared), -7, -9, 1);
        ptx::bulk_commit();
        ptx::bulk_wait_read<0>();
    }
}
GPU_KERNEL(conformance_tma_add_3d)

// Planes in two rooms by turns, each written again as soon as it has been read.
extern "C" __global__ void __launch_bounds__(128)
    conformance_bulk_wait_read(const uint32_t* in, uint32_t*, const __grid_constant__ TensorMap map) {
    DYN_SMEM(shared, 1024);
    constexpr int ROUNDS = 6;
    for (int round = 0; round < ROUNDS; round++) {
        unsigned char* plane = shared + round % 2 * PLANE_BYTES;
        if (threadIdx.x == 0) {
            ptx::bulk_wait_read<1>();
        }
        __syncthreads();
        bring(plane, PLANE_BYTES, in + round * (PLANE_BYTES / 4));
        ptx::fence_proxy_async();
        __syncthreads();
        if (threadIdx.x == 0) {
            ptx::tma_store_2d(&map, ptx::shared_address(plane), 0, round * WARPGROUP_ROWS);
            ptx::bulk_commit();
        }
    }
    if (threadIdx.x == 0) {
        ptx::bulk_wait_read<0>();
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < 2 * PLANE_BYTES / 4; i += WARPGROUP) {
        reinterpret_cast<uint32_t*>(shared)[i] = ~0u;
    }
}
GPU_KERNEL(conformance_bulk_wait_read)

// Rows are stored in another order than they are in: an address that came from the wrong lane shows.
extern "C" __global__ void __launch_bounds__(32) conformance_stmatrix(const uint32_t* in, uint4* out) {
    SHARED_ARRAY(uint4, rows, WARP);
    const uint32_t* own = in + first_word(4);
    const uint32_t fragments[4] = {own[0], own[1], own[2], own[3]};
    ptx::stmatrix_x4(ptx::shared_address(rows) + static_cast<uint32_t>(lane_index() * 7 % WARP * 16), fragments);
    __syncwarp();
    out[lane_index()] = rows[lane_index()];
}
GPU_KERNEL(conformance_stmatrix)

// The same, each matrix turned.
extern "C" __global__ void __launch_bounds__(32) conformance_stmatrix_trans(const uint32_t* in, uint4* out) {
    SHARED_ARRAY(uint4, rows, WARP);
    const uint32_t* own = in + first_word(4);
    const uint32_t fragments[4] = {own[0], own[1], own[2], own[3]};
    ptx::stmatrix_x4_trans(ptx::shared_address(rows) + static_cast<uint32_t>(lane_index() * 7 % WARP * 16), fragments);
    __syncwarp();
    out[lane_index()] = rows[lane_index()];
}
GPU_KERNEL(conformance_stmatrix_trans)

// The second warp waits for the first, which does not wait.
extern "C" __global__ void __launch_bounds__(64) conformance_barrier_arrive(const uint32_t* in, uint32_t* out) {
    SHARED_ARRAY(uint32_t, words, WARP);
    if (warp_index() == 0) {
        words[lane_index()] = in[threadIdx.x];
        ptx::barrier_arrive<1, 2 * WARP>();
        out[threadIdx.x] = in[threadIdx.x];
    } else {
        ptx::barrier<1, 2 * WARP>();
        out[threadIdx.x] = in[threadIdx.x] + words[lane_index()];
    }
}
GPU_KERNEL(conformance_barrier_arrive)

// How many lanes were elected, which is not said.
extern "C" __global__ void __launch_bounds__(128) conformance_elect(const uint32_t* in, uint32_t* out) {
    const uint32_t elected = __ballot_sync(FULL_WARP, ptx::elect());
    out[first_word(1)] = in[first_word(1)] + static_cast<uint32_t>(__popc(static_cast<int>(elected)));
}
GPU_KERNEL(conformance_elect)

// What one block writes before the barrier, the other one reads after it.
extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(32)
    conformance_cluster_barrier(const uint32_t* in, uint32_t* out) {
    uint32_t* own = out + first_word(2);
    const uint32_t* other = out + ((blockIdx.x ^ 1) * blockDim.x + threadIdx.x) * 2;
    own[0] = in[first_word(1)] + ptx::cluster_rank();
    ptx::cluster_arrive();
    ptx::cluster_wait();
    own[1] = other[0];
}
GPU_KERNEL(conformance_cluster_barrier)

// Two blocks take turns. One waits for three arrivals of the other, the other for five: who arrives at its own mbarrier waits for ever.
extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(32)
    conformance_remote_arrive(const uint32_t* in, uint32_t* out) {
    SHARED_ARRAY(uint64_t, turn, 1);
    const uint32_t rank = ptx::cluster_rank(), own = ptx::shared_address(turn);
    make_barrier(own, rank == 0 ? 3 : 5);
    const uint32_t remote = ptx::map_shared(own, rank ^ 1);
    const int arrivals = rank == 0 ? 5 : 3;
    uint32_t turns = 0;
    for (uint32_t round = 0; round < 8; round++) {
        // The first turn is block 0's.
        if (rank == 1) {
            ptx::mbarrier_wait(own, round & 1);
            turns++;
        } else if (round > 0) {
            ptx::mbarrier_wait(own, (round - 1) & 1);
            turns++;
        }
        // Two phases on, a lane that was late would wait for the one after them.
        __syncwarp();
        if (lane_index() < arrivals) {
            ptx::mbarrier_arrive_remote(remote);
        }
    }
    out[first_word(1)] = in[first_word(1)] + turns;
    ptx::cluster_arrive();
    ptx::cluster_wait();
}
GPU_KERNEL(conformance_remote_arrive)

// A warpgroup gives registers away, two take them and have more words each than they had room for.
extern "C" __global__ void __launch_bounds__(384, 1) conformance_registers(const uint32_t* in, uint32_t* out) {
    const int warpgroup = uniform(static_cast<int>(threadIdx.x) / WARPGROUP);
    if (warpgroup == 0) {
        ptx::give_registers<56>();
        out[threadIdx.x] = in[threadIdx.x] * 3 + 1;
        return;
    }
    ptx::take_registers<224>();
    constexpr int WORDS = 180;
    uint32_t words[WORDS];
#pragma unroll
    for (int i = 0; i < WORDS; i++) {
        words[i] = in[i * 2 * WARPGROUP + static_cast<int>(threadIdx.x)];
    }
    // Nothing is loaded after it.
    ptx::barrier<1, 2 * WARPGROUP>();
    uint32_t sum = 0;
#pragma unroll
    for (int i = WORDS - 1; i >= 0; i--) {
        sum = sum * 5 + words[i];
    }
    out[threadIdx.x] = sum;
}
GPU_KERNEL(conformance_registers)

extern "C" __global__ void conformance_pack(const float* in, uint32_t* out) {
    const float first = in[first_word(2)], second = in[first_word(2) + 1];
    out[first_word(2)] = ptx::pack_bf16(first, second);
    out[first_word(2) + 1] = ptx::pack_f16(first, second);
}
GPU_KERNEL(conformance_pack)

extern "C" __global__ void conformance_rcp(const float* in, float* out) {
    out[first_word(1)] = ptx::rcp(in[first_word(1)]);
}
GPU_KERNEL(conformance_rcp)
