// What brings the steps of a weight's gradient into the ring: 64 rows of the plan, of A gathered by all 128 threads, of B by TMA for both
// blocks.
//
// What lies after an expert's last rows is another expert's, or nobody's, and a number that is none times zero is none: so the last
// step is filled up with zeros in both factors, B then by threads as well, each block for itself.
#pragma once

#include "experts/hopper/produce.cuh"
#include "experts/hopper/weight_units.cuh"

namespace da_moe::hopper {

constexpr int WARPS_OF_GROUP = WARPGROUP / WARP;

// A thread's share of a block's 128 columns of A: one piece of every eighth row. A lane looks up the token of one of its warp's 16 rows,
// one step ahead.
template <class S>
class GatheredColumns {
public:
    __device__ __forceinline__ GatheredColumns(const RoutedOperand& a, const Segment& depth, const Segment& columns)
        : a_(a), depth_(depth), from_(static_cast<const S*>(a.rows) + columns.first + piece() * PIECE) {
        is_there_ = piece() * PIECE < columns.count;
        // Nobody reads the plane of a warpgroup that has no columns.
        is_read_ = piece() / PIECES < warpgroups(columns);
        token_ = look_up(0);
    }

    // Rows from the `at`-th on; steps are asked for in their order.
    __device__ __forceinline__ void copy(uint32_t stage, int at) {
        const int tokens = token_;
        token_ = look_up(at + DEPTH);
        const int row = warp_index() * ROWS + lane_index() / ROW_PIECES;
        const uint32_t plane = stage + static_cast<uint32_t>(piece() / PIECES * PLANE_BYTES);
        const uint32_t to = plane + static_cast<uint32_t>(swizzled(row, piece() % PIECES));
#pragma unroll
        for (int i = 0; i < TURNS; i++) {
            const int token = __shfl_sync(FULL_WARP, tokens, i * ROWS + lane_index() / ROW_PIECES);
            const bool is_there = is_there_ && token >= 0;
            if (is_read_) {
                ptx::cp_async_16_if(to + static_cast<uint32_t>(i * STRIDE * ROW_BYTES), from_ + (is_there ? token * a_.stride : 0),
                                    is_there);
            }
        }
    }

private:
    // Of a row, of a warp at a time, and of all warps.
    static constexpr int ROW_PIECES = BLOCK_ROWS / PIECE;
    static constexpr int ROWS = WARP / ROW_PIECES;
    static constexpr int STRIDE = WARPS_OF_GROUP * ROWS;
    static constexpr int TURNS = DEPTH / STRIDE;
    static_assert(STRIDE % 8 == 0, "rows of a thread have their pieces exchanged alike");

    __device__ __forceinline__ static int piece() { return lane_index() % ROW_PIECES; }

    // The token of row `lane mod 2` of turn `lane / 2` of this warp, or -1.
    __device__ __forceinline__ int look_up(int at) const {
        const int lane = lane_index() % (TURNS * ROWS);
        const int row = at + lane / ROWS * STRIDE + warp_index() * ROWS + lane % ROWS;
        const int token = row < depth_.count ? token_of(a_.row_token, depth_.first + row) : -1;
        return token < a_.sources ? token : -1;
    }

    const RoutedOperand& a_;
    const Segment depth_;
    const S* from_;
    bool is_there_;
    bool is_read_;
    int token_;
};

// The last rows of B, and zeros after them.
template <class S>
__device__ __forceinline__ void copy_last(const RoutedOperand& b, uint32_t stage, const Segment& rows, int column) {
    constexpr int ROW_PIECES = COLUMNS / PIECE;
    static_assert(ROW_PIECES == WARP, "a warp has a row");
    const int piece = lane_index();
    const bool is_column = column + piece * PIECE < b.columns;
    const S* from = static_cast<const S*>(b.rows) + column + piece * PIECE;
    const uint32_t plane = stage + static_cast<uint32_t>(piece / PIECES * PLANE_BYTES);
#pragma unroll 4
    for (int turn = 0; turn < DEPTH / WARPS_OF_GROUP; turn++) {
        const int row = turn * WARPS_OF_GROUP + warp_index();
        const bool is_there = is_column && row < rows.count && rows.first + row < b.sources;
        ptx::cp_async_16_if(plane + static_cast<uint32_t>(swizzled(row, piece % PIECES)),
                            from + (is_there ? (rows.first + row) * b.stride : 0), is_there);
    }
}

// By all threads of a warpgroup.
template <class K>
__device__ __forceinline__ void produce_factors(const HopperWeightGradient& p, Ring<K>& ring, int rank) {
    using S = typename K::Storage;
    const int warp = uniform(warp_index());
    WeightUnits<K> units(p.gradient);
    typename K::Unit unit;
    while (units.next(unit)) {
        const Segment depth = unit.depth;
        GatheredColumns<S> a(K::a(p.gradient), depth, unit.template of_block<K::Way::BLOCKS>(rank));
        int turn = 0;
#pragma unroll 1
        for (int at = 0; at < depth.count; at += DEPTH) {
            const bool is_whole = at + DEPTH <= depth.count;
            ring.wait_empty();
            if (warp == turn && ptx::elect()) {
                ptx::mbarrier_arrive_expect(ring.full(), is_whole ? B_BYTES : 0);
                if (is_whole) {
                    bring_b(p.packed, ring, rank, unit.column, depth.first + at, 0);
                }
            }
            turn = (turn + 1) % WARPS_OF_GROUP;
            if (!is_whole) {
                copy_last<S>(K::b(p.gradient), ring.b(), part(depth, at, DEPTH), unit.column);
            }
            a.copy(ring.a(), at);
            ptx::cp_async_arrive(ring.full());
            ring.next();
        }
    }
}

}  // namespace da_moe::hopper
