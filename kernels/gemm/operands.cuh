// Where the rows of a tile's two operands are: gathered rows of A, and rows of one expert's weights.
#pragma once

#include "../abi.h"
#include "scheduler.cuh"

namespace da_moe {

// Row `i` of a tile of A, or null past the tile's rows and for a token that is not there.
template <class S>
__device__ __forceinline__ const S* operand_a(const GroupedGemm& p, const Tile& tile, int i) {
    if (i >= tile.rows) {
        return nullptr;
    }
    const int row = tile.row + i;
    const int source = p.row_token == nullptr ? row : p.row_token[row];
    return source >= 0 && source < p.a_rows ? static_cast<const S*>(p.a) + source * p.a_stride : nullptr;
}

// Row `i` of a tile of B, or null past the last column of the output. When gated, GROUP rows of the gate are followed by
// the GROUP rows of the up projection that belong to the same columns, so that one thread gets both.
template <class S, bool GATED, int GROUP>
__device__ __forceinline__ const S* operand_b(const GroupedGemm& p, const Tile& tile, int i) {
    const int column = tile.column + (GATED ? i / (2 * GROUP) * GROUP + i % GROUP : i);
    if (column >= p.columns) {
        return nullptr;
    }
    const int row = GATED && i / GROUP % 2 == 1 ? p.columns + column : column;
    return static_cast<const S*>(p.b) + tile.expert * p.b_expert_stride + row * p.b_stride;
}

}  // namespace da_moe
