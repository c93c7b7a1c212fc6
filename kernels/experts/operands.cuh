// Where the two operands of a product are: what each main loop is told of a tile.
//
// An operand is a set of vectors as long as the depth, whose dot products with the other's vectors are the tile. Its rows in
// memory either run along the depth (a row is a vector) or across it (a row has one element of every vector). Asked for a
// row, a source says where it is, or that there is none: such a row is zeros. Rows across the depth are found in two steps, so
// that what says where a row is can be read long before the row.
#pragma once

#include "abi.h"
#include "experts/product_tile.cuh"
#include "experts/scheduler.cuh"

namespace da_moe {

// `at` names memory even where there is no row: a copy wants an address that it does not read.
template <class S>
struct Row {
    const S* at;
    bool is_there;
};

// Gathered rows of A, along the depth.
template <class S>
class RowsOfA {
public:
    using Element = S;
    static constexpr bool ACROSS = false;
    static constexpr bool GATHERED = true;

    __device__ __forceinline__ RowsOfA(const GroupedGemm& p, const Tile& tile) : p_(p), tile_(tile) {}

    // Not there past the tile's rows and for a token that is not there.
    __device__ __forceinline__ Row<S> row(int i) const {
        const int row = tile_.row + i;
        const int source = i >= tile_.rows ? -1 : p_.row_token == nullptr ? row : p_.row_token[row];
        const bool is_there = source >= 0 && source < p_.a_rows;
        return {static_cast<const S*>(p_.a) + (is_there ? source * p_.a_stride : 0), is_there};
    }

    __device__ __forceinline__ static int64_t distance(int) { return 0; }

private:
    const GroupedGemm& p_;
    const Tile& tile_;
};

// Rows of one expert's weights, along the depth: `out = A Bᵀ`, what forward multiplies. When gated, each
// GROUP rows of the gate are followed by those of the up projection that belong to the same columns, so that a tile has both.
template <class S, bool GATED_>
class RowsOfB {
public:
    using Element = S;
    static constexpr bool ACROSS = false;
    static constexpr bool GATHERED = false;
    static constexpr bool GATED = GATED_;

    __device__ __forceinline__ RowsOfB(const GroupedGemm& p, const Tile& tile) : p_(p), tile_(tile) {}

    // Not there past the last column of the output.
    __device__ __forceinline__ Row<S> row(int i) const {
        const int column = tile_.column + (GATED ? i / (2 * GROUP) * GROUP + i % GROUP : i);
        const int row = GATED && i / GROUP % 2 == 1 ? p_.columns + column : column;
        const bool is_there = column < p_.columns;
        const int64_t to = tile_.expert * p_.b_expert_stride + row * p_.b_stride;
        return {static_cast<const S*>(p_.b) + (is_there ? to : 0), is_there};
    }

    // Vectors of the tile up to the last that there is.
    __device__ __forceinline__ int vectors() const {
        const int columns = p_.columns - tile_.column;
        return GATED ? (columns + GROUP - 1) / GROUP * 2 * GROUP : columns;
    }

    // Elements from one row to that so many further, a multiple of both halves of a group.
    __device__ __forceinline__ int64_t distance(int rows) const { return p_.b_stride * (GATED ? rows / 2 : rows); }

private:
    static constexpr int GROUP = OUTPUT_CHUNK;

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

    __device__ __forceinline__ ColumnsOfB(const GroupedGemm& p, const Tile& tile) : p_(p), tile_(tile) {}

    __device__ __forceinline__ int pick(int k) const { return k < p_.depth ? k : -1; }

    __device__ __forceinline__ Row<S> picked(int k) const {
        const S* first = static_cast<const S*>(p_.b) + tile_.expert * p_.b_expert_stride + tile_.column;
        return {first + (k >= 0 ? k * p_.b_stride : 0), k >= 0};
    }

    __device__ __forceinline__ bool takes_part(int) const { return true; }

    // Elements of a row from the tile's first column on.
    __device__ __forceinline__ int width() const { return p_.columns - tile_.column; }
    __device__ __forceinline__ int vectors() const { return width(); }

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

    // The token of the expert's row k, which may not be there; below 0 past its rows.
    __device__ __forceinline__ int pick(int k) const {
        const int row = rows_.first + k;
        if (k >= rows_.count) {
            return -1;
        }
        return from_.row_token == nullptr ? row : from_.row_token[row];
    }

    __device__ __forceinline__ Row<S> picked(int source) const {
        const S* first = static_cast<const S*>(from_.rows) + first_;
        return {first + (is_there(source) ? source * from_.stride : 0), is_there(source)};
    }

    // Whether what the row holds counts; asked by the products in f32 alone.
    __device__ __forceinline__ bool takes_part(int source) const {
        return from_.mask == nullptr || !is_there(source) || from_.mask[source] != 0;
    }

    __device__ __forceinline__ int width() const { return from_.columns - first_; }
    __device__ __forceinline__ int vectors() const { return width(); }

private:
    __device__ __forceinline__ bool is_there(int source) const { return source >= 0 && source < from_.sources; }

    const RoutedOperand& from_;
    const Segment rows_;
    const int first_;
};

}  // namespace da_moe
