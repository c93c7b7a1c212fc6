/* Stage 4, the experts' products (SPEC §5, §6): see abi.h. */
#pragma once
#include <stdalign.h>
#include <stdint.h>

/** The function between an expert's two matrices (SPEC §5). */
enum Activation {
    ACTIVATION_NONE = 0,
    ACTIVATION_RELU = 1,
    ACTIVATION_GELU = 2,
    ACTIVATION_GELU_TANH = 3,
    ACTIVATION_SILU = 4,
    ACTIVATION_SWIGLU = 5,
    ACTIVATION_GEGLU = 6,
    ACTIVATION_REGLU = 7,
};

/** Rows of a tile of the grouped product on tensor cores. */
#define GEMM_TILE_ROWS 128

/** Its columns; when gated, half of them are the gate's. */
#define GEMM_TILE_COLUMNS 256

/** Rows, and columns, of a tile of f32 products. */
#define GEMM_F32_TILE 128

/** Dynamic shared memory of a block on tensor cores: four stages of as many vectors of 64 bytes as a tile has rows and
 * columns. */
#define GEMM_SHARED_BYTES 98304

/** A product of rows with their experts' weights (SPEC §5): `grouped_gemm_*`. */
struct GroupedGemm {
    /** `[a_rows, depth]` storage; 16-bit where the kernel's name ends in that type's rows. */
    const void* a;
    /** `[E, columns or 2 * columns, depth]` storage; gate rows first when gated. */
    const void* b;
    /** `[E, columns or 2 * columns]` storage, or null. */
    const void* bias;
    /** `[E + 1]`, or null: one expert has all rows. */
    const int32_t* offsets;
    /** `[rows]` row of `a` for each row, or null: the same. */
    const int32_t* row_token;
    /** Out: `[rows, columns]` after the activation. */
    void* out;
    /** Out: `[rows, columns or 2 * columns]` before it, or null. */
    void* hidden;
    /** Distance between rows of `a`. */
    int64_t a_stride;
    /** Distance between experts of `b`. */
    int64_t b_expert_stride;
    /** Distance between rows of `b`. */
    int64_t b_stride;
    /** Distance between experts of `bias`. */
    int64_t bias_stride;
    /** Distance between rows of `out`. */
    int64_t out_stride;
    /** Distance between rows of `hidden`. */
    int64_t hidden_stride;
    /** Rows that `out` has room for; without `offsets`, the rows there are. */
    int32_t rows;
    /** Rows of `a`. */
    int32_t a_rows;
    /** E. */
    int32_t experts;
    /** Length of a row of `a` and of `b`. */
    int32_t depth;
    /** Columns of `out`. */
    int32_t columns;
    /** See `Activation`. */
    int32_t activation;
    /** Whether `out` is f32 instead of the storage type. */
    int32_t out_f32;
    /** Whether `hidden` is f32 instead of the storage type. */
    int32_t hidden_f32;
};

/** Columns of a unit of the grouped product on Hopper; when gated, half of them are the gate's. */
#define HOPPER_TILE_COLUMNS 256

/** Its rows, which a cluster of two blocks divides. */
#define HOPPER_TILE_ROWS 256

/** Dynamic shared memory of a block: four stages of 128 rows and 256 columns of 128 bytes and four planes of 64 rows, or three
 * stages and ten planes, and room for mbarriers. */
#define HOPPER_SHARED_BYTES 229504

/** Counts of clocks of a block. */
#define HOPPER_CLOCKS 5

/** What the tensor memory accelerator is told of a tensor: a `CUtensorMap`, encoded by the driver. */
struct TensorMap {
    /** Nobody's but the driver's. */
    alignas(64) uint64_t words[16];
};

/** As `GroupedGemm` on Hopper: `grouped_gemm_*_hopper`. Maps come first, each at a multiple of its 128 bytes. Boxes are 128 bytes
 * wide, with the 128-byte swizzle. */
struct HopperGemm {
    /** `b` as `[E, halves, columns, depth]`, two halves when gated; boxes of 128 rows. Where the kernel's name has `nn`, as
     * `[E, 1, depth, columns]`; boxes of 64 rows. */
    struct TensorMap b;
    /** `a` as `[rows, depth]`, where rows are not gathered; boxes of 64 rows. */
    struct TensorMap a;
    /** `out` as `[rows, 1, columns]`; boxes of 64 rows. */
    struct TensorMap out;
    /** `hidden` as `[rows, halves, columns]`, if there is one; boxes of 64 rows. */
    struct TensorMap hidden;
    /** The same product. `a`, `b`, `out`, `hidden` and the distances between their rows are multiples of 16 bytes. */
    struct GroupedGemm product;
    /** Out: `[blocks, HOPPER_CLOCKS]` clocks, where the kernel's name ends in `_clocked`: of the warpgroup that brings, all and those of
     * waiting for a free stage; of one that multiplies, all, those of waiting for a full one, and those of leaving. */
    int64_t* clocks;
    /** Keeps the struct free of padding. */
    uint64_t reserved[6];
};

/** Gradient through the experts' second product and their activation (SPEC §6): `grouped_gemm_*_dh*`. */
struct HiddenGradient {
    /** `a` is `dy`, `b` is `W_out[E, depth, columns]`, `hidden` is read, `out` is `dh[rows, columns or 2 * columns]`
     * storage, f32 beside f16; no bias. */
    struct GroupedGemm product;
    /** `[rows]`, or null: 1. */
    const float* row_weight;
    /** Out: `[rows, columns]` as `dh`, the activated values times the row's weight. */
    void* activated;
    /** Out: `[rows, column tiles]` what each tile adds to the gradient of the row's weight. */
    float* parts;
    /** Distance between rows of `activated`. */
    int64_t activated_stride;
};

/** As `HiddenGradient` on Hopper: `grouped_gemm_bf16_dh_*_hopper`. Maps as in `HopperGemm`. */
struct HopperHiddenGradient {
    /** `b` as `[E, 1, depth, columns]`; boxes of 64 rows. */
    struct TensorMap b;
    /** `hidden`, which is of the storage type, as `[rows, halves, columns]`; boxes of 64 rows. */
    struct TensorMap hidden;
    /** `out` alike. */
    struct TensorMap out;
    /** `activated` as `[rows, 1, columns]`; boxes of 64 rows. */
    struct TensorMap activated;
    /** The same gradient. Its matrices and the distances between their rows are multiples of 16 bytes. */
    struct HiddenGradient gradient;
    /** As in `HopperGemm`. */
    int64_t* clocks;
    /** Keeps the struct free of padding. */
    uint64_t reserved[2];
};

/** Gradient of every row's weight (SPEC §6), added up: `row_weight_gradient_*`. */
struct RowWeightGradient {
    /** `[rows, part_count]`. */
    const float* parts;
    /** `[tokens, width]` storage: `dy`. */
    const void* dy;
    /** `[E, width]` storage: `b_out`, or null. */
    const void* bias;
    /** `[E + 1]`, or null: one expert has all rows. */
    const int32_t* offsets;
    /** `[rows]`, or null: the same. */
    const int32_t* row_token;
    /** Out: `[rows]`. */
    float* out;
    /** Distance between rows of `dy`. */
    int64_t dy_stride;
    /** Distance between rows of `bias`. */
    int64_t bias_stride;
    /** Rows that `out` has room for; without `offsets`, the rows there are. */
    int32_t rows;
    /** Rows of `dy`. */
    int32_t tokens;
    /** E. */
    int32_t experts;
    /** D. */
    int32_t width;
    /** Parts of a row. */
    int32_t part_count;
    /** Keeps the struct free of padding. */
    int32_t reserved;
};

/** Rows of a plan, gathered: one factor of a weight's gradient. */
struct RoutedOperand {
    /** `[sources, columns]`. */
    const void* rows;
    /** `[rows]` row of `rows` for each row of the plan, or null: the same. */
    const int32_t* row_token;
    /** `[sources]`, or null: rows whose byte is 0 take no part, whatever they hold. Only products in f32 look at it. */
    const uint8_t* mask;
    /** Distance between rows. */
    int64_t stride;
    /** Rows of `rows`. */
    int32_t sources;
    /** Length of a row. */
    int32_t columns;
};

/** Sums over every expert's rows (SPEC §6), `out[e] = beta * out[e] + sum of left (x) right`: `grouped_gemm_*_tn*`. */
struct WeightGradient {
    /** Its columns are the rows of `out`. */
    struct RoutedOperand left;
    /** Its columns are those of `out`. */
    struct RoutedOperand right;
    /** `[E + 1]`, or null: expert e has `share` rows from `e * share` on, as far as there are. */
    const int32_t* offsets;
    /** Out: `[E, left columns, right columns]`; in too unless `beta` is 0. */
    void* out;
    /** Distance between experts of `out`. */
    int64_t out_expert_stride;
    /** Distance between rows of `out`. */
    int64_t out_stride;
    /** Rows of the plan that there is room for; without `offsets`, the rows there are. */
    int32_t rows;
    /** E. */
    int32_t experts;
    /** Whether `out` is f32 instead of the storage type. */
    int32_t out_f32;
    /** Factor on what `out` holds: 0 or 1. */
    float beta;
    /** Rows of an expert where there are no `offsets`. */
    int32_t share;
    /** Keeps the struct free of padding. */
    int32_t reserved;
};

/** As `WeightGradient` on Hopper: `grouped_gemm_bf16_tn_*hopper`. Maps as in `HopperGemm`. */
struct HopperWeightGradient {
    /** The factor whose rows lie as the plan has them, which is `right`, or `left` where the kernel's name has `turned`, as
     * `[1, 1, rows, columns]`; boxes of 64 rows. */
    struct TensorMap packed;
    /** `out` as `[E, left columns, right columns]`; boxes of 64 rows. */
    struct TensorMap out;
    /** The same gradient. Its matrices and the distances between their rows are multiples of 16 bytes. */
    struct WeightGradient gradient;
    /** As in `HopperGemm`. */
    int64_t* clocks;
    /** Keeps the struct free of padding. */
    uint64_t reserved[6];
};

/** A weight's gradient whose rows were divided, added up, `out = beta * out + sum of parts`: `weight_gradient_sum_*`. */
struct WeightGradientSum {
    /** `[part_count, elements]`. */
    const float* parts;
    /** Out: `[elements]`; in too unless `beta` is 0. */
    void* out;
    /** Elements of the gradient. */
    int64_t elements;
    /** Parts. */
    int32_t part_count;
    /** Whether `out` is f32 instead of the storage type. */
    int32_t out_f32;
    /** Factor on what `out` holds: 0 or 1. */
    float beta;
    /** Keeps the struct free of padding. */
    int32_t reserved;
};

/** As `WeightGradient` for a bias, `out[e] = beta * out[e] + sum of weight * row`: `bias_gradient_*`. */
struct BiasGradient {
    /** The rows. */
    struct RoutedOperand from;
    /** `[rows]` factor of each row, or null: 1. */
    const float* row_weight;
    /** `[E + 1]`, or null: one expert has all rows. */
    const int32_t* offsets;
    /** Out: `[E, columns]`; in too unless `beta` is 0. */
    void* out;
    /** Distance between experts of `out`. */
    int64_t out_stride;
    /** Rows of the plan that there is room for; without `offsets`, the rows there are. */
    int32_t rows;
    /** E. */
    int32_t experts;
    /** Whether `out` is f32 instead of the storage type. */
    int32_t out_f32;
    /** Factor on what `out` holds: 0 or 1. */
    float beta;
};
