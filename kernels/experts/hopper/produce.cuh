// What brings the steps of a unit into the ring: a part of B for all blocks by TMA, and the block's own rows of A.
//
// Rows that are gathered by token are copied by all 128 threads: eight lanes copy the 128 bytes of a row, a thread has eight rows
// for the whole of a unit. Packed rows come by TMA, 64 at a time; past an expert's last row those of the next expert come too, or
// what nobody has written, and meet only products that are not stored.
#pragma once

#include "experts/hopper/ring.cuh"
#include "experts/hopper/units.cuh"

namespace da_moe::hopper {

// This block's part of a step of B, for every block. Ends the part of the stage's wait that is TMA's.
template <class K>
__device__ __forceinline__ void bring_b(const TensorMap& b, const Ring<K>& ring, int rank, int column, int depth, int expert) {
    constexpr int BLOCKS = K::Way::BLOCKS;
    const auto box = [&](uint32_t to, int x, int y, int z) {
        if constexpr (BLOCKS == 1) {
            ptx::tma_load_4d(to, &b, ring.full(), x, y, z, expert);
        } else {
            constexpr uint16_t all = (1 << BLOCKS) - 1;
            ptx::tma_load_4d_multicast(to, &b, ring.full(), x, y, z, expert, all);
        }
    };
#pragma unroll
    for (int part = 0; part < 2 / BLOCKS; part++) {
        const int half = rank + part * BLOCKS;
        const uint32_t to = ring.b() + static_cast<uint32_t>(half * HALF_B_BYTES);
        if constexpr (K::B_ACROSS) {
#pragma unroll
            for (int plane = 0; plane < 2; plane++) {
                box(to + static_cast<uint32_t>(plane * PLANE_BYTES), column + half * HALF_COLUMNS + plane * 64, depth, 0);
            }
        } else {
            box(to, depth, K::GATED ? column : column + half * HALF_COLUMNS, K::GATED ? half : 0);
        }
    }
}

__device__ __forceinline__ int token_of(const int32_t* row_token, int row) {
    return row_token == nullptr ? row : row_token[row];
}

// A thread's share of a block's rows: every sixteenth, one piece of each.
template <class S>
class GatheredRows {
public:
    __device__ __forceinline__ GatheredRows(const GroupedGemm& p, const Segment& rows) : warpgroups_(warpgroups(rows)) {
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            const int row = thread_row() + i * STRIDE;
            const int token = row < rows.count ? token_of(p.row_token, rows.first + row) : -1;
            const bool is_there = token >= 0 && token < p.a_rows;
            from_[i] = static_cast<const S*>(p.a) + (is_there ? token * p.a_stride : 0) + piece() * PIECE;
            there_ |= static_cast<uint32_t>(is_there) << i;
        }
    }

    // Rows of a warpgroup that has none are not copied, for nobody reads them; those past the last of one that has some are zeros.
    __device__ __forceinline__ void copy(uint32_t stage, int at, int depth) const {
        const uint32_t to = stage + static_cast<uint32_t>(swizzled(thread_row(), piece()));
        const uint32_t there = at + piece() * PIECE < depth ? there_ : 0;
#pragma unroll
        for (int warpgroup = 0; warpgroup < 2; warpgroup++) {
            if (warpgroup < warpgroups_) {
#pragma unroll
                for (int i = warpgroup * (ROWS / 2); i < (warpgroup + 1) * (ROWS / 2); i++) {
                    ptx::cp_async_16_if(to + static_cast<uint32_t>(i * STRIDE * ROW_BYTES), from_[i] + at, there >> i & 1);
                }
            }
        }
    }

private:
    static constexpr int STRIDE = WARPGROUP / PIECES;
    static constexpr int ROWS = BLOCK_ROWS / STRIDE;
    static_assert(STRIDE % 8 == 0, "rows of a thread have their pieces exchanged alike");

    __device__ __forceinline__ static int piece() { return static_cast<int>(threadIdx.x) % PIECES; }
    __device__ __forceinline__ static int thread_row() { return static_cast<int>(threadIdx.x) / PIECES; }

    const int warpgroups_;
    const S* from_[ROWS];
    uint32_t there_ = 0;
};

// By all threads of a warpgroup.
template <class K>
__device__ __forceinline__ void produce_gathered(const TensorMap& b, const GroupedGemm& p, Ring<K>& ring, int rank) {
    const int warp = uniform(warp_index());
    Units<K> units(p);
    Unit unit;
    while (units.next(unit)) {
        const GatheredRows<typename K::Storage> rows(p, unit.of_block<K::Way::BLOCKS>(rank));
        int turn = 0;
#pragma unroll 1
        for (int depth = 0; depth < p.depth; depth += DEPTH) {
            ring.wait_empty();
            if (warp == turn && ptx::elect()) {
                ptx::mbarrier_arrive_expect(ring.full(), B_BYTES);
                bring_b(b, ring, rank, unit.column, depth, unit.expert);
            }
            turn = (turn + 1) % (WARPGROUP / WARP);
            rows.copy(ring.a(), depth, p.depth);
            ptx::cp_async_arrive(ring.full());
            ring.next();
        }
    }
}

// By one warp.
template <class K>
__device__ __forceinline__ void produce_packed(const HopperGemm& p, Ring<K>& ring, int rank) {
    const bool elected = ptx::elect();
    Units<K> units(p.product);
    Unit unit;
    while (units.next(unit)) {
        const Segment rows = unit.of_block<K::Way::BLOCKS>(rank);
        const int halves = warpgroups(rows);
        const auto bytes = static_cast<uint32_t>(B_BYTES + halves * PLANE_BYTES);
        if (elected) {
#pragma unroll 1
            for (int depth = 0; depth < p.product.depth; depth += DEPTH) {
                ring.wait_empty();
                ptx::mbarrier_arrive_expect(ring.full(), bytes);
                bring_b(p.b, ring, rank, unit.column, depth, unit.expert);
#pragma unroll 1
                for (int half = 0; half < halves; half++) {
                    const int skip = half * WARPGROUP_ROWS;
                    ptx::tma_load_2d(ring.a() + static_cast<uint32_t>(half * PLANE_BYTES), &p.a, ring.full(), depth,
                                     rows.first + skip);
                }
                ring.next();
            }
        }
        __syncwarp();
    }
}

}  // namespace da_moe::hopper
