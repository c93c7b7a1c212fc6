/* Stage 3, the dispatch plan (SPEC §4, §6): see abi.h. */
#pragma once
#include <stdint.h>

/** The dispatch plan (SPEC §3 capacity, §4): `permute_count`, `permute_scatter`, `permute_drop`. */
struct Permute {
    /** `[T, K]`. */
    const int32_t* experts;
    /** `[T, K]`. */
    const float* weights;
    /** Distance between rows of `experts`. */
    int64_t experts_stride;
    /** Distance between rows of `weights`. */
    int64_t weights_stride;
    /** Out: `[C]`. */
    int32_t* counts;
    /** Out: `[E + 1]`. */
    int32_t* offsets;
    /** Out: `[T * K]`, the first R. */
    int32_t* row_token;
    /** Out: `[T * K]`, the first R. */
    float* row_weight;
    /** Out: `[T, K]`. */
    int32_t* token_row;
    /** Out: `[1]`. */
    int32_t* dropped;
    /** Workspace: `[blocks, C]`; first counts, then the rows of each candidate in the blocks before. */
    int32_t* block_counts;
    /** Workspace, with a capacity: `[E + 1]` offsets before any drop. */
    int32_t* sorted_offsets;
    /** Workspace, with a capacity: `[T * K]` entry of each row before any drop. */
    int32_t* sorted_entry;
    /** Workspace, with a capacity: `[T * K]` its weight. */
    float* sorted_weight;
    /** Workspace: counts arriving blocks; 0 before the first launch, and returns to 0 by itself. */
    uint32_t* ticket;
    /** Rows that an expert keeps are `ceil(capacity_factor * R / E)`; negative: all. */
    double capacity_factor;
    /** T. */
    int32_t tokens;
    /** K. */
    int32_t slots;
    /** E. */
    int32_t routed;
    /** C. */
    int32_t candidates;
    /** Whether an overfull expert keeps its largest weights instead of its earliest tokens. */
    int32_t by_weight;
    /** Keeps the struct free of padding. */
    int32_t reserved;
};

/** The rows of the shared expert where tokens are masked (SPEC §4): `permute_unmasked`. */
struct PermuteUnmasked {
    /** `[T]`. */
    const uint8_t* mask;
    /** Out: `[2]`: 0 and the number of rows. */
    int32_t* offsets;
    /** Out: `[T]`, the first `offsets[1]`. */
    int32_t* row_token;
    /** Out: `[T]`. */
    int32_t* token_row;
    /** T. */
    int32_t tokens;
    /** Keeps the struct free of padding. */
    int32_t reserved;
};

/** The rows' gradients summed back to their tokens (SPEC §6): `permute_backward_*`. */
struct PermuteBackward {
    /** `[T, K]`. */
    const int32_t* experts;
    /** `[T, K]`. */
    const float* weights;
    /** `[T, K]`. */
    const int32_t* token_row;
    /** Distance between rows of `experts`. */
    int64_t experts_stride;
    /** Distance between rows of `weights`. */
    int64_t weights_stride;
    /** Distance between rows of `token_row`. */
    int64_t token_row_stride;
    /** `[rows, D]` of the row type. */
    const void* dx_rows;
    /** Distance between its rows. */
    int64_t dx_rows_stride;
    /** `[rows]`. */
    const float* d_row_weight;
    /** `[T, D]` of the row type, or null. */
    const void* shared_dx;
    /** Distance between its rows. */
    int64_t shared_stride;
    /** `[T]`: row of `shared_dx` of each token, negative of none; null where row t is token t. */
    const int32_t* shared_row;
    /** `[T, D]` storage. */
    const void* dy;
    /** Distance between its rows. */
    int64_t dy_stride;
    /** In and out: `[T, K]`; only slots that have a row are written. */
    float* d_weights;
    /** Out: `[T, D]` f32. */
    float* dx;
    /** T. */
    int32_t tokens;
    /** D. */
    int32_t width;
    /** K. */
    int32_t slots;
    /** E. */
    int32_t routed;
    /** See `NullKind`. */
    int32_t null_kind;
    /** Rows of `dx_rows`. */
    int32_t row_count;
};
