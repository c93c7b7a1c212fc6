// Which unit of the experts' gradients a cluster computes next: 256 by 256 of one expert's, over all of its rows.
//
// A is the factor whose rows are found by token, B the one whose rows lie as the plan has them. Every expert has as many units, of
// which those that share rows of B come one after the other. Of n clusters each takes every n-th.
#pragma once

#include "experts/hopper/units.cuh"

namespace da_moe::hopper {

template <class K>
class WeightUnits;

// TURNED: A is the right factor, so that what is written is turned.
template <bool IS_TURNED, class WayOfIt>
struct WeightKind {
    using Storage = bf16;
    using Way = WayOfIt;
    using Units = WeightUnits<WeightKind>;
    static constexpr bool TURNED = IS_TURNED;
    static constexpr bool GATED = false;
    static constexpr bool GATHERED = true;
    static constexpr bool A_ACROSS = true;
    static constexpr bool B_ACROSS = true;
    static constexpr int STAGES = 4;
    static constexpr int PLANES = 2;
    static constexpr bool MAY_BE_EMPTY = true;

    // `rows` are columns of A, `column` is one of B.
    struct Unit : hopper::Unit {
        // Rows of the plan.
        Segment depth;
    };

    __device__ __forceinline__ static const RoutedOperand& a(const WeightGradient& p) { return TURNED ? p.right : p.left; }
    __device__ __forceinline__ static const RoutedOperand& b(const WeightGradient& p) { return TURNED ? p.left : p.right; }
};

template <class K>
class WeightUnits {
public:
    __device__ __forceinline__ explicit WeightUnits(const WeightGradient& p)
        : p_(p),
          next_(static_cast<int>(blockIdx.x) / K::Way::BLOCKS),
          of_rows_((K::a(p).columns + UNIT_ROWS - 1) / UNIT_ROWS),
          of_columns_((K::b(p).columns + COLUMNS - 1) / COLUMNS) {}

    // False when no unit is left.
    __device__ __forceinline__ bool next(typename K::Unit& unit) {
        const int of_expert = of_rows_ * of_columns_;
        const int expert = next_ / of_expert;
        if (expert >= p_.experts) {
            return false;
        }
        const int index = next_ - expert * of_expert;
        next_ += static_cast<int>(gridDim.x) / K::Way::BLOCKS;
        const int row = index % of_rows_ * UNIT_ROWS;
        unit.expert = expert;
        unit.column = index / of_rows_ * COLUMNS;
        unit.rows = part({0, K::a(p_).columns}, row, UNIT_ROWS);
        unit.depth = segment(p_.offsets, p_.rows, expert);
        return true;
    }

    __device__ __forceinline__ static int depth(const typename K::Unit& unit) { return unit.depth.count; }

private:
    static constexpr int UNIT_ROWS = K::Way::BLOCKS * BLOCK_ROWS;

    const WeightGradient& p_;
    int next_;
    // Units of an expert.
    const int of_rows_;
    const int of_columns_;
};

}  // namespace da_moe::hopper
