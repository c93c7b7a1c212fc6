/* Stage 1, importance (SPEC §1): see abi.h. */
#pragma once
#include <stdint.h>

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
    /** In and out: see `StateIndex`. */
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
