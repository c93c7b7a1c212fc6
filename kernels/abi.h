/* Parameters of every kernel: plain C, shared with Rust (src/cuda/abi.rs is generated from this file).
 *
 * One struct is one kernel's only argument, passed by value. Pointers are device addresses; sizes are SPEC.md's letters:
 * T tokens, D width, E routed experts, C = E + Z candidates, K = k_max slots, B sequences, H heads. Strides are in
 * elements. "Storage" means f32, bf16 or f16, told by the kernel's name. A pointer that may be null says so.
 *
 * Members are ordered by size, so that no struct has padding. */
#pragma once
#include <stdint.h>

/** Largest E + Z (SPEC §7), and so the largest k_max. */
#define MAX_CANDIDATES 512

/** Reduction of one head's attention over positions (SPEC §1). */
enum Measure {
    MEASURE_RECEIVED_MAX = 0,
    MEASURE_RECEIVED_SUM = 1,
    MEASURE_RECEIVED_MEAN = 2,
    MEASURE_GIVEN_PEAK = 3,
    MEASURE_GIVEN_ENTROPY = 4,
    MEASURE_GIVEN_SELF = 5,
    /** No importance: ln of the sum of a row's e^score, which other measures need. Only from queries and keys. */
    MEASURE_LOG_SUM_EXP = 6,
};

/** Normalisation of importance (SPEC §1). */
enum Rule {
    RULE_NONE = 0,
    RULE_AFFINE = 1,
    RULE_MAX = 2,
    RULE_MIN_MAX = 3,
};

/** How k_t is decided (SPEC §2). */
enum Policy {
    POLICY_FIXED = 0,
    POLICY_PROPORTIONAL = 1,
    POLICY_THRESHOLDS = 2,
    POLICY_BUDGET = 3,
    POLICY_BUDGET_RUNNING = 4,
    POLICY_TOP_P = 5,
    POLICY_SCORE_THRESHOLD = 6,
    POLICY_GIVEN = 7,
};

/** Function from logits to scores (SPEC §3). */
enum Scoring {
    SCORING_SOFTMAX = 0,
    SCORING_SIGMOID = 1,
    SCORING_RELU = 2,
};

/** What the selected scores are divided by (SPEC §3). */
enum Divisor {
    DIVISOR_NONE = 0,
    DIVISOR_SELECTED = 1,
    DIVISOR_CANDIDATES = 2,
};

/** What a zero-computation expert returns (SPEC §2). */
enum NullKind {
    NULL_ZERO = 0,
    NULL_COPY = 1,
    NULL_CONSTANT = 2,
};

/** Places in the state carried between steps. */
enum StatePlace {
    STATE_MINIMUM = 0,
    STATE_MAXIMUM = 1,
    STATE_PRICE = 2,
    STATE_STEPS = 3,
};

/** One value for each head and token from a probability matrix: `importance_received_*`, `importance_given_*`. */
struct ImportanceProbabilities {
    /** `[B, H, side, side]` storage; rows are queries. */
    const void* probabilities;
    /** Distance between sequences. */
    int64_t sequence_stride;
    /** Distance between heads. */
    int64_t head_stride;
    /** Distance between rows. */
    int64_t row_stride;
    /** `[B + 1]`, or null for one sequence. */
    const int32_t* cu_seqlens;
    /** `[T]`, or null: 0 marks a token that takes no part. */
    const uint8_t* mask;
    /** Out: `[H, T]`. */
    float* values;
    /** T. */
    int32_t tokens;
    /** B. */
    int32_t sequences;
    /** Rows and columns of one matrix. */
    int32_t side;
    /** Blocks that share a matrix. */
    int32_t tiles;
    /** See `Measure`. */
    int32_t measure;
    /** Whether key j is visible to query i only where j <= i. */
    int32_t causal;
};

/** One value for each head and token from queries and keys: `importance_query_key_*`, `importance_own_key_*`. */
struct ImportanceQueryKey {
    /** `[T, H, width]` storage. */
    const void* q;
    /** Distance between its tokens. */
    int64_t q_token_stride;
    /** Distance between its heads. */
    int64_t q_head_stride;
    /** `[T, H / heads_per_key, width]` storage. */
    const void* k;
    /** Distance between its tokens. */
    int64_t k_token_stride;
    /** Distance between its heads. */
    int64_t k_head_stride;
    /** `[H, T]`, natural logarithms; may be null for `given-peak`, `given-entropy` and the log-sum-exp itself. */
    const float* lse;
    /** Distance between its heads. */
    int64_t lse_stride;
    /** `[B + 1]`, or null for one sequence. */
    const int32_t* cu_seqlens;
    /** `[T]`, or null: 0 marks a token that takes no part. */
    const uint8_t* mask;
    /** Out: `[H, T]`. */
    float* values;
    /** T. */
    int32_t tokens;
    /** B. */
    int32_t sequences;
    /** Elements of a query or key. */
    int32_t width;
    /** Query heads that read one key head. */
    int32_t heads_per_key;
    /** See `Measure`. */
    int32_t measure;
    /** Whether key j is visible to query i only where j <= i. */
    int32_t causal;
    /** Factor on `q·k`, times log2(e): exponents are of two. */
    float scale;
    /** Whether every query and key starts at a multiple of 16 bytes. */
    int32_t wide;
};

/** `H(softmax z_t) / ln E`: `importance_router_entropy`. */
struct ImportanceRouterEntropy {
    /** `[T, C]`. */
    const float* logits;
    /** Distance between rows. */
    int64_t logits_stride;
    /** Out: `[T]`. */
    float* values;
    /** T. */
    int32_t tokens;
    /** C. */
    int32_t candidates;
    /** `1 / ln E`; 0 for one expert. */
    float scale;
    /** Keeps the struct free of padding. */
    int32_t reserved;
};

/** Reduction over heads, or a table lookup, and the rules that look at one token: `importance_reduce`. */
struct ImportanceReduce {
    /** `[H, T]`, or with `ids` a table `[vocabulary]`. */
    const float* values;
    /** `[T]`, or null. */
    const int32_t* ids;
    /** `[T]`, or null. */
    const uint8_t* mask;
    /** Out: `[T]`. */
    float* out;
    /** T. */
    int32_t tokens;
    /** H; 1 with `ids`. */
    int32_t heads;
    /** Whether heads are reduced by their maximum instead of their mean. */
    int32_t heads_max;
    /** Entries of the table. */
    int32_t vocabulary;
    /** `RULE_NONE` or `RULE_AFFINE`. */
    int32_t rule;
    /** Slope of the affine rule. */
    float a;
    /** Offset of the affine rule. */
    float b;
    /** Factor on the result. */
    float weight;
    /** Whether the result is added to `out`. */
    int32_t accumulate;
    /** Keeps the struct free of padding. */
    int32_t reserved;
};

/** Rules that look at a whole sequence: `importance_normalize` (`RULE_MAX`, `RULE_MIN_MAX`), `importance_rank`. */
struct ImportanceNormalize {
    /** `[T]`; not `out`. */
    const float* values;
    /** `[B + 1]`, or null for one sequence. */
    const int32_t* cu_seqlens;
    /** `[T]`, or null. */
    const uint8_t* mask;
    /** Out: `[T]`. */
    float* out;
    /** T. */
    int32_t tokens;
    /** B. */
    int32_t sequences;
    /** See `Rule`. */
    int32_t rule;
    /** Factor on the result. */
    float weight;
    /** Whether the result is added to `out`. */
    int32_t accumulate;
    /** Keeps the struct free of padding. */
    int32_t reserved;
};

/** Min-max against statistics carried between steps: `importance_running`. */
struct ImportanceRunning {
    /** `[T]`. */
    const float* values;
    /** `[T]`, or null. */
    const uint8_t* mask;
    /** In and out: see `StatePlace`. */
    float* state;
    /** Out: `[T]`. */
    float* out;
    /** T. */
    int32_t tokens;
    /** Share of the old statistics kept. */
    float momentum;
    /** Whether the statistics move. */
    int32_t training;
    /** Keeps the struct free of padding. */
    int32_t reserved;
};

/** The exact `budget` (SPEC §2): `budget_digit`, `budget_ties`, `budget_assign`. */
struct Budget {
    /** `[T]`. */
    const float* importance;
    /** `[T]`, or null. */
    const uint8_t* mask;
    /** Out: `[T]`. */
    int32_t* k;
    /** Workspace: `BUDGET_BINS` counts, zero between launches. */
    uint32_t* histogram;
    /** Workspace: `[blocks, k_max - k_min]` counts of keys that equal the price. */
    int32_t* ties;
    /** Workspace: `[blocks]` ties at the level where they run out, in the blocks before. */
    int32_t* ties_before;
    /** Workspace: see `ArrivalPlace`; zero between launches. */
    uint32_t* arrivals;
    /** Workspace: see `FoundPlace`. */
    uint32_t* found;
    /** Mean experts per unmasked token. */
    double mean_k;
    /** T. */
    int32_t tokens;
    /** k_min. */
    int32_t k_min;
    /** k_max - k_min. */
    int32_t levels;
    /** 0, 1 or 2: which digits of the price `budget_digit` finds. */
    int32_t pass;
};

/** Bins of one digit of the price. */
#define BUDGET_BINS 2048

/** What blocks of the search for the price count while they arrive; all zero between launches. */
enum ArrivalPlace {
    /** Counts arriving blocks; returns to 0 by itself. */
    ARRIVAL_TICKET = 0,
    /** Unmasked tokens. */
    ARRIVAL_UNMASKED = 1,
    /** Length of the array. */
    ARRIVAL_LENGTH = 2,
};

/** What a launch of the search for the price has found out for the next one. Each word is written before it is read. */
enum FoundPlace {
    /** Leading bits of the price. */
    FOUND_PRICE = 0,
    /** Winners still to be found among the keys that begin with these bits; 0: nothing to give away. */
    FOUND_LEFT = 1,
    /** The level at which equal keys run out. */
    FOUND_LEVEL = 2,
    /** Equal keys that still win at that level. */
    FOUND_LEFT_AT_LEVEL = 3,
    /** Length of the array. */
    FOUND_LENGTH = 4,
};

/** Scores, k_t, selection, weights and losses (SPEC §2, §3): `gate_*`. */
struct Gate {
    /** `[T, C]`. */
    const float* logits;
    /** Distance between rows. */
    int64_t logits_stride;
    /** `[T]`. */
    const float* importance;
    /** `[C]`, or null. */
    const float* bias;
    /** `[T]`, or null. */
    const uint8_t* mask;
    /** `[T]` for the policy `given`, or null. */
    const int32_t* k_given;
    /** In and out: see `StatePlace`. */
    float* state;
    /** Out, or in for the policy `budget`: `[T]`. */
    int32_t* k;
    /** Out: `[T, K]`. */
    int32_t* experts;
    /** Out: `[T, K]`. */
    float* weights;
    /** Out: `[T, K]`. */
    int32_t* ranked;
    /** Out: `[C]`. */
    int32_t* load;
    /** Out: `[1]`. */
    int32_t* unmasked;
    /** Out: `[2]`. */
    float* losses;
    /** Workspace: `[blocks, C]`. */
    int32_t* block_load;
    /** Workspace: `[blocks, C]`. */
    float* block_shares;
    /** Workspace: `[blocks]`. */
    float* block_z;
    /** Workspace: `[blocks]`. */
    int32_t* block_unmasked;
    /** Workspace: counts arriving blocks; 0 before the first launch, and returns to 0 by itself. */
    uint32_t* ticket;
    /** Of `top-p`. */
    double p;
    /** Of `budget-running`. */
    double mean_k;
    /** Of `budget-running`. */
    double momentum;
    /** T. */
    int32_t tokens;
    /** E. */
    int32_t routed;
    /** C. */
    int32_t candidates;
    /** k_min. */
    int32_t k_min;
    /** K. */
    int32_t k_max;
    /** See `Policy`. */
    int32_t policy;
    /** See `Scoring`. */
    int32_t scoring;
    /** See `Divisor`. */
    int32_t divisor;
    /** Factor on every weight. */
    float routed_scaling;
    /** Groups that the candidates are divided into. */
    int32_t groups;
    /** Groups that may be chosen from. */
    int32_t chosen_groups;
    /** Consecutive tokens that one warp takes. */
    int32_t tokens_per_warp;
    /** `k` of `fixed`. */
    int32_t fixed;
    /** Of `proportional`. */
    float scale;
    /** Price of `budget-running` before it was ever set. */
    float first_price;
    /** Whether the price moves. */
    int32_t training;
    /** Used entries of `thresholds`. */
    int32_t threshold_count;
    /** Keeps the struct free of padding. */
    int32_t reserved;
    /** Of `thresholds`, ascending; of `score-threshold`, one for each candidate. */
    float thresholds[MAX_CANDIDATES];
};

/** A finished routing from the caller, put into slot order (SPEC §2 `given`): `routing_*`. */
struct GivenRouting {
    /** `[T, columns]`, or `[entries]` with `offsets`. */
    const int32_t* given_experts;
    /** As `given_experts`. */
    const float* given_weights;
    /** `[T + 1]` of the compressed layout, or null. */
    const int32_t* offsets;
    /** Distance between rows of `given_experts`. */
    int64_t experts_stride;
    /** Distance between rows of `given_weights`. */
    int64_t weights_stride;
    /** `[T]`, or null. */
    const uint8_t* mask;
    /** Out: `[T]`. */
    int32_t* k;
    /** Out: `[T, K]`. */
    int32_t* experts;
    /** Out: `[T, K]`. */
    float* weights;
    /** Out: `[T, K]`: place of each slot among the caller's entries of the token. */
    int32_t* ranked;
    /** Out: `[C]`. */
    int32_t* load;
    /** Out: `[1]`. */
    int32_t* unmasked;
    /** Out: `[2]`: zeros. */
    float* losses;
    /** Workspace: `[blocks, C]`. */
    int32_t* block_load;
    /** Workspace: `[blocks]`. */
    int32_t* block_unmasked;
    /** Workspace: counts arriving blocks; 0 before the first launch, and returns to 0 by itself. */
    uint32_t* ticket;
    /** T. */
    int32_t tokens;
    /** Entries of a token in the padded layout. */
    int32_t columns;
    /** Entries in all of the compressed layout. */
    int32_t entries;
    /** C. */
    int32_t candidates;
    /** K. */
    int32_t k_max;
    /** Consecutive tokens that one warp takes. */
    int32_t tokens_per_warp;
};

/** Selection bias against the load (SPEC §3): `gate_bias`. */
struct GateBias {
    /** `[C]`. */
    const int32_t* load;
    /** In and out: `[C]`. */
    float* bias;
    /** C. */
    int32_t candidates;
    /** Whether the step is proportional to what an expert lacks, instead of its sign. */
    int32_t proportional;
    /** Size of the step. */
    float rate;
    /** Keeps the struct free of padding. */
    int32_t reserved;
};

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
    /** `[rows, D]` f32. */
    const float* dx_rows;
    /** Distance between its rows. */
    int64_t dx_rows_stride;
    /** `[rows]`. */
    const float* d_row_weight;
    /** `[T, D]` f32, or null. */
    const float* shared_dx;
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

/** Weights, scores and losses, upward, to the logits (SPEC §6): `gate_backward_*`. */
struct GateBackward {
    /** `[T, C]`. */
    const float* logits;
    /** Distance between rows. */
    int64_t logits_stride;
    /** `[T]`, or null. */
    const uint8_t* mask;
    /** `[T, K]`. */
    const int32_t* experts;
    /** Distance between rows. */
    int64_t experts_stride;
    /** `[T, K]`; read for `DIVISOR_CANDIDATES` only. */
    const int32_t* ranked;
    /** Distance between rows. */
    int64_t ranked_stride;
    /** `[T, K]`. */
    const float* d_weights;
    /** Distance between rows. */
    int64_t d_weights_stride;
    /** `[C]`. */
    const int32_t* load;
    /** `[1]`. */
    const int32_t* unmasked;
    /** Out: `[T, C]`. */
    float* d_logits;
    /** Coefficient of the balance loss, times E. */
    double balance;
    /** T. */
    int32_t tokens;
    /** C. */
    int32_t candidates;
    /** K. */
    int32_t slots;
    /** See `Scoring`. */
    int32_t scoring;
    /** See `Divisor`. */
    int32_t divisor;
    /** Factor on every weight. */
    float routed_scaling;
    /** Coefficient of the z-loss. */
    float z;
    /** Consecutive tokens that one warp takes. */
    int32_t tokens_per_warp;
};

/** The parts of `dx` added and rounded once (SPEC §6): `gate_dx_*`. */
struct GateDx {
    /** `[T, D]` f32: everything but the router's part. */
    const float* dx_rows;
    /** Distance between its rows. */
    int64_t dx_rows_stride;
    /** `[T, D]` f32: the router's part, or null. */
    const float* of_router;
    /** Distance between its rows. */
    int64_t of_router_stride;
    /** Out: `[T, D]` storage. */
    void* dx;
    /** T. */
    int32_t tokens;
    /** D. */
    int32_t width;
};

/** Gradients of weights put back into the caller's layout (SPEC §6): `routing_backward`. */
struct RoutingBackward {
    /** `[T, K]`: place of each slot among the caller's entries of the token; negative where absent. */
    const int32_t* ranked;
    /** Distance between rows. */
    int64_t ranked_stride;
    /** `[T, K]`. */
    const float* d_weights;
    /** Distance between rows. */
    int64_t d_weights_stride;
    /** `[T + 1]` of the compressed layout, or null. */
    const int32_t* offsets;
    /** Out: `[T, columns]`, or `[entries]` with `offsets`. */
    float* d_routing;
    /** T. */
    int32_t tokens;
    /** K. */
    int32_t slots;
    /** Entries of a token in the padded layout. */
    int32_t columns;
    /** Entries in all of the compressed layout. */
    int32_t entries;
};

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
