/* Stage 2, the gate (SPEC §2, §3, §6), a routing from the caller included: see abi.h. */
#pragma once
#include <stdint.h>

/** Largest E + Z (SPEC §7), and so the largest k_max. */
#define MAX_CANDIDATES 512

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

/** Of the values in the state carried between steps. */
enum StateIndex {
    STATE_MINIMUM = 0,
    STATE_MAXIMUM = 1,
    STATE_PRICE = 2,
    STATE_STEPS = 3,
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
    /** Workspace: see `ArrivalIndex`; zero between launches. */
    uint32_t* arrivals;
    /** Workspace: see `FoundIndex`. */
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
enum ArrivalIndex {
    /** Counts arriving blocks; returns to 0 by itself. */
    ARRIVAL_TICKET = 0,
    /** Unmasked tokens. */
    ARRIVAL_UNMASKED = 1,
    /** Length of the array. */
    ARRIVAL_LENGTH = 2,
};

/** What a launch of the search for the price has found out for the next one. Each word is written before it is read. */
enum FoundIndex {
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
    /** In and out: see `StateIndex`. */
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
