/* Stage 5, combine (SPEC §5, §6): see abi.h. */
#pragma once
#include <stdint.h>

/** What a zero-computation expert returns (SPEC §2). */
enum NullKind {
    NULL_ZERO = 0,
    NULL_COPY = 1,
    NULL_CONSTANT = 2,
};

/** `y_t`, the sum over a token's slots (SPEC §5): `combine_*`. */
struct Combine {
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
    const void* rows;
    /** Distance between its rows. */
    int64_t rows_stride;
    /** `[T, D]` of the row type, or null. */
    const void* shared;
    /** Distance between its rows. */
    int64_t shared_stride;
    /** `[T]`: row of `shared` of each token, negative of none; null where row t is token t. */
    const int32_t* shared_row;
    /** `[T, D]` storage. */
    const void* x;
    /** Distance between its rows. */
    int64_t x_stride;
    /** `[Z, D]` storage, or null. */
    const void* constants;
    /** Distance between its rows. */
    int64_t constants_stride;
    /** Out: `[T, D]` storage. */
    void* y;
    /** T. */
    int32_t tokens;
    /** D. */
    int32_t width;
    /** K. */
    int32_t slots;
    /** E. */
    int32_t routed;
    /** Z. */
    int32_t nulls;
    /** See `NullKind`. */
    int32_t null_kind;
    /** Rows of `rows`. */
    int32_t row_count;
    /** Keeps the struct free of padding. */
    int32_t reserved;
};

/** Gradients through the null experts (SPEC §6): `combine_backward_*`, `combine_constants_*`. */
struct CombineBackward {
    /** `[T, K]`. */
    const int32_t* experts;
    /** `[T, K]`. */
    const float* weights;
    /** Distance between rows of `experts`. */
    int64_t experts_stride;
    /** Distance between rows of `weights`. */
    int64_t weights_stride;
    /** `[T, D]` storage. */
    const void* x;
    /** Distance between its rows. */
    int64_t x_stride;
    /** `[Z, D]` storage, or null. */
    const void* constants;
    /** Distance between its rows. */
    int64_t constants_stride;
    /** `[T, D]` storage. */
    const void* dy;
    /** Distance between its rows. */
    int64_t dy_stride;
    /** Out: `[T, K]`. */
    float* d_weights;
    /** Out: `[Z, D]`, or null; in too unless `beta` is 0. */
    void* d_constants;
    /** Workspace, with `d_constants`: `[Z, chunks, D]`. */
    float* parts;
    /** Workspace, with `d_constants`: a count of arriving blocks for each share of each row of `d_constants`; 0 before the
     * first launch, and they return to 0 by themselves. */
    uint32_t* tickets;
    /** T. */
    int32_t tokens;
    /** D. */
    int32_t width;
    /** K. */
    int32_t slots;
    /** E. */
    int32_t routed;
    /** Null experts that have a value: rows of `constants`, all copies, no others. */
    int32_t nulls;
    /** See `NullKind`. */
    int32_t null_kind;
    /** Rows of `d_constants`. */
    int32_t gradients;
    /** Consecutive tokens that one block of `combine_constants_*` adds up. */
    int32_t chunk;
    /** Whether `d_constants` is f32 instead of the storage type. */
    int32_t gradients_f32;
    /** Factor on what `d_constants` holds: 0 or 1. */
    float beta;
};
