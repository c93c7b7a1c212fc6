// Where the two operands of a product are: what each main loop is told of a tile.
//
// An operand is a set of vectors as long as the depth, whose dot products with the other's vectors are the tile. Its rows in
// memory either run along the depth (a row is a vector) or across it (a row has one element of every vector). Asked for a
// row, a source gives its address, or null where there is none: such a row is zeros.
#pragma once

#include "../abi.h"
#include "scheduler.cuh"

namespace da_moe {

// Gathered rows of A, along the depth.
template <class S>
class RowsOfA {
public:
    using Element = S;
    static constexpr bool ACROSS = false;

    __device__ __forceinline__ RowsOfA(const GroupedGemm& p, const Tile& tile) : p_(p), tile_(tile) {}

    // Null past the tile's rows and for a token that is not there.
    __device__ __forceinline__ const S* row(int i) const {
        if (i >= tile_.rows) {
            return nullptr;
        }
        const int row = tile_.row + i;
        const int source = p_.row_token == nullptr ? row : p_.row_token[row];
        return source >= 0 && source < p_.a_rows ? static_cast<const S*>(p_.a) + source * p_.a_stride : nullptr;
    }

    // An address to name where nothing is read.
    __device__ __forceinline__ const S* somewhere() const { return static_cast<const S*>(p_.a); }

private:
    const GroupedGemm& p_;
    const Tile& tile_;
};

// Rows of one expert's weights, along the depth: `out = A Bᵀ`, what forward multiplies. When gated, GROUP rows of the gate
// are followed by the GROUP rows of the up projection that belong to the same columns, so that one thread gets both.
template <class S, bool GATED_, int GROUP_>
class RowsOfB {
public:
    using Element = S;
    static constexpr bool ACROSS = false;
    static constexpr bool GATED = GATED_;
    static constexpr int GROUP = GROUP_;

    __device__ __forceinline__ RowsOfB(const GroupedGemm& p, const Tile& tile) : p_(p), tile_(tile) {}

    // Null past the last column of the output.
    __device__ __forceinline__ const S* row(int i) const {
        const int column = tile_.column + (GATED ? i / (2 * GROUP) * GROUP + i % GROUP : i);
        if (column >= p_.columns) {
            return nullptr;
        }
        const int row = GATED && i / GROUP % 2 == 1 ? p_.columns + column : column;
        return static_cast<const S*>(p_.b) + tile_.expert * p_.b_expert_stride + row * p_.b_stride;
    }

    // Vectors of the tile up to the last that there is.
    __device__ __forceinline__ int vectors() const {
        const int columns = p_.columns - tile_.column;
        return GATED ? (columns + GROUP - 1) / GROUP * 2 * GROUP : columns;
    }

    __device__ __forceinline__ const S* somewhere() const { return static_cast<const S*>(p_.b); }

private:
    const GroupedGemm& p_;
    const Tile& tile_;
};

// One expert's weights, whose rows are the depth's: `out = A B`, what the way back multiplies.
template <class S>
class ColumnsOfB {
public:
    using Element = S;
    static constexpr bool ACROSS = true;
    static constexpr bool GATED = false;
    static constexpr int GROUP = 1;

    __device__ __forceinline__ ColumnsOfB(const GroupedGemm& p, const Tile& tile) : p_(p), tile_(tile) {}

    __device__ __forceinline__ const S* row(int k) const {
        const S* first = static_cast<const S*>(p_.b) + tile_.expert * p_.b_expert_stride + tile_.column;
        return k < p_.depth ? first + k * p_.b_stride : nullptr;
    }

    // Elements of a row from the tile's first column on.
    __device__ __forceinline__ int width() const { return p_.columns - tile_.column; }
    __device__ __forceinline__ int vectors() const { return width(); }

    __device__ __forceinline__ const S* somewhere() const { return static_cast<const S*>(p_.b); }

private:
    const GroupedGemm& p_;
    const Tile& tile_;
};

// Rows of an expert as the depth of a product: one factor of a weight's gradient. The element types are the operand's.
template <class S>
class RoutedRows {
public:
    using Element = S;
    static constexpr bool ACROSS = true;

    // `first` is the first column of the tile, `rows` the expert's.
    __device__ __forceinline__ RoutedRows(const RoutedOperand& from, const Segment& rows, int first)
        : from_(from), rows_(rows), first_(first) {}

    // Null past the expert's rows and for a token that is not there or takes no part.
    __device__ __forceinline__ const S* row(int k) const {
        if (k >= rows_.count) {
            return nullptr;
        }
        const int row = rows_.first + k;
        const int source = from_.row_token == nullptr ? row : from_.row_token[row];
        if (source < 0 || source >= from_.sources || (from_.mask != nullptr && from_.mask[source] == 0)) {
            return nullptr;
        }
        return static_cast<const S*>(from_.rows) + source * from_.stride + first_;
    }

    __device__ __forceinline__ int width() const { return from_.columns - first_; }
    __device__ __forceinline__ int vectors() const { return width(); }

    __device__ __forceinline__ const S* somewhere() const { return static_cast<const S*>(from_.rows); }

private:
    const RoutedOperand& from_;
    const Segment rows_;
    const int first_;
};

}  // namespace da_moe
