//! Parameters of every kernel, as the kernels read them.
//!
//! Generated from `kernels/abi.h` and `kernels/abi/` by `cargo xtask abi`; changes are made there.

use super::layout::{Field, Layout};
use core::mem::offset_of;

/// `MAX_CANDIDATES` of the kernels.
pub const MAX_CANDIDATES: i32 = 512;
/// `BUDGET_BINS` of the kernels.
pub const BUDGET_BINS: i32 = 2048;
/// `GEMM_TILE_ROWS` of the kernels.
pub const GEMM_TILE_ROWS: i32 = 128;
/// `GEMM_TILE_COLUMNS` of the kernels.
pub const GEMM_TILE_COLUMNS: i32 = 256;
/// `GEMM_F32_TILE` of the kernels.
pub const GEMM_F32_TILE: i32 = 128;
/// `GEMM_SHARED_BYTES` of the kernels.
pub const GEMM_SHARED_BYTES: i32 = 98304;
/// `HOPPER_TILE_COLUMNS` of the kernels.
pub const HOPPER_TILE_COLUMNS: i32 = 256;
/// `HOPPER_TILE_ROWS` of the kernels.
pub const HOPPER_TILE_ROWS: i32 = 256;
/// `HOPPER_SHARED_BYTES` of the kernels.
pub const HOPPER_SHARED_BYTES: i32 = 229504;
/// `HOPPER_CLOCKS` of the kernels.
pub const HOPPER_CLOCKS: i32 = 5;
/// A [`Measure`].
pub const MEASURE_RECEIVED_MAX: Measure = 0;
/// A [`Measure`].
pub const MEASURE_RECEIVED_SUM: Measure = 1;
/// A [`Measure`].
pub const MEASURE_RECEIVED_MEAN: Measure = 2;
/// A [`Measure`].
pub const MEASURE_GIVEN_PEAK: Measure = 3;
/// A [`Measure`].
pub const MEASURE_GIVEN_ENTROPY: Measure = 4;
/// A [`Measure`].
pub const MEASURE_GIVEN_SELF: Measure = 5;
/// No importance: ln of the sum of a row's e^score, which other measures need. Only from queries and keys.
pub const MEASURE_LOG_SUM_EXP: Measure = 6;

/// Reduction of one head's attention over positions (SPEC §1).
pub type Measure = i32;

/// A [`Rule`].
pub const RULE_NONE: Rule = 0;
/// A [`Rule`].
pub const RULE_AFFINE: Rule = 1;
/// A [`Rule`].
pub const RULE_MAX: Rule = 2;
/// A [`Rule`].
pub const RULE_MIN_MAX: Rule = 3;

/// Normalisation of importance (SPEC §1).
pub type Rule = i32;

/// One value for each head and token from a probability matrix: `importance_received_*`, `importance_given_*`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ImportanceProbabilities {
    /// `[B, H, side, side]` storage; rows are queries.
    pub probabilities: *const ::core::ffi::c_void,
    /// Distance between sequences.
    pub sequence_stride: i64,
    /// Distance between heads.
    pub head_stride: i64,
    /// Distance between rows.
    pub row_stride: i64,
    /// `[B + 1]`, or null for one sequence.
    pub cu_seqlens: *const i32,
    /// `[T]`, or null: 0 marks a token that takes no part.
    pub mask: *const u8,
    /// Out: `[H, T]`.
    pub values: *mut f32,
    /// T.
    pub tokens: i32,
    /// B.
    pub sequences: i32,
    /// Rows and columns of one matrix.
    pub side: i32,
    /// Blocks that share a matrix.
    pub tiles: i32,
    /// See `Measure`.
    pub measure: i32,
    /// Whether key j is visible to query i only where j <= i.
    pub causal: i32,
}

impl Default for ImportanceProbabilities {
    fn default() -> Self {
        Self {
            probabilities: ::core::ptr::null(),
            sequence_stride: 0,
            head_stride: 0,
            row_stride: 0,
            cu_seqlens: ::core::ptr::null(),
            mask: ::core::ptr::null(),
            values: ::core::ptr::null_mut(),
            tokens: 0,
            sequences: 0,
            side: 0,
            tiles: 0,
            measure: 0,
            causal: 0,
        }
    }
}

/// One value for each head and token from queries and keys: `importance_query_key_*`, `importance_own_key_*`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ImportanceQueryKey {
    /// `[T, H, width]` storage.
    pub q: *const ::core::ffi::c_void,
    /// Distance between its tokens.
    pub q_token_stride: i64,
    /// Distance between its heads.
    pub q_head_stride: i64,
    /// `[T, H / heads_per_key, width]` storage.
    pub k: *const ::core::ffi::c_void,
    /// Distance between its tokens.
    pub k_token_stride: i64,
    /// Distance between its heads.
    pub k_head_stride: i64,
    /// `[H, T]`, natural logarithms; may be null for `given-peak`, `given-entropy` and the log-sum-exp itself.
    pub lse: *const f32,
    /// Distance between its heads.
    pub lse_stride: i64,
    /// `[B + 1]`, or null for one sequence.
    pub cu_seqlens: *const i32,
    /// `[T]`, or null: 0 marks a token that takes no part.
    pub mask: *const u8,
    /// Out: `[H, T]`.
    pub values: *mut f32,
    /// T.
    pub tokens: i32,
    /// B.
    pub sequences: i32,
    /// Elements of a query or key.
    pub width: i32,
    /// Query heads that read one key head.
    pub heads_per_key: i32,
    /// See `Measure`.
    pub measure: i32,
    /// Whether key j is visible to query i only where j <= i.
    pub causal: i32,
    /// Factor on `q·k`, times log2(e): exponents are of two.
    pub scale: f32,
    /// Whether every query and key starts at a multiple of 16 bytes.
    pub wide: i32,
}

impl Default for ImportanceQueryKey {
    fn default() -> Self {
        Self {
            q: ::core::ptr::null(),
            q_token_stride: 0,
            q_head_stride: 0,
            k: ::core::ptr::null(),
            k_token_stride: 0,
            k_head_stride: 0,
            lse: ::core::ptr::null(),
            lse_stride: 0,
            cu_seqlens: ::core::ptr::null(),
            mask: ::core::ptr::null(),
            values: ::core::ptr::null_mut(),
            tokens: 0,
            sequences: 0,
            width: 0,
            heads_per_key: 0,
            measure: 0,
            causal: 0,
            scale: 0.0,
            wide: 0,
        }
    }
}

/// `H(softmax z_t) / ln E`: `importance_router_entropy`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ImportanceRouterEntropy {
    /// `[T, C]`.
    pub logits: *const f32,
    /// Distance between rows.
    pub logits_stride: i64,
    /// Out: `[T]`.
    pub values: *mut f32,
    /// T.
    pub tokens: i32,
    /// C.
    pub candidates: i32,
    /// `1 / ln E`; 0 for one expert.
    pub scale: f32,
    /// Keeps the struct free of padding.
    pub reserved: i32,
}

impl Default for ImportanceRouterEntropy {
    fn default() -> Self {
        Self {
            logits: ::core::ptr::null(),
            logits_stride: 0,
            values: ::core::ptr::null_mut(),
            tokens: 0,
            candidates: 0,
            scale: 0.0,
            reserved: 0,
        }
    }
}

/// Reduction over heads, or a table lookup, and the rules that look at one token: `importance_reduce`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ImportanceReduce {
    /// `[H, T]`, or with `ids` a table `[vocabulary]`.
    pub values: *const f32,
    /// `[T]`, or null.
    pub ids: *const i32,
    /// `[T]`, or null.
    pub mask: *const u8,
    /// Out: `[T]`.
    pub out: *mut f32,
    /// T.
    pub tokens: i32,
    /// H; 1 with `ids`.
    pub heads: i32,
    /// Whether heads are reduced by their maximum instead of their mean.
    pub heads_max: i32,
    /// Entries of the table.
    pub vocabulary: i32,
    /// `RULE_NONE` or `RULE_AFFINE`.
    pub rule: i32,
    /// Slope of the affine rule.
    pub a: f32,
    /// Offset of the affine rule.
    pub b: f32,
    /// Factor on the result.
    pub weight: f32,
    /// Whether the result is added to `out`.
    pub accumulate: i32,
    /// Keeps the struct free of padding.
    pub reserved: i32,
}

impl Default for ImportanceReduce {
    fn default() -> Self {
        Self {
            values: ::core::ptr::null(),
            ids: ::core::ptr::null(),
            mask: ::core::ptr::null(),
            out: ::core::ptr::null_mut(),
            tokens: 0,
            heads: 0,
            heads_max: 0,
            vocabulary: 0,
            rule: 0,
            a: 0.0,
            b: 0.0,
            weight: 0.0,
            accumulate: 0,
            reserved: 0,
        }
    }
}

/// Rules that look at a whole sequence: `importance_normalize` (`RULE_MAX`, `RULE_MIN_MAX`), `importance_rank`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ImportanceNormalize {
    /// `[T]`; not `out`.
    pub values: *const f32,
    /// `[B + 1]`, or null for one sequence.
    pub cu_seqlens: *const i32,
    /// `[T]`, or null.
    pub mask: *const u8,
    /// Out: `[T]`.
    pub out: *mut f32,
    /// T.
    pub tokens: i32,
    /// B.
    pub sequences: i32,
    /// See `Rule`.
    pub rule: i32,
    /// Factor on the result.
    pub weight: f32,
    /// Whether the result is added to `out`.
    pub accumulate: i32,
    /// Keeps the struct free of padding.
    pub reserved: i32,
}

impl Default for ImportanceNormalize {
    fn default() -> Self {
        Self {
            values: ::core::ptr::null(),
            cu_seqlens: ::core::ptr::null(),
            mask: ::core::ptr::null(),
            out: ::core::ptr::null_mut(),
            tokens: 0,
            sequences: 0,
            rule: 0,
            weight: 0.0,
            accumulate: 0,
            reserved: 0,
        }
    }
}

/// Min-max against statistics carried between steps: `importance_running`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ImportanceRunning {
    /// `[T]`.
    pub values: *const f32,
    /// `[T]`, or null.
    pub mask: *const u8,
    /// In and out: see `StateIndex`.
    pub state: *mut f32,
    /// Out: `[T]`.
    pub out: *mut f32,
    /// T.
    pub tokens: i32,
    /// Share of the old statistics kept.
    pub momentum: f32,
    /// Whether the statistics move.
    pub training: i32,
    /// Keeps the struct free of padding.
    pub reserved: i32,
}

impl Default for ImportanceRunning {
    fn default() -> Self {
        Self {
            values: ::core::ptr::null(),
            mask: ::core::ptr::null(),
            state: ::core::ptr::null_mut(),
            out: ::core::ptr::null_mut(),
            tokens: 0,
            momentum: 0.0,
            training: 0,
            reserved: 0,
        }
    }
}

/// A [`Policy`].
pub const POLICY_FIXED: Policy = 0;
/// A [`Policy`].
pub const POLICY_PROPORTIONAL: Policy = 1;
/// A [`Policy`].
pub const POLICY_THRESHOLDS: Policy = 2;
/// A [`Policy`].
pub const POLICY_BUDGET: Policy = 3;
/// A [`Policy`].
pub const POLICY_BUDGET_RUNNING: Policy = 4;
/// A [`Policy`].
pub const POLICY_TOP_P: Policy = 5;
/// A [`Policy`].
pub const POLICY_SCORE_THRESHOLD: Policy = 6;
/// A [`Policy`].
pub const POLICY_GIVEN: Policy = 7;

/// How k_t is decided (SPEC §2).
pub type Policy = i32;

/// A [`Scoring`].
pub const SCORING_SOFTMAX: Scoring = 0;
/// A [`Scoring`].
pub const SCORING_SIGMOID: Scoring = 1;
/// A [`Scoring`].
pub const SCORING_RELU: Scoring = 2;

/// Function from logits to scores (SPEC §3).
pub type Scoring = i32;

/// A [`Divisor`].
pub const DIVISOR_NONE: Divisor = 0;
/// A [`Divisor`].
pub const DIVISOR_SELECTED: Divisor = 1;
/// A [`Divisor`].
pub const DIVISOR_CANDIDATES: Divisor = 2;

/// What the selected scores are divided by (SPEC §3).
pub type Divisor = i32;

/// A [`StateIndex`].
pub const STATE_MINIMUM: StateIndex = 0;
/// A [`StateIndex`].
pub const STATE_MAXIMUM: StateIndex = 1;
/// A [`StateIndex`].
pub const STATE_PRICE: StateIndex = 2;
/// A [`StateIndex`].
pub const STATE_STEPS: StateIndex = 3;

/// Of the values in the state carried between steps.
pub type StateIndex = i32;

/// The exact `budget` (SPEC §2): `budget_digit`, `budget_ties`, `budget_assign`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// `[T]`.
    pub importance: *const f32,
    /// `[T]`, or null.
    pub mask: *const u8,
    /// Out: `[T]`.
    pub k: *mut i32,
    /// Workspace: `BUDGET_BINS` counts, zero between launches.
    pub histogram: *mut u32,
    /// Workspace: `[blocks, k_max - k_min]` counts of keys that equal the price.
    pub ties: *mut i32,
    /// Workspace: `[blocks]` ties at the level where they run out, in the blocks before.
    pub ties_before: *mut i32,
    /// Workspace: see `ArrivalIndex`; zero between launches.
    pub arrivals: *mut u32,
    /// Workspace: see `FoundIndex`.
    pub found: *mut u32,
    /// Mean experts per unmasked token.
    pub mean_k: f64,
    /// T.
    pub tokens: i32,
    /// k_min.
    pub k_min: i32,
    /// k_max - k_min.
    pub levels: i32,
    /// 0, 1 or 2: which digits of the price `budget_digit` finds.
    pub pass: i32,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            importance: ::core::ptr::null(),
            mask: ::core::ptr::null(),
            k: ::core::ptr::null_mut(),
            histogram: ::core::ptr::null_mut(),
            ties: ::core::ptr::null_mut(),
            ties_before: ::core::ptr::null_mut(),
            arrivals: ::core::ptr::null_mut(),
            found: ::core::ptr::null_mut(),
            mean_k: 0.0,
            tokens: 0,
            k_min: 0,
            levels: 0,
            pass: 0,
        }
    }
}

/// Counts arriving blocks; returns to 0 by itself.
pub const ARRIVAL_TICKET: ArrivalIndex = 0;
/// Unmasked tokens.
pub const ARRIVAL_UNMASKED: ArrivalIndex = 1;
/// Length of the array.
pub const ARRIVAL_LENGTH: ArrivalIndex = 2;

/// What blocks of the search for the price count while they arrive; all zero between launches.
pub type ArrivalIndex = i32;

/// Leading bits of the price.
pub const FOUND_PRICE: FoundIndex = 0;
/// Winners still to be found among the keys that begin with these bits; 0: nothing to give away.
pub const FOUND_LEFT: FoundIndex = 1;
/// The level at which equal keys run out.
pub const FOUND_LEVEL: FoundIndex = 2;
/// Equal keys that still win at that level.
pub const FOUND_LEFT_AT_LEVEL: FoundIndex = 3;
/// Length of the array.
pub const FOUND_LENGTH: FoundIndex = 4;

/// What a launch of the search for the price has found out for the next one. Each word is written before it is read.
pub type FoundIndex = i32;

/// Scores, k_t, selection, weights and losses (SPEC §2, §3): `gate_*`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Gate {
    /// `[T, C]`.
    pub logits: *const f32,
    /// Distance between rows.
    pub logits_stride: i64,
    /// `[T]`.
    pub importance: *const f32,
    /// `[C]`, or null.
    pub bias: *const f32,
    /// `[T]`, or null.
    pub mask: *const u8,
    /// `[T]` for the policy `given`, or null.
    pub k_given: *const i32,
    /// In and out: see `StateIndex`.
    pub state: *mut f32,
    /// Out, or in for the policy `budget`: `[T]`.
    pub k: *mut i32,
    /// Out: `[T, K]`.
    pub experts: *mut i32,
    /// Out: `[T, K]`.
    pub weights: *mut f32,
    /// Out: `[T, K]`.
    pub ranked: *mut i32,
    /// Out: `[C]`.
    pub load: *mut i32,
    /// Out: `[1]`.
    pub unmasked: *mut i32,
    /// Out: `[2]`.
    pub losses: *mut f32,
    /// Workspace: `[blocks, C]`.
    pub block_load: *mut i32,
    /// Workspace: `[blocks, C]`.
    pub block_shares: *mut f32,
    /// Workspace: `[blocks]`.
    pub block_z: *mut f32,
    /// Workspace: `[blocks]`.
    pub block_unmasked: *mut i32,
    /// Workspace: counts arriving blocks; 0 before the first launch, and returns to 0 by itself.
    pub ticket: *mut u32,
    /// Of `top-p`.
    pub p: f64,
    /// Of `budget-running`.
    pub mean_k: f64,
    /// Of `budget-running`.
    pub momentum: f64,
    /// T.
    pub tokens: i32,
    /// E.
    pub routed: i32,
    /// C.
    pub candidates: i32,
    /// k_min.
    pub k_min: i32,
    /// K.
    pub k_max: i32,
    /// See `Policy`.
    pub policy: i32,
    /// See `Scoring`.
    pub scoring: i32,
    /// See `Divisor`.
    pub divisor: i32,
    /// Factor on every weight.
    pub routed_scaling: f32,
    /// Groups that the candidates are divided into.
    pub groups: i32,
    /// Groups that may be chosen from.
    pub chosen_groups: i32,
    /// Consecutive tokens that one warp takes.
    pub tokens_per_warp: i32,
    /// `k` of `fixed`.
    pub fixed: i32,
    /// Of `proportional`.
    pub scale: f32,
    /// Price of `budget-running` before it was ever set.
    pub first_price: f32,
    /// Whether the price moves.
    pub training: i32,
    /// Used entries of `thresholds`.
    pub threshold_count: i32,
    /// Keeps the struct free of padding.
    pub reserved: i32,
    /// Of `thresholds`, ascending; of `score-threshold`, one for each candidate.
    pub thresholds: [f32; 512usize],
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            logits: ::core::ptr::null(),
            logits_stride: 0,
            importance: ::core::ptr::null(),
            bias: ::core::ptr::null(),
            mask: ::core::ptr::null(),
            k_given: ::core::ptr::null(),
            state: ::core::ptr::null_mut(),
            k: ::core::ptr::null_mut(),
            experts: ::core::ptr::null_mut(),
            weights: ::core::ptr::null_mut(),
            ranked: ::core::ptr::null_mut(),
            load: ::core::ptr::null_mut(),
            unmasked: ::core::ptr::null_mut(),
            losses: ::core::ptr::null_mut(),
            block_load: ::core::ptr::null_mut(),
            block_shares: ::core::ptr::null_mut(),
            block_z: ::core::ptr::null_mut(),
            block_unmasked: ::core::ptr::null_mut(),
            ticket: ::core::ptr::null_mut(),
            p: 0.0,
            mean_k: 0.0,
            momentum: 0.0,
            tokens: 0,
            routed: 0,
            candidates: 0,
            k_min: 0,
            k_max: 0,
            policy: 0,
            scoring: 0,
            divisor: 0,
            routed_scaling: 0.0,
            groups: 0,
            chosen_groups: 0,
            tokens_per_warp: 0,
            fixed: 0,
            scale: 0.0,
            first_price: 0.0,
            training: 0,
            threshold_count: 0,
            reserved: 0,
            thresholds: [0.0; 512usize],
        }
    }
}

/// A finished routing from the caller, put into slot order (SPEC §2 `given`): `routing_*`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GivenRouting {
    /// `[T, columns]`, or `[entries]` with `offsets`.
    pub given_experts: *const i32,
    /// As `given_experts`.
    pub given_weights: *const f32,
    /// `[T + 1]` of the compressed layout, or null.
    pub offsets: *const i32,
    /// Distance between rows of `given_experts`.
    pub experts_stride: i64,
    /// Distance between rows of `given_weights`.
    pub weights_stride: i64,
    /// `[T]`, or null.
    pub mask: *const u8,
    /// Out: `[T]`.
    pub k: *mut i32,
    /// Out: `[T, K]`.
    pub experts: *mut i32,
    /// Out: `[T, K]`.
    pub weights: *mut f32,
    /// Out: `[T, K]`: place of each slot among the caller's entries of the token.
    pub ranked: *mut i32,
    /// Out: `[C]`.
    pub load: *mut i32,
    /// Out: `[1]`.
    pub unmasked: *mut i32,
    /// Out: `[2]`: zeros.
    pub losses: *mut f32,
    /// Workspace: `[blocks, C]`.
    pub block_load: *mut i32,
    /// Workspace: `[blocks]`.
    pub block_unmasked: *mut i32,
    /// Workspace: counts arriving blocks; 0 before the first launch, and returns to 0 by itself.
    pub ticket: *mut u32,
    /// T.
    pub tokens: i32,
    /// Entries of a token in the padded layout.
    pub columns: i32,
    /// Entries in all of the compressed layout.
    pub entries: i32,
    /// C.
    pub candidates: i32,
    /// K.
    pub k_max: i32,
    /// Consecutive tokens that one warp takes.
    pub tokens_per_warp: i32,
}

impl Default for GivenRouting {
    fn default() -> Self {
        Self {
            given_experts: ::core::ptr::null(),
            given_weights: ::core::ptr::null(),
            offsets: ::core::ptr::null(),
            experts_stride: 0,
            weights_stride: 0,
            mask: ::core::ptr::null(),
            k: ::core::ptr::null_mut(),
            experts: ::core::ptr::null_mut(),
            weights: ::core::ptr::null_mut(),
            ranked: ::core::ptr::null_mut(),
            load: ::core::ptr::null_mut(),
            unmasked: ::core::ptr::null_mut(),
            losses: ::core::ptr::null_mut(),
            block_load: ::core::ptr::null_mut(),
            block_unmasked: ::core::ptr::null_mut(),
            ticket: ::core::ptr::null_mut(),
            tokens: 0,
            columns: 0,
            entries: 0,
            candidates: 0,
            k_max: 0,
            tokens_per_warp: 0,
        }
    }
}

/// Selection bias against the load (SPEC §3): `gate_bias`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GateBias {
    /// `[C]`.
    pub load: *const i32,
    /// In and out: `[C]`.
    pub bias: *mut f32,
    /// C.
    pub candidates: i32,
    /// Whether the step is proportional to what an expert lacks, instead of its sign.
    pub proportional: i32,
    /// Size of the step.
    pub rate: f32,
    /// Keeps the struct free of padding.
    pub reserved: i32,
}

impl Default for GateBias {
    fn default() -> Self {
        Self {
            load: ::core::ptr::null(),
            bias: ::core::ptr::null_mut(),
            candidates: 0,
            proportional: 0,
            rate: 0.0,
            reserved: 0,
        }
    }
}

/// Weights, scores and losses, upward, to the logits (SPEC §6): `gate_backward_*`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GateBackward {
    /// `[T, C]`.
    pub logits: *const f32,
    /// Distance between rows.
    pub logits_stride: i64,
    /// `[T]`, or null.
    pub mask: *const u8,
    /// `[T, K]`.
    pub experts: *const i32,
    /// Distance between rows.
    pub experts_stride: i64,
    /// `[T, K]`; read for `DIVISOR_CANDIDATES` only.
    pub ranked: *const i32,
    /// Distance between rows.
    pub ranked_stride: i64,
    /// `[T, K]`.
    pub d_weights: *const f32,
    /// Distance between rows.
    pub d_weights_stride: i64,
    /// `[C]`.
    pub load: *const i32,
    /// `[1]`.
    pub unmasked: *const i32,
    /// Out: `[T, C]`.
    pub d_logits: *mut f32,
    /// Coefficient of the balance loss, times E.
    pub balance: f64,
    /// T.
    pub tokens: i32,
    /// C.
    pub candidates: i32,
    /// K.
    pub slots: i32,
    /// See `Scoring`.
    pub scoring: i32,
    /// See `Divisor`.
    pub divisor: i32,
    /// Factor on every weight.
    pub routed_scaling: f32,
    /// Coefficient of the z-loss.
    pub z: f32,
    /// Consecutive tokens that one warp takes.
    pub tokens_per_warp: i32,
}

impl Default for GateBackward {
    fn default() -> Self {
        Self {
            logits: ::core::ptr::null(),
            logits_stride: 0,
            mask: ::core::ptr::null(),
            experts: ::core::ptr::null(),
            experts_stride: 0,
            ranked: ::core::ptr::null(),
            ranked_stride: 0,
            d_weights: ::core::ptr::null(),
            d_weights_stride: 0,
            load: ::core::ptr::null(),
            unmasked: ::core::ptr::null(),
            d_logits: ::core::ptr::null_mut(),
            balance: 0.0,
            tokens: 0,
            candidates: 0,
            slots: 0,
            scoring: 0,
            divisor: 0,
            routed_scaling: 0.0,
            z: 0.0,
            tokens_per_warp: 0,
        }
    }
}

/// The parts of `dx` added and rounded once (SPEC §6): `gate_dx_*`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GateDx {
    /// `[T, D]` f32: everything but the router's part.
    pub dx_rows: *const f32,
    /// Distance between its rows.
    pub dx_rows_stride: i64,
    /// `[T, D]` f32: the router's part, or null.
    pub of_router: *const f32,
    /// Distance between its rows.
    pub of_router_stride: i64,
    /// Out: `[T, D]` storage.
    pub dx: *mut ::core::ffi::c_void,
    /// T.
    pub tokens: i32,
    /// D.
    pub width: i32,
}

impl Default for GateDx {
    fn default() -> Self {
        Self {
            dx_rows: ::core::ptr::null(),
            dx_rows_stride: 0,
            of_router: ::core::ptr::null(),
            of_router_stride: 0,
            dx: ::core::ptr::null_mut(),
            tokens: 0,
            width: 0,
        }
    }
}

/// Gradients of weights put back into the caller's layout (SPEC §6): `routing_backward`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RoutingBackward {
    /// `[T, K]`: place of each slot among the caller's entries of the token; negative where absent.
    pub ranked: *const i32,
    /// Distance between rows.
    pub ranked_stride: i64,
    /// `[T, K]`.
    pub d_weights: *const f32,
    /// Distance between rows.
    pub d_weights_stride: i64,
    /// `[T + 1]` of the compressed layout, or null.
    pub offsets: *const i32,
    /// Out: `[T, columns]`, or `[entries]` with `offsets`.
    pub d_routing: *mut f32,
    /// T.
    pub tokens: i32,
    /// K.
    pub slots: i32,
    /// Entries of a token in the padded layout.
    pub columns: i32,
    /// Entries in all of the compressed layout.
    pub entries: i32,
}

impl Default for RoutingBackward {
    fn default() -> Self {
        Self {
            ranked: ::core::ptr::null(),
            ranked_stride: 0,
            d_weights: ::core::ptr::null(),
            d_weights_stride: 0,
            offsets: ::core::ptr::null(),
            d_routing: ::core::ptr::null_mut(),
            tokens: 0,
            slots: 0,
            columns: 0,
            entries: 0,
        }
    }
}

/// The dispatch plan (SPEC §3 capacity, §4): `permute_count`, `permute_scatter`, `permute_drop`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Permute {
    /// `[T, K]`.
    pub experts: *const i32,
    /// `[T, K]`.
    pub weights: *const f32,
    /// Distance between rows of `experts`.
    pub experts_stride: i64,
    /// Distance between rows of `weights`.
    pub weights_stride: i64,
    /// Out: `[C]`.
    pub counts: *mut i32,
    /// Out: `[E + 1]`.
    pub offsets: *mut i32,
    /// Out: `[T * K]`, the first R.
    pub row_token: *mut i32,
    /// Out: `[T * K]`, the first R.
    pub row_weight: *mut f32,
    /// Out: `[T, K]`.
    pub token_row: *mut i32,
    /// Out: `[1]`.
    pub dropped: *mut i32,
    /// Workspace: `[blocks, C]`; first counts, then the rows of each candidate in the blocks before.
    pub block_counts: *mut i32,
    /// Workspace, with a capacity: `[E + 1]` offsets before any drop.
    pub sorted_offsets: *mut i32,
    /// Workspace, with a capacity: `[T * K]` entry of each row before any drop.
    pub sorted_entry: *mut i32,
    /// Workspace, with a capacity: `[T * K]` its weight.
    pub sorted_weight: *mut f32,
    /// Workspace: counts arriving blocks; 0 before the first launch, and returns to 0 by itself.
    pub ticket: *mut u32,
    /// Rows that an expert keeps are `ceil(capacity_factor * R / E)`; negative: all.
    pub capacity_factor: f64,
    /// T.
    pub tokens: i32,
    /// K.
    pub slots: i32,
    /// E.
    pub routed: i32,
    /// C.
    pub candidates: i32,
    /// Whether an overfull expert keeps its largest weights instead of its earliest tokens.
    pub by_weight: i32,
    /// Keeps the struct free of padding.
    pub reserved: i32,
}

impl Default for Permute {
    fn default() -> Self {
        Self {
            experts: ::core::ptr::null(),
            weights: ::core::ptr::null(),
            experts_stride: 0,
            weights_stride: 0,
            counts: ::core::ptr::null_mut(),
            offsets: ::core::ptr::null_mut(),
            row_token: ::core::ptr::null_mut(),
            row_weight: ::core::ptr::null_mut(),
            token_row: ::core::ptr::null_mut(),
            dropped: ::core::ptr::null_mut(),
            block_counts: ::core::ptr::null_mut(),
            sorted_offsets: ::core::ptr::null_mut(),
            sorted_entry: ::core::ptr::null_mut(),
            sorted_weight: ::core::ptr::null_mut(),
            ticket: ::core::ptr::null_mut(),
            capacity_factor: 0.0,
            tokens: 0,
            slots: 0,
            routed: 0,
            candidates: 0,
            by_weight: 0,
            reserved: 0,
        }
    }
}

/// The rows of the shared expert where tokens are masked (SPEC §4): `permute_unmasked`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PermuteUnmasked {
    /// `[T]`.
    pub mask: *const u8,
    /// Out: `[2]`: 0 and the number of rows.
    pub offsets: *mut i32,
    /// Out: `[T]`, the first `offsets[1]`.
    pub row_token: *mut i32,
    /// Out: `[T]`.
    pub token_row: *mut i32,
    /// T.
    pub tokens: i32,
    /// Keeps the struct free of padding.
    pub reserved: i32,
}

impl Default for PermuteUnmasked {
    fn default() -> Self {
        Self {
            mask: ::core::ptr::null(),
            offsets: ::core::ptr::null_mut(),
            row_token: ::core::ptr::null_mut(),
            token_row: ::core::ptr::null_mut(),
            tokens: 0,
            reserved: 0,
        }
    }
}

/// The rows' gradients summed back to their tokens (SPEC §6): `permute_backward_*`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PermuteBackward {
    /// `[T, K]`.
    pub experts: *const i32,
    /// `[T, K]`.
    pub weights: *const f32,
    /// `[T, K]`.
    pub token_row: *const i32,
    /// Distance between rows of `experts`.
    pub experts_stride: i64,
    /// Distance between rows of `weights`.
    pub weights_stride: i64,
    /// Distance between rows of `token_row`.
    pub token_row_stride: i64,
    /// `[rows, D]` of the row type.
    pub dx_rows: *const ::core::ffi::c_void,
    /// Distance between its rows.
    pub dx_rows_stride: i64,
    /// `[rows]`.
    pub d_row_weight: *const f32,
    /// `[T, D]` of the row type, or null.
    pub shared_dx: *const ::core::ffi::c_void,
    /// Distance between its rows.
    pub shared_stride: i64,
    /// `[T]`: row of `shared_dx` of each token, negative of none; null where row t is token t.
    pub shared_row: *const i32,
    /// `[T, D]` storage.
    pub dy: *const ::core::ffi::c_void,
    /// Distance between its rows.
    pub dy_stride: i64,
    /// In and out: `[T, K]`; only slots that have a row are written.
    pub d_weights: *mut f32,
    /// Out: `[T, D]` f32.
    pub dx: *mut f32,
    /// T.
    pub tokens: i32,
    /// D.
    pub width: i32,
    /// K.
    pub slots: i32,
    /// E.
    pub routed: i32,
    /// See `NullKind`.
    pub null_kind: i32,
    /// Rows of `dx_rows`.
    pub row_count: i32,
}

impl Default for PermuteBackward {
    fn default() -> Self {
        Self {
            experts: ::core::ptr::null(),
            weights: ::core::ptr::null(),
            token_row: ::core::ptr::null(),
            experts_stride: 0,
            weights_stride: 0,
            token_row_stride: 0,
            dx_rows: ::core::ptr::null(),
            dx_rows_stride: 0,
            d_row_weight: ::core::ptr::null(),
            shared_dx: ::core::ptr::null(),
            shared_stride: 0,
            shared_row: ::core::ptr::null(),
            dy: ::core::ptr::null(),
            dy_stride: 0,
            d_weights: ::core::ptr::null_mut(),
            dx: ::core::ptr::null_mut(),
            tokens: 0,
            width: 0,
            slots: 0,
            routed: 0,
            null_kind: 0,
            row_count: 0,
        }
    }
}

/// A [`Activation`].
pub const ACTIVATION_NONE: Activation = 0;
/// A [`Activation`].
pub const ACTIVATION_RELU: Activation = 1;
/// A [`Activation`].
pub const ACTIVATION_GELU: Activation = 2;
/// A [`Activation`].
pub const ACTIVATION_GELU_TANH: Activation = 3;
/// A [`Activation`].
pub const ACTIVATION_SILU: Activation = 4;
/// A [`Activation`].
pub const ACTIVATION_SWIGLU: Activation = 5;
/// A [`Activation`].
pub const ACTIVATION_GEGLU: Activation = 6;
/// A [`Activation`].
pub const ACTIVATION_REGLU: Activation = 7;

/// The function between an expert's two matrices (SPEC §5).
pub type Activation = i32;

/// A product of rows with their experts' weights (SPEC §5): `grouped_gemm_*`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GroupedGemm {
    /// `[a_rows, depth]` storage; 16-bit where the kernel's name ends in that type's rows.
    pub a: *const ::core::ffi::c_void,
    /// `[E, columns or 2 * columns, depth]` storage; gate rows first when gated.
    pub b: *const ::core::ffi::c_void,
    /// `[E, columns or 2 * columns]` storage, or null.
    pub bias: *const ::core::ffi::c_void,
    /// `[E + 1]`, or null: one expert has all rows.
    pub offsets: *const i32,
    /// `[rows]` row of `a` for each row, or null: the same.
    pub row_token: *const i32,
    /// Out: `[rows, columns]` after the activation.
    pub out: *mut ::core::ffi::c_void,
    /// Out: `[rows, columns or 2 * columns]` before it, or null.
    pub hidden: *mut ::core::ffi::c_void,
    /// Distance between rows of `a`.
    pub a_stride: i64,
    /// Distance between experts of `b`.
    pub b_expert_stride: i64,
    /// Distance between rows of `b`.
    pub b_stride: i64,
    /// Distance between experts of `bias`.
    pub bias_stride: i64,
    /// Distance between rows of `out`.
    pub out_stride: i64,
    /// Distance between rows of `hidden`.
    pub hidden_stride: i64,
    /// Rows that `out` has room for; without `offsets`, the rows there are.
    pub rows: i32,
    /// Rows of `a`.
    pub a_rows: i32,
    /// E.
    pub experts: i32,
    /// Length of a row of `a` and of `b`.
    pub depth: i32,
    /// Columns of `out`.
    pub columns: i32,
    /// See `Activation`.
    pub activation: i32,
    /// Whether `out` is f32 instead of the storage type.
    pub out_f32: i32,
    /// Whether `hidden` is f32 instead of the storage type.
    pub hidden_f32: i32,
}

impl Default for GroupedGemm {
    fn default() -> Self {
        Self {
            a: ::core::ptr::null(),
            b: ::core::ptr::null(),
            bias: ::core::ptr::null(),
            offsets: ::core::ptr::null(),
            row_token: ::core::ptr::null(),
            out: ::core::ptr::null_mut(),
            hidden: ::core::ptr::null_mut(),
            a_stride: 0,
            b_expert_stride: 0,
            b_stride: 0,
            bias_stride: 0,
            out_stride: 0,
            hidden_stride: 0,
            rows: 0,
            a_rows: 0,
            experts: 0,
            depth: 0,
            columns: 0,
            activation: 0,
            out_f32: 0,
            hidden_f32: 0,
        }
    }
}

/// What the tensor memory accelerator is told of a tensor: a `CUtensorMap`, encoded by the driver.
#[repr(C)]
#[repr(align(64))]
#[derive(Clone, Copy, Debug)]
pub struct TensorMap {
    /// Nobody's but the driver's.
    pub words: [u64; 16usize],
}

impl Default for TensorMap {
    fn default() -> Self {
        Self { words: [0; 16usize] }
    }
}

/** As `GroupedGemm` on Hopper: `grouped_gemm_*_hopper`. Maps come first, each at a multiple of its 128 bytes. Boxes are 128 bytes
wide, with the 128-byte swizzle.*/
#[repr(C)]
#[repr(align(64))]
#[derive(Clone, Copy, Debug)]
pub struct HopperGemm {
    /** `b` as `[E, halves, columns, depth]`, two halves when gated; boxes of 128 rows. Where the kernel's name has `nn`, as
    `[E, 1, depth, columns]`; boxes of 64 rows.*/
    pub b: TensorMap,
    /// `a` as `[rows, depth]`, where rows are not gathered; boxes of 64 rows.
    pub a: TensorMap,
    /// `out` as `[rows, 1, columns]`; boxes of 64 rows.
    pub out: TensorMap,
    /// `hidden` as `[rows, halves, columns]`, if there is one; boxes of 64 rows.
    pub hidden: TensorMap,
    /// The same product. `a`, `b`, `out`, `hidden` and the distances between their rows are multiples of 16 bytes.
    pub product: GroupedGemm,
    /** Out: `[blocks, HOPPER_CLOCKS]` clocks, where the kernel's name ends in `_clocked`: of the warpgroup that brings, all and those of
    waiting for a free stage; of one that multiplies, all, those of waiting for a full one, and those of leaving.*/
    pub clocks: *mut i64,
    /// Keeps the struct free of padding.
    pub reserved: [u64; 6usize],
}

impl Default for HopperGemm {
    fn default() -> Self {
        Self {
            b: <TensorMap>::default(),
            a: <TensorMap>::default(),
            out: <TensorMap>::default(),
            hidden: <TensorMap>::default(),
            product: <GroupedGemm>::default(),
            clocks: ::core::ptr::null_mut(),
            reserved: [0; 6usize],
        }
    }
}

/// Gradient through the experts' second product and their activation (SPEC §6): `grouped_gemm_*_dh*`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HiddenGradient {
    /** `a` is `dy`, `b` is `W_out[E, depth, columns]`, `hidden` is read, `out` is `dh[rows, columns or 2 * columns]`
    storage, f32 beside f16; no bias.*/
    pub product: GroupedGemm,
    /// `[rows]`, or null: 1.
    pub row_weight: *const f32,
    /// Out: `[rows, columns]` as `dh`, the activated values times the row's weight.
    pub activated: *mut ::core::ffi::c_void,
    /// Out: `[rows, column tiles]` what each tile adds to the gradient of the row's weight.
    pub parts: *mut f32,
    /// Distance between rows of `activated`.
    pub activated_stride: i64,
}

impl Default for HiddenGradient {
    fn default() -> Self {
        Self {
            product: <GroupedGemm>::default(),
            row_weight: ::core::ptr::null(),
            activated: ::core::ptr::null_mut(),
            parts: ::core::ptr::null_mut(),
            activated_stride: 0,
        }
    }
}

/// As `HiddenGradient` on Hopper: `grouped_gemm_bf16_dh_*_hopper`. Maps as in `HopperGemm`.
#[repr(C)]
#[repr(align(64))]
#[derive(Clone, Copy, Debug)]
pub struct HopperHiddenGradient {
    /// `b` as `[E, 1, depth, columns]`; boxes of 64 rows.
    pub b: TensorMap,
    /// `hidden`, which is of the storage type, as `[rows, halves, columns]`; boxes of 64 rows.
    pub hidden: TensorMap,
    /// `out` alike.
    pub out: TensorMap,
    /// `activated` as `[rows, 1, columns]`; boxes of 64 rows.
    pub activated: TensorMap,
    /// The same gradient. Its matrices and the distances between their rows are multiples of 16 bytes.
    pub gradient: HiddenGradient,
    /// As in `HopperGemm`.
    pub clocks: *mut i64,
    /// Keeps the struct free of padding.
    pub reserved: [u64; 2usize],
}

impl Default for HopperHiddenGradient {
    fn default() -> Self {
        Self {
            b: <TensorMap>::default(),
            hidden: <TensorMap>::default(),
            out: <TensorMap>::default(),
            activated: <TensorMap>::default(),
            gradient: <HiddenGradient>::default(),
            clocks: ::core::ptr::null_mut(),
            reserved: [0; 2usize],
        }
    }
}

/// Gradient of every row's weight (SPEC §6), added up: `row_weight_gradient_*`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RowWeightGradient {
    /// `[rows, part_count]`.
    pub parts: *const f32,
    /// `[tokens, width]` storage: `dy`.
    pub dy: *const ::core::ffi::c_void,
    /// `[E, width]` storage: `b_out`, or null.
    pub bias: *const ::core::ffi::c_void,
    /// `[E + 1]`, or null: one expert has all rows.
    pub offsets: *const i32,
    /// `[rows]`, or null: the same.
    pub row_token: *const i32,
    /// Out: `[rows]`.
    pub out: *mut f32,
    /// Distance between rows of `dy`.
    pub dy_stride: i64,
    /// Distance between rows of `bias`.
    pub bias_stride: i64,
    /// Rows that `out` has room for; without `offsets`, the rows there are.
    pub rows: i32,
    /// Rows of `dy`.
    pub tokens: i32,
    /// E.
    pub experts: i32,
    /// D.
    pub width: i32,
    /// Parts of a row.
    pub part_count: i32,
    /// Keeps the struct free of padding.
    pub reserved: i32,
}

impl Default for RowWeightGradient {
    fn default() -> Self {
        Self {
            parts: ::core::ptr::null(),
            dy: ::core::ptr::null(),
            bias: ::core::ptr::null(),
            offsets: ::core::ptr::null(),
            row_token: ::core::ptr::null(),
            out: ::core::ptr::null_mut(),
            dy_stride: 0,
            bias_stride: 0,
            rows: 0,
            tokens: 0,
            experts: 0,
            width: 0,
            part_count: 0,
            reserved: 0,
        }
    }
}

/// Rows of a plan, gathered: one factor of a weight's gradient.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RoutedOperand {
    /// `[sources, columns]`.
    pub rows: *const ::core::ffi::c_void,
    /// `[rows]` row of `rows` for each row of the plan, or null: the same.
    pub row_token: *const i32,
    /// `[sources]`, or null: rows whose byte is 0 take no part, whatever they hold. Only products in f32 look at it.
    pub mask: *const u8,
    /// Distance between rows.
    pub stride: i64,
    /// Rows of `rows`.
    pub sources: i32,
    /// Length of a row.
    pub columns: i32,
}

impl Default for RoutedOperand {
    fn default() -> Self {
        Self {
            rows: ::core::ptr::null(),
            row_token: ::core::ptr::null(),
            mask: ::core::ptr::null(),
            stride: 0,
            sources: 0,
            columns: 0,
        }
    }
}

/// Sums over every expert's rows (SPEC §6), `out[e] = beta * out[e] + sum of left (x) right`: `grouped_gemm_*_tn*`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct WeightGradient {
    /// Its columns are the rows of `out`.
    pub left: RoutedOperand,
    /// Its columns are those of `out`.
    pub right: RoutedOperand,
    /// `[E + 1]`, or null: expert e has `share` rows from `e * share` on, as far as there are.
    pub offsets: *const i32,
    /// Out: `[E, left columns, right columns]`; in too unless `beta` is 0.
    pub out: *mut ::core::ffi::c_void,
    /// Distance between experts of `out`.
    pub out_expert_stride: i64,
    /// Distance between rows of `out`.
    pub out_stride: i64,
    /// Rows of the plan that there is room for; without `offsets`, the rows there are.
    pub rows: i32,
    /// E.
    pub experts: i32,
    /// Whether `out` is f32 instead of the storage type.
    pub out_f32: i32,
    /// Factor on what `out` holds: 0 or 1.
    pub beta: f32,
    /// Rows of an expert where there are no `offsets`.
    pub share: i32,
    /// Keeps the struct free of padding.
    pub reserved: i32,
}

impl Default for WeightGradient {
    fn default() -> Self {
        Self {
            left: <RoutedOperand>::default(),
            right: <RoutedOperand>::default(),
            offsets: ::core::ptr::null(),
            out: ::core::ptr::null_mut(),
            out_expert_stride: 0,
            out_stride: 0,
            rows: 0,
            experts: 0,
            out_f32: 0,
            beta: 0.0,
            share: 0,
            reserved: 0,
        }
    }
}

/// As `WeightGradient` on Hopper: `grouped_gemm_bf16_tn_*hopper`. Maps as in `HopperGemm`.
#[repr(C)]
#[repr(align(64))]
#[derive(Clone, Copy, Debug)]
pub struct HopperWeightGradient {
    /** The factor whose rows lie as the plan has them, which is `right`, or `left` where the kernel's name has `turned`, as
    `[1, 1, rows, columns]`; boxes of 64 rows.*/
    pub packed: TensorMap,
    /// `out` as `[E, left columns, right columns]`; boxes of 64 rows.
    pub out: TensorMap,
    /// The same gradient. Its matrices and the distances between their rows are multiples of 16 bytes.
    pub gradient: WeightGradient,
    /// As in `HopperGemm`.
    pub clocks: *mut i64,
    /// Keeps the struct free of padding.
    pub reserved: [u64; 6usize],
}

impl Default for HopperWeightGradient {
    fn default() -> Self {
        Self {
            packed: <TensorMap>::default(),
            out: <TensorMap>::default(),
            gradient: <WeightGradient>::default(),
            clocks: ::core::ptr::null_mut(),
            reserved: [0; 6usize],
        }
    }
}

/// A weight's gradient whose rows were divided, added up, `out = beta * out + sum of parts`: `weight_gradient_sum_*`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct WeightGradientSum {
    /// `[part_count, elements]`.
    pub parts: *const f32,
    /// Out: `[elements]`; in too unless `beta` is 0.
    pub out: *mut ::core::ffi::c_void,
    /// Elements of the gradient.
    pub elements: i64,
    /// Parts.
    pub part_count: i32,
    /// Whether `out` is f32 instead of the storage type.
    pub out_f32: i32,
    /// Factor on what `out` holds: 0 or 1.
    pub beta: f32,
    /// Keeps the struct free of padding.
    pub reserved: i32,
}

impl Default for WeightGradientSum {
    fn default() -> Self {
        Self {
            parts: ::core::ptr::null(),
            out: ::core::ptr::null_mut(),
            elements: 0,
            part_count: 0,
            out_f32: 0,
            beta: 0.0,
            reserved: 0,
        }
    }
}

/// As `WeightGradient` for a bias, `out[e] = beta * out[e] + sum of weight * row`: `bias_gradient_*`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BiasGradient {
    /// The rows.
    pub from: RoutedOperand,
    /// `[rows]` factor of each row, or null: 1.
    pub row_weight: *const f32,
    /// `[E + 1]`, or null: one expert has all rows.
    pub offsets: *const i32,
    /// Out: `[E, columns]`; in too unless `beta` is 0.
    pub out: *mut ::core::ffi::c_void,
    /// Distance between experts of `out`.
    pub out_stride: i64,
    /// Rows of the plan that there is room for; without `offsets`, the rows there are.
    pub rows: i32,
    /// E.
    pub experts: i32,
    /// Whether `out` is f32 instead of the storage type.
    pub out_f32: i32,
    /// Factor on what `out` holds: 0 or 1.
    pub beta: f32,
}

impl Default for BiasGradient {
    fn default() -> Self {
        Self {
            from: <RoutedOperand>::default(),
            row_weight: ::core::ptr::null(),
            offsets: ::core::ptr::null(),
            out: ::core::ptr::null_mut(),
            out_stride: 0,
            rows: 0,
            experts: 0,
            out_f32: 0,
            beta: 0.0,
        }
    }
}

/// A [`NullKind`].
pub const NULL_ZERO: NullKind = 0;
/// A [`NullKind`].
pub const NULL_COPY: NullKind = 1;
/// A [`NullKind`].
pub const NULL_CONSTANT: NullKind = 2;

/// What a zero-computation expert returns (SPEC §2).
pub type NullKind = i32;

/// `y_t`, the sum over a token's slots (SPEC §5): `combine_*`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Combine {
    /// `[T, K]`.
    pub experts: *const i32,
    /// `[T, K]`.
    pub weights: *const f32,
    /// `[T, K]`.
    pub token_row: *const i32,
    /// Distance between rows of `experts`.
    pub experts_stride: i64,
    /// Distance between rows of `weights`.
    pub weights_stride: i64,
    /// Distance between rows of `token_row`.
    pub token_row_stride: i64,
    /// `[rows, D]` of the row type.
    pub rows: *const ::core::ffi::c_void,
    /// Distance between its rows.
    pub rows_stride: i64,
    /// `[T, D]` of the row type, or null.
    pub shared: *const ::core::ffi::c_void,
    /// Distance between its rows.
    pub shared_stride: i64,
    /// `[T]`: row of `shared` of each token, negative of none; null where row t is token t.
    pub shared_row: *const i32,
    /// `[T, D]` storage.
    pub x: *const ::core::ffi::c_void,
    /// Distance between its rows.
    pub x_stride: i64,
    /// `[Z, D]` storage, or null.
    pub constants: *const ::core::ffi::c_void,
    /// Distance between its rows.
    pub constants_stride: i64,
    /// Out: `[T, D]` storage.
    pub y: *mut ::core::ffi::c_void,
    /// T.
    pub tokens: i32,
    /// D.
    pub width: i32,
    /// K.
    pub slots: i32,
    /// E.
    pub routed: i32,
    /// Z.
    pub nulls: i32,
    /// See `NullKind`.
    pub null_kind: i32,
    /// Rows of `rows`.
    pub row_count: i32,
    /// Keeps the struct free of padding.
    pub reserved: i32,
}

impl Default for Combine {
    fn default() -> Self {
        Self {
            experts: ::core::ptr::null(),
            weights: ::core::ptr::null(),
            token_row: ::core::ptr::null(),
            experts_stride: 0,
            weights_stride: 0,
            token_row_stride: 0,
            rows: ::core::ptr::null(),
            rows_stride: 0,
            shared: ::core::ptr::null(),
            shared_stride: 0,
            shared_row: ::core::ptr::null(),
            x: ::core::ptr::null(),
            x_stride: 0,
            constants: ::core::ptr::null(),
            constants_stride: 0,
            y: ::core::ptr::null_mut(),
            tokens: 0,
            width: 0,
            slots: 0,
            routed: 0,
            nulls: 0,
            null_kind: 0,
            row_count: 0,
            reserved: 0,
        }
    }
}

/// Gradients through the null experts (SPEC §6): `combine_backward_*`, `combine_constants_*`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CombineBackward {
    /// `[T, K]`.
    pub experts: *const i32,
    /// `[T, K]`.
    pub weights: *const f32,
    /// Distance between rows of `experts`.
    pub experts_stride: i64,
    /// Distance between rows of `weights`.
    pub weights_stride: i64,
    /// `[T, D]` storage.
    pub x: *const ::core::ffi::c_void,
    /// Distance between its rows.
    pub x_stride: i64,
    /// `[Z, D]` storage, or null.
    pub constants: *const ::core::ffi::c_void,
    /// Distance between its rows.
    pub constants_stride: i64,
    /// `[T, D]` storage.
    pub dy: *const ::core::ffi::c_void,
    /// Distance between its rows.
    pub dy_stride: i64,
    /// Out: `[T, K]`.
    pub d_weights: *mut f32,
    /// Out: `[Z, D]`, or null; in too unless `beta` is 0.
    pub d_constants: *mut ::core::ffi::c_void,
    /// Workspace, with `d_constants`: `[Z, chunks, D]`.
    pub parts: *mut f32,
    /** Workspace, with `d_constants`: a count of arriving blocks for each share of each row of `d_constants`; 0 before the
    first launch, and they return to 0 by themselves.*/
    pub tickets: *mut u32,
    /// T.
    pub tokens: i32,
    /// D.
    pub width: i32,
    /// K.
    pub slots: i32,
    /// E.
    pub routed: i32,
    /// Null experts that have a value: rows of `constants`, all copies, no others.
    pub nulls: i32,
    /// See `NullKind`.
    pub null_kind: i32,
    /// Rows of `d_constants`.
    pub gradients: i32,
    /// Consecutive tokens that one block of `combine_constants_*` adds up.
    pub chunk: i32,
    /// Whether `d_constants` is f32 instead of the storage type.
    pub gradients_f32: i32,
    /// Factor on what `d_constants` holds: 0 or 1.
    pub beta: f32,
}

impl Default for CombineBackward {
    fn default() -> Self {
        Self {
            experts: ::core::ptr::null(),
            weights: ::core::ptr::null(),
            experts_stride: 0,
            weights_stride: 0,
            x: ::core::ptr::null(),
            x_stride: 0,
            constants: ::core::ptr::null(),
            constants_stride: 0,
            dy: ::core::ptr::null(),
            dy_stride: 0,
            d_weights: ::core::ptr::null_mut(),
            d_constants: ::core::ptr::null_mut(),
            parts: ::core::ptr::null_mut(),
            tickets: ::core::ptr::null_mut(),
            tokens: 0,
            width: 0,
            slots: 0,
            routed: 0,
            nulls: 0,
            null_kind: 0,
            gradients: 0,
            chunk: 0,
            gradients_f32: 0,
            beta: 0.0,
        }
    }
}

/// Every struct as Rust lays it out.
pub const LAYOUTS: &[Layout] = &[
    Layout {
        name: "ImportanceProbabilities",
        size: size_of::<ImportanceProbabilities>(),
        align: align_of::<ImportanceProbabilities>(),
        fields: &[
            Field {
                name: "probabilities",
                offset: offset_of!(ImportanceProbabilities, probabilities),
                size: size_of::<*const ::core::ffi::c_void>(),
            },
            Field {
                name: "sequence_stride",
                offset: offset_of!(ImportanceProbabilities, sequence_stride),
                size: size_of::<i64>(),
            },
            Field {
                name: "head_stride",
                offset: offset_of!(ImportanceProbabilities, head_stride),
                size: size_of::<i64>(),
            },
            Field {
                name: "row_stride",
                offset: offset_of!(ImportanceProbabilities, row_stride),
                size: size_of::<i64>(),
            },
            Field {
                name: "cu_seqlens",
                offset: offset_of!(ImportanceProbabilities, cu_seqlens),
                size: size_of::<*const i32>(),
            },
            Field { name: "mask", offset: offset_of!(ImportanceProbabilities, mask), size: size_of::<*const u8>() },
            Field { name: "values", offset: offset_of!(ImportanceProbabilities, values), size: size_of::<*mut f32>() },
            Field { name: "tokens", offset: offset_of!(ImportanceProbabilities, tokens), size: size_of::<i32>() },
            Field { name: "sequences", offset: offset_of!(ImportanceProbabilities, sequences), size: size_of::<i32>() },
            Field { name: "side", offset: offset_of!(ImportanceProbabilities, side), size: size_of::<i32>() },
            Field { name: "tiles", offset: offset_of!(ImportanceProbabilities, tiles), size: size_of::<i32>() },
            Field { name: "measure", offset: offset_of!(ImportanceProbabilities, measure), size: size_of::<i32>() },
            Field { name: "causal", offset: offset_of!(ImportanceProbabilities, causal), size: size_of::<i32>() },
        ],
    },
    Layout {
        name: "ImportanceQueryKey",
        size: size_of::<ImportanceQueryKey>(),
        align: align_of::<ImportanceQueryKey>(),
        fields: &[
            Field {
                name: "q",
                offset: offset_of!(ImportanceQueryKey, q),
                size: size_of::<*const ::core::ffi::c_void>(),
            },
            Field {
                name: "q_token_stride",
                offset: offset_of!(ImportanceQueryKey, q_token_stride),
                size: size_of::<i64>(),
            },
            Field {
                name: "q_head_stride",
                offset: offset_of!(ImportanceQueryKey, q_head_stride),
                size: size_of::<i64>(),
            },
            Field {
                name: "k",
                offset: offset_of!(ImportanceQueryKey, k),
                size: size_of::<*const ::core::ffi::c_void>(),
            },
            Field {
                name: "k_token_stride",
                offset: offset_of!(ImportanceQueryKey, k_token_stride),
                size: size_of::<i64>(),
            },
            Field {
                name: "k_head_stride",
                offset: offset_of!(ImportanceQueryKey, k_head_stride),
                size: size_of::<i64>(),
            },
            Field { name: "lse", offset: offset_of!(ImportanceQueryKey, lse), size: size_of::<*const f32>() },
            Field { name: "lse_stride", offset: offset_of!(ImportanceQueryKey, lse_stride), size: size_of::<i64>() },
            Field {
                name: "cu_seqlens",
                offset: offset_of!(ImportanceQueryKey, cu_seqlens),
                size: size_of::<*const i32>(),
            },
            Field { name: "mask", offset: offset_of!(ImportanceQueryKey, mask), size: size_of::<*const u8>() },
            Field { name: "values", offset: offset_of!(ImportanceQueryKey, values), size: size_of::<*mut f32>() },
            Field { name: "tokens", offset: offset_of!(ImportanceQueryKey, tokens), size: size_of::<i32>() },
            Field { name: "sequences", offset: offset_of!(ImportanceQueryKey, sequences), size: size_of::<i32>() },
            Field { name: "width", offset: offset_of!(ImportanceQueryKey, width), size: size_of::<i32>() },
            Field {
                name: "heads_per_key",
                offset: offset_of!(ImportanceQueryKey, heads_per_key),
                size: size_of::<i32>(),
            },
            Field { name: "measure", offset: offset_of!(ImportanceQueryKey, measure), size: size_of::<i32>() },
            Field { name: "causal", offset: offset_of!(ImportanceQueryKey, causal), size: size_of::<i32>() },
            Field { name: "scale", offset: offset_of!(ImportanceQueryKey, scale), size: size_of::<f32>() },
            Field { name: "wide", offset: offset_of!(ImportanceQueryKey, wide), size: size_of::<i32>() },
        ],
    },
    Layout {
        name: "ImportanceRouterEntropy",
        size: size_of::<ImportanceRouterEntropy>(),
        align: align_of::<ImportanceRouterEntropy>(),
        fields: &[
            Field {
                name: "logits",
                offset: offset_of!(ImportanceRouterEntropy, logits),
                size: size_of::<*const f32>(),
            },
            Field {
                name: "logits_stride",
                offset: offset_of!(ImportanceRouterEntropy, logits_stride),
                size: size_of::<i64>(),
            },
            Field { name: "values", offset: offset_of!(ImportanceRouterEntropy, values), size: size_of::<*mut f32>() },
            Field { name: "tokens", offset: offset_of!(ImportanceRouterEntropy, tokens), size: size_of::<i32>() },
            Field {
                name: "candidates",
                offset: offset_of!(ImportanceRouterEntropy, candidates),
                size: size_of::<i32>(),
            },
            Field { name: "scale", offset: offset_of!(ImportanceRouterEntropy, scale), size: size_of::<f32>() },
            Field { name: "reserved", offset: offset_of!(ImportanceRouterEntropy, reserved), size: size_of::<i32>() },
        ],
    },
    Layout {
        name: "ImportanceReduce",
        size: size_of::<ImportanceReduce>(),
        align: align_of::<ImportanceReduce>(),
        fields: &[
            Field { name: "values", offset: offset_of!(ImportanceReduce, values), size: size_of::<*const f32>() },
            Field { name: "ids", offset: offset_of!(ImportanceReduce, ids), size: size_of::<*const i32>() },
            Field { name: "mask", offset: offset_of!(ImportanceReduce, mask), size: size_of::<*const u8>() },
            Field { name: "out", offset: offset_of!(ImportanceReduce, out), size: size_of::<*mut f32>() },
            Field { name: "tokens", offset: offset_of!(ImportanceReduce, tokens), size: size_of::<i32>() },
            Field { name: "heads", offset: offset_of!(ImportanceReduce, heads), size: size_of::<i32>() },
            Field { name: "heads_max", offset: offset_of!(ImportanceReduce, heads_max), size: size_of::<i32>() },
            Field { name: "vocabulary", offset: offset_of!(ImportanceReduce, vocabulary), size: size_of::<i32>() },
            Field { name: "rule", offset: offset_of!(ImportanceReduce, rule), size: size_of::<i32>() },
            Field { name: "a", offset: offset_of!(ImportanceReduce, a), size: size_of::<f32>() },
            Field { name: "b", offset: offset_of!(ImportanceReduce, b), size: size_of::<f32>() },
            Field { name: "weight", offset: offset_of!(ImportanceReduce, weight), size: size_of::<f32>() },
            Field { name: "accumulate", offset: offset_of!(ImportanceReduce, accumulate), size: size_of::<i32>() },
            Field { name: "reserved", offset: offset_of!(ImportanceReduce, reserved), size: size_of::<i32>() },
        ],
    },
    Layout {
        name: "ImportanceNormalize",
        size: size_of::<ImportanceNormalize>(),
        align: align_of::<ImportanceNormalize>(),
        fields: &[
            Field { name: "values", offset: offset_of!(ImportanceNormalize, values), size: size_of::<*const f32>() },
            Field {
                name: "cu_seqlens",
                offset: offset_of!(ImportanceNormalize, cu_seqlens),
                size: size_of::<*const i32>(),
            },
            Field { name: "mask", offset: offset_of!(ImportanceNormalize, mask), size: size_of::<*const u8>() },
            Field { name: "out", offset: offset_of!(ImportanceNormalize, out), size: size_of::<*mut f32>() },
            Field { name: "tokens", offset: offset_of!(ImportanceNormalize, tokens), size: size_of::<i32>() },
            Field { name: "sequences", offset: offset_of!(ImportanceNormalize, sequences), size: size_of::<i32>() },
            Field { name: "rule", offset: offset_of!(ImportanceNormalize, rule), size: size_of::<i32>() },
            Field { name: "weight", offset: offset_of!(ImportanceNormalize, weight), size: size_of::<f32>() },
            Field { name: "accumulate", offset: offset_of!(ImportanceNormalize, accumulate), size: size_of::<i32>() },
            Field { name: "reserved", offset: offset_of!(ImportanceNormalize, reserved), size: size_of::<i32>() },
        ],
    },
    Layout {
        name: "ImportanceRunning",
        size: size_of::<ImportanceRunning>(),
        align: align_of::<ImportanceRunning>(),
        fields: &[
            Field { name: "values", offset: offset_of!(ImportanceRunning, values), size: size_of::<*const f32>() },
            Field { name: "mask", offset: offset_of!(ImportanceRunning, mask), size: size_of::<*const u8>() },
            Field { name: "state", offset: offset_of!(ImportanceRunning, state), size: size_of::<*mut f32>() },
            Field { name: "out", offset: offset_of!(ImportanceRunning, out), size: size_of::<*mut f32>() },
            Field { name: "tokens", offset: offset_of!(ImportanceRunning, tokens), size: size_of::<i32>() },
            Field { name: "momentum", offset: offset_of!(ImportanceRunning, momentum), size: size_of::<f32>() },
            Field { name: "training", offset: offset_of!(ImportanceRunning, training), size: size_of::<i32>() },
            Field { name: "reserved", offset: offset_of!(ImportanceRunning, reserved), size: size_of::<i32>() },
        ],
    },
    Layout {
        name: "Budget",
        size: size_of::<Budget>(),
        align: align_of::<Budget>(),
        fields: &[
            Field { name: "importance", offset: offset_of!(Budget, importance), size: size_of::<*const f32>() },
            Field { name: "mask", offset: offset_of!(Budget, mask), size: size_of::<*const u8>() },
            Field { name: "k", offset: offset_of!(Budget, k), size: size_of::<*mut i32>() },
            Field { name: "histogram", offset: offset_of!(Budget, histogram), size: size_of::<*mut u32>() },
            Field { name: "ties", offset: offset_of!(Budget, ties), size: size_of::<*mut i32>() },
            Field { name: "ties_before", offset: offset_of!(Budget, ties_before), size: size_of::<*mut i32>() },
            Field { name: "arrivals", offset: offset_of!(Budget, arrivals), size: size_of::<*mut u32>() },
            Field { name: "found", offset: offset_of!(Budget, found), size: size_of::<*mut u32>() },
            Field { name: "mean_k", offset: offset_of!(Budget, mean_k), size: size_of::<f64>() },
            Field { name: "tokens", offset: offset_of!(Budget, tokens), size: size_of::<i32>() },
            Field { name: "k_min", offset: offset_of!(Budget, k_min), size: size_of::<i32>() },
            Field { name: "levels", offset: offset_of!(Budget, levels), size: size_of::<i32>() },
            Field { name: "pass", offset: offset_of!(Budget, pass), size: size_of::<i32>() },
        ],
    },
    Layout {
        name: "Gate",
        size: size_of::<Gate>(),
        align: align_of::<Gate>(),
        fields: &[
            Field { name: "logits", offset: offset_of!(Gate, logits), size: size_of::<*const f32>() },
            Field { name: "logits_stride", offset: offset_of!(Gate, logits_stride), size: size_of::<i64>() },
            Field { name: "importance", offset: offset_of!(Gate, importance), size: size_of::<*const f32>() },
            Field { name: "bias", offset: offset_of!(Gate, bias), size: size_of::<*const f32>() },
            Field { name: "mask", offset: offset_of!(Gate, mask), size: size_of::<*const u8>() },
            Field { name: "k_given", offset: offset_of!(Gate, k_given), size: size_of::<*const i32>() },
            Field { name: "state", offset: offset_of!(Gate, state), size: size_of::<*mut f32>() },
            Field { name: "k", offset: offset_of!(Gate, k), size: size_of::<*mut i32>() },
            Field { name: "experts", offset: offset_of!(Gate, experts), size: size_of::<*mut i32>() },
            Field { name: "weights", offset: offset_of!(Gate, weights), size: size_of::<*mut f32>() },
            Field { name: "ranked", offset: offset_of!(Gate, ranked), size: size_of::<*mut i32>() },
            Field { name: "load", offset: offset_of!(Gate, load), size: size_of::<*mut i32>() },
            Field { name: "unmasked", offset: offset_of!(Gate, unmasked), size: size_of::<*mut i32>() },
            Field { name: "losses", offset: offset_of!(Gate, losses), size: size_of::<*mut f32>() },
            Field { name: "block_load", offset: offset_of!(Gate, block_load), size: size_of::<*mut i32>() },
            Field { name: "block_shares", offset: offset_of!(Gate, block_shares), size: size_of::<*mut f32>() },
            Field { name: "block_z", offset: offset_of!(Gate, block_z), size: size_of::<*mut f32>() },
            Field { name: "block_unmasked", offset: offset_of!(Gate, block_unmasked), size: size_of::<*mut i32>() },
            Field { name: "ticket", offset: offset_of!(Gate, ticket), size: size_of::<*mut u32>() },
            Field { name: "p", offset: offset_of!(Gate, p), size: size_of::<f64>() },
            Field { name: "mean_k", offset: offset_of!(Gate, mean_k), size: size_of::<f64>() },
            Field { name: "momentum", offset: offset_of!(Gate, momentum), size: size_of::<f64>() },
            Field { name: "tokens", offset: offset_of!(Gate, tokens), size: size_of::<i32>() },
            Field { name: "routed", offset: offset_of!(Gate, routed), size: size_of::<i32>() },
            Field { name: "candidates", offset: offset_of!(Gate, candidates), size: size_of::<i32>() },
            Field { name: "k_min", offset: offset_of!(Gate, k_min), size: size_of::<i32>() },
            Field { name: "k_max", offset: offset_of!(Gate, k_max), size: size_of::<i32>() },
            Field { name: "policy", offset: offset_of!(Gate, policy), size: size_of::<i32>() },
            Field { name: "scoring", offset: offset_of!(Gate, scoring), size: size_of::<i32>() },
            Field { name: "divisor", offset: offset_of!(Gate, divisor), size: size_of::<i32>() },
            Field { name: "routed_scaling", offset: offset_of!(Gate, routed_scaling), size: size_of::<f32>() },
            Field { name: "groups", offset: offset_of!(Gate, groups), size: size_of::<i32>() },
            Field { name: "chosen_groups", offset: offset_of!(Gate, chosen_groups), size: size_of::<i32>() },
            Field { name: "tokens_per_warp", offset: offset_of!(Gate, tokens_per_warp), size: size_of::<i32>() },
            Field { name: "fixed", offset: offset_of!(Gate, fixed), size: size_of::<i32>() },
            Field { name: "scale", offset: offset_of!(Gate, scale), size: size_of::<f32>() },
            Field { name: "first_price", offset: offset_of!(Gate, first_price), size: size_of::<f32>() },
            Field { name: "training", offset: offset_of!(Gate, training), size: size_of::<i32>() },
            Field { name: "threshold_count", offset: offset_of!(Gate, threshold_count), size: size_of::<i32>() },
            Field { name: "reserved", offset: offset_of!(Gate, reserved), size: size_of::<i32>() },
            Field { name: "thresholds", offset: offset_of!(Gate, thresholds), size: size_of::<[f32; 512usize]>() },
        ],
    },
    Layout {
        name: "GivenRouting",
        size: size_of::<GivenRouting>(),
        align: align_of::<GivenRouting>(),
        fields: &[
            Field {
                name: "given_experts",
                offset: offset_of!(GivenRouting, given_experts),
                size: size_of::<*const i32>(),
            },
            Field {
                name: "given_weights",
                offset: offset_of!(GivenRouting, given_weights),
                size: size_of::<*const f32>(),
            },
            Field { name: "offsets", offset: offset_of!(GivenRouting, offsets), size: size_of::<*const i32>() },
            Field { name: "experts_stride", offset: offset_of!(GivenRouting, experts_stride), size: size_of::<i64>() },
            Field { name: "weights_stride", offset: offset_of!(GivenRouting, weights_stride), size: size_of::<i64>() },
            Field { name: "mask", offset: offset_of!(GivenRouting, mask), size: size_of::<*const u8>() },
            Field { name: "k", offset: offset_of!(GivenRouting, k), size: size_of::<*mut i32>() },
            Field { name: "experts", offset: offset_of!(GivenRouting, experts), size: size_of::<*mut i32>() },
            Field { name: "weights", offset: offset_of!(GivenRouting, weights), size: size_of::<*mut f32>() },
            Field { name: "ranked", offset: offset_of!(GivenRouting, ranked), size: size_of::<*mut i32>() },
            Field { name: "load", offset: offset_of!(GivenRouting, load), size: size_of::<*mut i32>() },
            Field { name: "unmasked", offset: offset_of!(GivenRouting, unmasked), size: size_of::<*mut i32>() },
            Field { name: "losses", offset: offset_of!(GivenRouting, losses), size: size_of::<*mut f32>() },
            Field { name: "block_load", offset: offset_of!(GivenRouting, block_load), size: size_of::<*mut i32>() },
            Field {
                name: "block_unmasked",
                offset: offset_of!(GivenRouting, block_unmasked),
                size: size_of::<*mut i32>(),
            },
            Field { name: "ticket", offset: offset_of!(GivenRouting, ticket), size: size_of::<*mut u32>() },
            Field { name: "tokens", offset: offset_of!(GivenRouting, tokens), size: size_of::<i32>() },
            Field { name: "columns", offset: offset_of!(GivenRouting, columns), size: size_of::<i32>() },
            Field { name: "entries", offset: offset_of!(GivenRouting, entries), size: size_of::<i32>() },
            Field { name: "candidates", offset: offset_of!(GivenRouting, candidates), size: size_of::<i32>() },
            Field { name: "k_max", offset: offset_of!(GivenRouting, k_max), size: size_of::<i32>() },
            Field {
                name: "tokens_per_warp",
                offset: offset_of!(GivenRouting, tokens_per_warp),
                size: size_of::<i32>(),
            },
        ],
    },
    Layout {
        name: "GateBias",
        size: size_of::<GateBias>(),
        align: align_of::<GateBias>(),
        fields: &[
            Field { name: "load", offset: offset_of!(GateBias, load), size: size_of::<*const i32>() },
            Field { name: "bias", offset: offset_of!(GateBias, bias), size: size_of::<*mut f32>() },
            Field { name: "candidates", offset: offset_of!(GateBias, candidates), size: size_of::<i32>() },
            Field { name: "proportional", offset: offset_of!(GateBias, proportional), size: size_of::<i32>() },
            Field { name: "rate", offset: offset_of!(GateBias, rate), size: size_of::<f32>() },
            Field { name: "reserved", offset: offset_of!(GateBias, reserved), size: size_of::<i32>() },
        ],
    },
    Layout {
        name: "GateBackward",
        size: size_of::<GateBackward>(),
        align: align_of::<GateBackward>(),
        fields: &[
            Field { name: "logits", offset: offset_of!(GateBackward, logits), size: size_of::<*const f32>() },
            Field { name: "logits_stride", offset: offset_of!(GateBackward, logits_stride), size: size_of::<i64>() },
            Field { name: "mask", offset: offset_of!(GateBackward, mask), size: size_of::<*const u8>() },
            Field { name: "experts", offset: offset_of!(GateBackward, experts), size: size_of::<*const i32>() },
            Field { name: "experts_stride", offset: offset_of!(GateBackward, experts_stride), size: size_of::<i64>() },
            Field { name: "ranked", offset: offset_of!(GateBackward, ranked), size: size_of::<*const i32>() },
            Field { name: "ranked_stride", offset: offset_of!(GateBackward, ranked_stride), size: size_of::<i64>() },
            Field { name: "d_weights", offset: offset_of!(GateBackward, d_weights), size: size_of::<*const f32>() },
            Field {
                name: "d_weights_stride",
                offset: offset_of!(GateBackward, d_weights_stride),
                size: size_of::<i64>(),
            },
            Field { name: "load", offset: offset_of!(GateBackward, load), size: size_of::<*const i32>() },
            Field { name: "unmasked", offset: offset_of!(GateBackward, unmasked), size: size_of::<*const i32>() },
            Field { name: "d_logits", offset: offset_of!(GateBackward, d_logits), size: size_of::<*mut f32>() },
            Field { name: "balance", offset: offset_of!(GateBackward, balance), size: size_of::<f64>() },
            Field { name: "tokens", offset: offset_of!(GateBackward, tokens), size: size_of::<i32>() },
            Field { name: "candidates", offset: offset_of!(GateBackward, candidates), size: size_of::<i32>() },
            Field { name: "slots", offset: offset_of!(GateBackward, slots), size: size_of::<i32>() },
            Field { name: "scoring", offset: offset_of!(GateBackward, scoring), size: size_of::<i32>() },
            Field { name: "divisor", offset: offset_of!(GateBackward, divisor), size: size_of::<i32>() },
            Field { name: "routed_scaling", offset: offset_of!(GateBackward, routed_scaling), size: size_of::<f32>() },
            Field { name: "z", offset: offset_of!(GateBackward, z), size: size_of::<f32>() },
            Field {
                name: "tokens_per_warp",
                offset: offset_of!(GateBackward, tokens_per_warp),
                size: size_of::<i32>(),
            },
        ],
    },
    Layout {
        name: "GateDx",
        size: size_of::<GateDx>(),
        align: align_of::<GateDx>(),
        fields: &[
            Field { name: "dx_rows", offset: offset_of!(GateDx, dx_rows), size: size_of::<*const f32>() },
            Field { name: "dx_rows_stride", offset: offset_of!(GateDx, dx_rows_stride), size: size_of::<i64>() },
            Field { name: "of_router", offset: offset_of!(GateDx, of_router), size: size_of::<*const f32>() },
            Field { name: "of_router_stride", offset: offset_of!(GateDx, of_router_stride), size: size_of::<i64>() },
            Field { name: "dx", offset: offset_of!(GateDx, dx), size: size_of::<*mut ::core::ffi::c_void>() },
            Field { name: "tokens", offset: offset_of!(GateDx, tokens), size: size_of::<i32>() },
            Field { name: "width", offset: offset_of!(GateDx, width), size: size_of::<i32>() },
        ],
    },
    Layout {
        name: "RoutingBackward",
        size: size_of::<RoutingBackward>(),
        align: align_of::<RoutingBackward>(),
        fields: &[
            Field { name: "ranked", offset: offset_of!(RoutingBackward, ranked), size: size_of::<*const i32>() },
            Field { name: "ranked_stride", offset: offset_of!(RoutingBackward, ranked_stride), size: size_of::<i64>() },
            Field { name: "d_weights", offset: offset_of!(RoutingBackward, d_weights), size: size_of::<*const f32>() },
            Field {
                name: "d_weights_stride",
                offset: offset_of!(RoutingBackward, d_weights_stride),
                size: size_of::<i64>(),
            },
            Field { name: "offsets", offset: offset_of!(RoutingBackward, offsets), size: size_of::<*const i32>() },
            Field { name: "d_routing", offset: offset_of!(RoutingBackward, d_routing), size: size_of::<*mut f32>() },
            Field { name: "tokens", offset: offset_of!(RoutingBackward, tokens), size: size_of::<i32>() },
            Field { name: "slots", offset: offset_of!(RoutingBackward, slots), size: size_of::<i32>() },
            Field { name: "columns", offset: offset_of!(RoutingBackward, columns), size: size_of::<i32>() },
            Field { name: "entries", offset: offset_of!(RoutingBackward, entries), size: size_of::<i32>() },
        ],
    },
    Layout {
        name: "Permute",
        size: size_of::<Permute>(),
        align: align_of::<Permute>(),
        fields: &[
            Field { name: "experts", offset: offset_of!(Permute, experts), size: size_of::<*const i32>() },
            Field { name: "weights", offset: offset_of!(Permute, weights), size: size_of::<*const f32>() },
            Field { name: "experts_stride", offset: offset_of!(Permute, experts_stride), size: size_of::<i64>() },
            Field { name: "weights_stride", offset: offset_of!(Permute, weights_stride), size: size_of::<i64>() },
            Field { name: "counts", offset: offset_of!(Permute, counts), size: size_of::<*mut i32>() },
            Field { name: "offsets", offset: offset_of!(Permute, offsets), size: size_of::<*mut i32>() },
            Field { name: "row_token", offset: offset_of!(Permute, row_token), size: size_of::<*mut i32>() },
            Field { name: "row_weight", offset: offset_of!(Permute, row_weight), size: size_of::<*mut f32>() },
            Field { name: "token_row", offset: offset_of!(Permute, token_row), size: size_of::<*mut i32>() },
            Field { name: "dropped", offset: offset_of!(Permute, dropped), size: size_of::<*mut i32>() },
            Field { name: "block_counts", offset: offset_of!(Permute, block_counts), size: size_of::<*mut i32>() },
            Field { name: "sorted_offsets", offset: offset_of!(Permute, sorted_offsets), size: size_of::<*mut i32>() },
            Field { name: "sorted_entry", offset: offset_of!(Permute, sorted_entry), size: size_of::<*mut i32>() },
            Field { name: "sorted_weight", offset: offset_of!(Permute, sorted_weight), size: size_of::<*mut f32>() },
            Field { name: "ticket", offset: offset_of!(Permute, ticket), size: size_of::<*mut u32>() },
            Field { name: "capacity_factor", offset: offset_of!(Permute, capacity_factor), size: size_of::<f64>() },
            Field { name: "tokens", offset: offset_of!(Permute, tokens), size: size_of::<i32>() },
            Field { name: "slots", offset: offset_of!(Permute, slots), size: size_of::<i32>() },
            Field { name: "routed", offset: offset_of!(Permute, routed), size: size_of::<i32>() },
            Field { name: "candidates", offset: offset_of!(Permute, candidates), size: size_of::<i32>() },
            Field { name: "by_weight", offset: offset_of!(Permute, by_weight), size: size_of::<i32>() },
            Field { name: "reserved", offset: offset_of!(Permute, reserved), size: size_of::<i32>() },
        ],
    },
    Layout {
        name: "PermuteUnmasked",
        size: size_of::<PermuteUnmasked>(),
        align: align_of::<PermuteUnmasked>(),
        fields: &[
            Field { name: "mask", offset: offset_of!(PermuteUnmasked, mask), size: size_of::<*const u8>() },
            Field { name: "offsets", offset: offset_of!(PermuteUnmasked, offsets), size: size_of::<*mut i32>() },
            Field { name: "row_token", offset: offset_of!(PermuteUnmasked, row_token), size: size_of::<*mut i32>() },
            Field { name: "token_row", offset: offset_of!(PermuteUnmasked, token_row), size: size_of::<*mut i32>() },
            Field { name: "tokens", offset: offset_of!(PermuteUnmasked, tokens), size: size_of::<i32>() },
            Field { name: "reserved", offset: offset_of!(PermuteUnmasked, reserved), size: size_of::<i32>() },
        ],
    },
    Layout {
        name: "PermuteBackward",
        size: size_of::<PermuteBackward>(),
        align: align_of::<PermuteBackward>(),
        fields: &[
            Field { name: "experts", offset: offset_of!(PermuteBackward, experts), size: size_of::<*const i32>() },
            Field { name: "weights", offset: offset_of!(PermuteBackward, weights), size: size_of::<*const f32>() },
            Field { name: "token_row", offset: offset_of!(PermuteBackward, token_row), size: size_of::<*const i32>() },
            Field {
                name: "experts_stride",
                offset: offset_of!(PermuteBackward, experts_stride),
                size: size_of::<i64>(),
            },
            Field {
                name: "weights_stride",
                offset: offset_of!(PermuteBackward, weights_stride),
                size: size_of::<i64>(),
            },
            Field {
                name: "token_row_stride",
                offset: offset_of!(PermuteBackward, token_row_stride),
                size: size_of::<i64>(),
            },
            Field {
                name: "dx_rows",
                offset: offset_of!(PermuteBackward, dx_rows),
                size: size_of::<*const ::core::ffi::c_void>(),
            },
            Field {
                name: "dx_rows_stride",
                offset: offset_of!(PermuteBackward, dx_rows_stride),
                size: size_of::<i64>(),
            },
            Field {
                name: "d_row_weight",
                offset: offset_of!(PermuteBackward, d_row_weight),
                size: size_of::<*const f32>(),
            },
            Field {
                name: "shared_dx",
                offset: offset_of!(PermuteBackward, shared_dx),
                size: size_of::<*const ::core::ffi::c_void>(),
            },
            Field { name: "shared_stride", offset: offset_of!(PermuteBackward, shared_stride), size: size_of::<i64>() },
            Field {
                name: "shared_row",
                offset: offset_of!(PermuteBackward, shared_row),
                size: size_of::<*const i32>(),
            },
            Field {
                name: "dy",
                offset: offset_of!(PermuteBackward, dy),
                size: size_of::<*const ::core::ffi::c_void>(),
            },
            Field { name: "dy_stride", offset: offset_of!(PermuteBackward, dy_stride), size: size_of::<i64>() },
            Field { name: "d_weights", offset: offset_of!(PermuteBackward, d_weights), size: size_of::<*mut f32>() },
            Field { name: "dx", offset: offset_of!(PermuteBackward, dx), size: size_of::<*mut f32>() },
            Field { name: "tokens", offset: offset_of!(PermuteBackward, tokens), size: size_of::<i32>() },
            Field { name: "width", offset: offset_of!(PermuteBackward, width), size: size_of::<i32>() },
            Field { name: "slots", offset: offset_of!(PermuteBackward, slots), size: size_of::<i32>() },
            Field { name: "routed", offset: offset_of!(PermuteBackward, routed), size: size_of::<i32>() },
            Field { name: "null_kind", offset: offset_of!(PermuteBackward, null_kind), size: size_of::<i32>() },
            Field { name: "row_count", offset: offset_of!(PermuteBackward, row_count), size: size_of::<i32>() },
        ],
    },
    Layout {
        name: "GroupedGemm",
        size: size_of::<GroupedGemm>(),
        align: align_of::<GroupedGemm>(),
        fields: &[
            Field { name: "a", offset: offset_of!(GroupedGemm, a), size: size_of::<*const ::core::ffi::c_void>() },
            Field { name: "b", offset: offset_of!(GroupedGemm, b), size: size_of::<*const ::core::ffi::c_void>() },
            Field {
                name: "bias",
                offset: offset_of!(GroupedGemm, bias),
                size: size_of::<*const ::core::ffi::c_void>(),
            },
            Field { name: "offsets", offset: offset_of!(GroupedGemm, offsets), size: size_of::<*const i32>() },
            Field { name: "row_token", offset: offset_of!(GroupedGemm, row_token), size: size_of::<*const i32>() },
            Field { name: "out", offset: offset_of!(GroupedGemm, out), size: size_of::<*mut ::core::ffi::c_void>() },
            Field {
                name: "hidden",
                offset: offset_of!(GroupedGemm, hidden),
                size: size_of::<*mut ::core::ffi::c_void>(),
            },
            Field { name: "a_stride", offset: offset_of!(GroupedGemm, a_stride), size: size_of::<i64>() },
            Field { name: "b_expert_stride", offset: offset_of!(GroupedGemm, b_expert_stride), size: size_of::<i64>() },
            Field { name: "b_stride", offset: offset_of!(GroupedGemm, b_stride), size: size_of::<i64>() },
            Field { name: "bias_stride", offset: offset_of!(GroupedGemm, bias_stride), size: size_of::<i64>() },
            Field { name: "out_stride", offset: offset_of!(GroupedGemm, out_stride), size: size_of::<i64>() },
            Field { name: "hidden_stride", offset: offset_of!(GroupedGemm, hidden_stride), size: size_of::<i64>() },
            Field { name: "rows", offset: offset_of!(GroupedGemm, rows), size: size_of::<i32>() },
            Field { name: "a_rows", offset: offset_of!(GroupedGemm, a_rows), size: size_of::<i32>() },
            Field { name: "experts", offset: offset_of!(GroupedGemm, experts), size: size_of::<i32>() },
            Field { name: "depth", offset: offset_of!(GroupedGemm, depth), size: size_of::<i32>() },
            Field { name: "columns", offset: offset_of!(GroupedGemm, columns), size: size_of::<i32>() },
            Field { name: "activation", offset: offset_of!(GroupedGemm, activation), size: size_of::<i32>() },
            Field { name: "out_f32", offset: offset_of!(GroupedGemm, out_f32), size: size_of::<i32>() },
            Field { name: "hidden_f32", offset: offset_of!(GroupedGemm, hidden_f32), size: size_of::<i32>() },
        ],
    },
    Layout {
        name: "TensorMap",
        size: size_of::<TensorMap>(),
        align: align_of::<TensorMap>(),
        fields: &[Field { name: "words", offset: offset_of!(TensorMap, words), size: size_of::<[u64; 16usize]>() }],
    },
    Layout {
        name: "HopperGemm",
        size: size_of::<HopperGemm>(),
        align: align_of::<HopperGemm>(),
        fields: &[
            Field { name: "b", offset: offset_of!(HopperGemm, b), size: size_of::<TensorMap>() },
            Field { name: "a", offset: offset_of!(HopperGemm, a), size: size_of::<TensorMap>() },
            Field { name: "out", offset: offset_of!(HopperGemm, out), size: size_of::<TensorMap>() },
            Field { name: "hidden", offset: offset_of!(HopperGemm, hidden), size: size_of::<TensorMap>() },
            Field { name: "product", offset: offset_of!(HopperGemm, product), size: size_of::<GroupedGemm>() },
            Field { name: "clocks", offset: offset_of!(HopperGemm, clocks), size: size_of::<*mut i64>() },
            Field { name: "reserved", offset: offset_of!(HopperGemm, reserved), size: size_of::<[u64; 6usize]>() },
        ],
    },
    Layout {
        name: "HiddenGradient",
        size: size_of::<HiddenGradient>(),
        align: align_of::<HiddenGradient>(),
        fields: &[
            Field { name: "product", offset: offset_of!(HiddenGradient, product), size: size_of::<GroupedGemm>() },
            Field { name: "row_weight", offset: offset_of!(HiddenGradient, row_weight), size: size_of::<*const f32>() },
            Field {
                name: "activated",
                offset: offset_of!(HiddenGradient, activated),
                size: size_of::<*mut ::core::ffi::c_void>(),
            },
            Field { name: "parts", offset: offset_of!(HiddenGradient, parts), size: size_of::<*mut f32>() },
            Field {
                name: "activated_stride",
                offset: offset_of!(HiddenGradient, activated_stride),
                size: size_of::<i64>(),
            },
        ],
    },
    Layout {
        name: "HopperHiddenGradient",
        size: size_of::<HopperHiddenGradient>(),
        align: align_of::<HopperHiddenGradient>(),
        fields: &[
            Field { name: "b", offset: offset_of!(HopperHiddenGradient, b), size: size_of::<TensorMap>() },
            Field { name: "hidden", offset: offset_of!(HopperHiddenGradient, hidden), size: size_of::<TensorMap>() },
            Field { name: "out", offset: offset_of!(HopperHiddenGradient, out), size: size_of::<TensorMap>() },
            Field {
                name: "activated",
                offset: offset_of!(HopperHiddenGradient, activated),
                size: size_of::<TensorMap>(),
            },
            Field {
                name: "gradient",
                offset: offset_of!(HopperHiddenGradient, gradient),
                size: size_of::<HiddenGradient>(),
            },
            Field { name: "clocks", offset: offset_of!(HopperHiddenGradient, clocks), size: size_of::<*mut i64>() },
            Field {
                name: "reserved",
                offset: offset_of!(HopperHiddenGradient, reserved),
                size: size_of::<[u64; 2usize]>(),
            },
        ],
    },
    Layout {
        name: "RowWeightGradient",
        size: size_of::<RowWeightGradient>(),
        align: align_of::<RowWeightGradient>(),
        fields: &[
            Field { name: "parts", offset: offset_of!(RowWeightGradient, parts), size: size_of::<*const f32>() },
            Field {
                name: "dy",
                offset: offset_of!(RowWeightGradient, dy),
                size: size_of::<*const ::core::ffi::c_void>(),
            },
            Field {
                name: "bias",
                offset: offset_of!(RowWeightGradient, bias),
                size: size_of::<*const ::core::ffi::c_void>(),
            },
            Field { name: "offsets", offset: offset_of!(RowWeightGradient, offsets), size: size_of::<*const i32>() },
            Field {
                name: "row_token",
                offset: offset_of!(RowWeightGradient, row_token),
                size: size_of::<*const i32>(),
            },
            Field { name: "out", offset: offset_of!(RowWeightGradient, out), size: size_of::<*mut f32>() },
            Field { name: "dy_stride", offset: offset_of!(RowWeightGradient, dy_stride), size: size_of::<i64>() },
            Field { name: "bias_stride", offset: offset_of!(RowWeightGradient, bias_stride), size: size_of::<i64>() },
            Field { name: "rows", offset: offset_of!(RowWeightGradient, rows), size: size_of::<i32>() },
            Field { name: "tokens", offset: offset_of!(RowWeightGradient, tokens), size: size_of::<i32>() },
            Field { name: "experts", offset: offset_of!(RowWeightGradient, experts), size: size_of::<i32>() },
            Field { name: "width", offset: offset_of!(RowWeightGradient, width), size: size_of::<i32>() },
            Field { name: "part_count", offset: offset_of!(RowWeightGradient, part_count), size: size_of::<i32>() },
            Field { name: "reserved", offset: offset_of!(RowWeightGradient, reserved), size: size_of::<i32>() },
        ],
    },
    Layout {
        name: "RoutedOperand",
        size: size_of::<RoutedOperand>(),
        align: align_of::<RoutedOperand>(),
        fields: &[
            Field {
                name: "rows",
                offset: offset_of!(RoutedOperand, rows),
                size: size_of::<*const ::core::ffi::c_void>(),
            },
            Field { name: "row_token", offset: offset_of!(RoutedOperand, row_token), size: size_of::<*const i32>() },
            Field { name: "mask", offset: offset_of!(RoutedOperand, mask), size: size_of::<*const u8>() },
            Field { name: "stride", offset: offset_of!(RoutedOperand, stride), size: size_of::<i64>() },
            Field { name: "sources", offset: offset_of!(RoutedOperand, sources), size: size_of::<i32>() },
            Field { name: "columns", offset: offset_of!(RoutedOperand, columns), size: size_of::<i32>() },
        ],
    },
    Layout {
        name: "WeightGradient",
        size: size_of::<WeightGradient>(),
        align: align_of::<WeightGradient>(),
        fields: &[
            Field { name: "left", offset: offset_of!(WeightGradient, left), size: size_of::<RoutedOperand>() },
            Field { name: "right", offset: offset_of!(WeightGradient, right), size: size_of::<RoutedOperand>() },
            Field { name: "offsets", offset: offset_of!(WeightGradient, offsets), size: size_of::<*const i32>() },
            Field { name: "out", offset: offset_of!(WeightGradient, out), size: size_of::<*mut ::core::ffi::c_void>() },
            Field {
                name: "out_expert_stride",
                offset: offset_of!(WeightGradient, out_expert_stride),
                size: size_of::<i64>(),
            },
            Field { name: "out_stride", offset: offset_of!(WeightGradient, out_stride), size: size_of::<i64>() },
            Field { name: "rows", offset: offset_of!(WeightGradient, rows), size: size_of::<i32>() },
            Field { name: "experts", offset: offset_of!(WeightGradient, experts), size: size_of::<i32>() },
            Field { name: "out_f32", offset: offset_of!(WeightGradient, out_f32), size: size_of::<i32>() },
            Field { name: "beta", offset: offset_of!(WeightGradient, beta), size: size_of::<f32>() },
            Field { name: "share", offset: offset_of!(WeightGradient, share), size: size_of::<i32>() },
            Field { name: "reserved", offset: offset_of!(WeightGradient, reserved), size: size_of::<i32>() },
        ],
    },
    Layout {
        name: "HopperWeightGradient",
        size: size_of::<HopperWeightGradient>(),
        align: align_of::<HopperWeightGradient>(),
        fields: &[
            Field { name: "packed", offset: offset_of!(HopperWeightGradient, packed), size: size_of::<TensorMap>() },
            Field { name: "out", offset: offset_of!(HopperWeightGradient, out), size: size_of::<TensorMap>() },
            Field {
                name: "gradient",
                offset: offset_of!(HopperWeightGradient, gradient),
                size: size_of::<WeightGradient>(),
            },
            Field { name: "clocks", offset: offset_of!(HopperWeightGradient, clocks), size: size_of::<*mut i64>() },
            Field {
                name: "reserved",
                offset: offset_of!(HopperWeightGradient, reserved),
                size: size_of::<[u64; 6usize]>(),
            },
        ],
    },
    Layout {
        name: "WeightGradientSum",
        size: size_of::<WeightGradientSum>(),
        align: align_of::<WeightGradientSum>(),
        fields: &[
            Field { name: "parts", offset: offset_of!(WeightGradientSum, parts), size: size_of::<*const f32>() },
            Field {
                name: "out",
                offset: offset_of!(WeightGradientSum, out),
                size: size_of::<*mut ::core::ffi::c_void>(),
            },
            Field { name: "elements", offset: offset_of!(WeightGradientSum, elements), size: size_of::<i64>() },
            Field { name: "part_count", offset: offset_of!(WeightGradientSum, part_count), size: size_of::<i32>() },
            Field { name: "out_f32", offset: offset_of!(WeightGradientSum, out_f32), size: size_of::<i32>() },
            Field { name: "beta", offset: offset_of!(WeightGradientSum, beta), size: size_of::<f32>() },
            Field { name: "reserved", offset: offset_of!(WeightGradientSum, reserved), size: size_of::<i32>() },
        ],
    },
    Layout {
        name: "BiasGradient",
        size: size_of::<BiasGradient>(),
        align: align_of::<BiasGradient>(),
        fields: &[
            Field { name: "from", offset: offset_of!(BiasGradient, from), size: size_of::<RoutedOperand>() },
            Field { name: "row_weight", offset: offset_of!(BiasGradient, row_weight), size: size_of::<*const f32>() },
            Field { name: "offsets", offset: offset_of!(BiasGradient, offsets), size: size_of::<*const i32>() },
            Field { name: "out", offset: offset_of!(BiasGradient, out), size: size_of::<*mut ::core::ffi::c_void>() },
            Field { name: "out_stride", offset: offset_of!(BiasGradient, out_stride), size: size_of::<i64>() },
            Field { name: "rows", offset: offset_of!(BiasGradient, rows), size: size_of::<i32>() },
            Field { name: "experts", offset: offset_of!(BiasGradient, experts), size: size_of::<i32>() },
            Field { name: "out_f32", offset: offset_of!(BiasGradient, out_f32), size: size_of::<i32>() },
            Field { name: "beta", offset: offset_of!(BiasGradient, beta), size: size_of::<f32>() },
        ],
    },
    Layout {
        name: "Combine",
        size: size_of::<Combine>(),
        align: align_of::<Combine>(),
        fields: &[
            Field { name: "experts", offset: offset_of!(Combine, experts), size: size_of::<*const i32>() },
            Field { name: "weights", offset: offset_of!(Combine, weights), size: size_of::<*const f32>() },
            Field { name: "token_row", offset: offset_of!(Combine, token_row), size: size_of::<*const i32>() },
            Field { name: "experts_stride", offset: offset_of!(Combine, experts_stride), size: size_of::<i64>() },
            Field { name: "weights_stride", offset: offset_of!(Combine, weights_stride), size: size_of::<i64>() },
            Field { name: "token_row_stride", offset: offset_of!(Combine, token_row_stride), size: size_of::<i64>() },
            Field { name: "rows", offset: offset_of!(Combine, rows), size: size_of::<*const ::core::ffi::c_void>() },
            Field { name: "rows_stride", offset: offset_of!(Combine, rows_stride), size: size_of::<i64>() },
            Field {
                name: "shared",
                offset: offset_of!(Combine, shared),
                size: size_of::<*const ::core::ffi::c_void>(),
            },
            Field { name: "shared_stride", offset: offset_of!(Combine, shared_stride), size: size_of::<i64>() },
            Field { name: "shared_row", offset: offset_of!(Combine, shared_row), size: size_of::<*const i32>() },
            Field { name: "x", offset: offset_of!(Combine, x), size: size_of::<*const ::core::ffi::c_void>() },
            Field { name: "x_stride", offset: offset_of!(Combine, x_stride), size: size_of::<i64>() },
            Field {
                name: "constants",
                offset: offset_of!(Combine, constants),
                size: size_of::<*const ::core::ffi::c_void>(),
            },
            Field { name: "constants_stride", offset: offset_of!(Combine, constants_stride), size: size_of::<i64>() },
            Field { name: "y", offset: offset_of!(Combine, y), size: size_of::<*mut ::core::ffi::c_void>() },
            Field { name: "tokens", offset: offset_of!(Combine, tokens), size: size_of::<i32>() },
            Field { name: "width", offset: offset_of!(Combine, width), size: size_of::<i32>() },
            Field { name: "slots", offset: offset_of!(Combine, slots), size: size_of::<i32>() },
            Field { name: "routed", offset: offset_of!(Combine, routed), size: size_of::<i32>() },
            Field { name: "nulls", offset: offset_of!(Combine, nulls), size: size_of::<i32>() },
            Field { name: "null_kind", offset: offset_of!(Combine, null_kind), size: size_of::<i32>() },
            Field { name: "row_count", offset: offset_of!(Combine, row_count), size: size_of::<i32>() },
            Field { name: "reserved", offset: offset_of!(Combine, reserved), size: size_of::<i32>() },
        ],
    },
    Layout {
        name: "CombineBackward",
        size: size_of::<CombineBackward>(),
        align: align_of::<CombineBackward>(),
        fields: &[
            Field { name: "experts", offset: offset_of!(CombineBackward, experts), size: size_of::<*const i32>() },
            Field { name: "weights", offset: offset_of!(CombineBackward, weights), size: size_of::<*const f32>() },
            Field {
                name: "experts_stride",
                offset: offset_of!(CombineBackward, experts_stride),
                size: size_of::<i64>(),
            },
            Field {
                name: "weights_stride",
                offset: offset_of!(CombineBackward, weights_stride),
                size: size_of::<i64>(),
            },
            Field { name: "x", offset: offset_of!(CombineBackward, x), size: size_of::<*const ::core::ffi::c_void>() },
            Field { name: "x_stride", offset: offset_of!(CombineBackward, x_stride), size: size_of::<i64>() },
            Field {
                name: "constants",
                offset: offset_of!(CombineBackward, constants),
                size: size_of::<*const ::core::ffi::c_void>(),
            },
            Field {
                name: "constants_stride",
                offset: offset_of!(CombineBackward, constants_stride),
                size: size_of::<i64>(),
            },
            Field {
                name: "dy",
                offset: offset_of!(CombineBackward, dy),
                size: size_of::<*const ::core::ffi::c_void>(),
            },
            Field { name: "dy_stride", offset: offset_of!(CombineBackward, dy_stride), size: size_of::<i64>() },
            Field { name: "d_weights", offset: offset_of!(CombineBackward, d_weights), size: size_of::<*mut f32>() },
            Field {
                name: "d_constants",
                offset: offset_of!(CombineBackward, d_constants),
                size: size_of::<*mut ::core::ffi::c_void>(),
            },
            Field { name: "parts", offset: offset_of!(CombineBackward, parts), size: size_of::<*mut f32>() },
            Field { name: "tickets", offset: offset_of!(CombineBackward, tickets), size: size_of::<*mut u32>() },
            Field { name: "tokens", offset: offset_of!(CombineBackward, tokens), size: size_of::<i32>() },
            Field { name: "width", offset: offset_of!(CombineBackward, width), size: size_of::<i32>() },
            Field { name: "slots", offset: offset_of!(CombineBackward, slots), size: size_of::<i32>() },
            Field { name: "routed", offset: offset_of!(CombineBackward, routed), size: size_of::<i32>() },
            Field { name: "nulls", offset: offset_of!(CombineBackward, nulls), size: size_of::<i32>() },
            Field { name: "null_kind", offset: offset_of!(CombineBackward, null_kind), size: size_of::<i32>() },
            Field { name: "gradients", offset: offset_of!(CombineBackward, gradients), size: size_of::<i32>() },
            Field { name: "chunk", offset: offset_of!(CombineBackward, chunk), size: size_of::<i32>() },
            Field { name: "gradients_f32", offset: offset_of!(CombineBackward, gradients_f32), size: size_of::<i32>() },
            Field { name: "beta", offset: offset_of!(CombineBackward, beta), size: size_of::<f32>() },
        ],
    },
];

/// Every constant by its name.
pub const CONSTANTS: &[(&str, i32)] = &[
    ("MAX_CANDIDATES", MAX_CANDIDATES),
    ("BUDGET_BINS", BUDGET_BINS),
    ("GEMM_TILE_ROWS", GEMM_TILE_ROWS),
    ("GEMM_TILE_COLUMNS", GEMM_TILE_COLUMNS),
    ("GEMM_F32_TILE", GEMM_F32_TILE),
    ("GEMM_SHARED_BYTES", GEMM_SHARED_BYTES),
    ("HOPPER_TILE_COLUMNS", HOPPER_TILE_COLUMNS),
    ("HOPPER_TILE_ROWS", HOPPER_TILE_ROWS),
    ("HOPPER_SHARED_BYTES", HOPPER_SHARED_BYTES),
    ("HOPPER_CLOCKS", HOPPER_CLOCKS),
    ("MEASURE_RECEIVED_MAX", MEASURE_RECEIVED_MAX),
    ("MEASURE_RECEIVED_SUM", MEASURE_RECEIVED_SUM),
    ("MEASURE_RECEIVED_MEAN", MEASURE_RECEIVED_MEAN),
    ("MEASURE_GIVEN_PEAK", MEASURE_GIVEN_PEAK),
    ("MEASURE_GIVEN_ENTROPY", MEASURE_GIVEN_ENTROPY),
    ("MEASURE_GIVEN_SELF", MEASURE_GIVEN_SELF),
    ("MEASURE_LOG_SUM_EXP", MEASURE_LOG_SUM_EXP),
    ("RULE_NONE", RULE_NONE),
    ("RULE_AFFINE", RULE_AFFINE),
    ("RULE_MAX", RULE_MAX),
    ("RULE_MIN_MAX", RULE_MIN_MAX),
    ("POLICY_FIXED", POLICY_FIXED),
    ("POLICY_PROPORTIONAL", POLICY_PROPORTIONAL),
    ("POLICY_THRESHOLDS", POLICY_THRESHOLDS),
    ("POLICY_BUDGET", POLICY_BUDGET),
    ("POLICY_BUDGET_RUNNING", POLICY_BUDGET_RUNNING),
    ("POLICY_TOP_P", POLICY_TOP_P),
    ("POLICY_SCORE_THRESHOLD", POLICY_SCORE_THRESHOLD),
    ("POLICY_GIVEN", POLICY_GIVEN),
    ("SCORING_SOFTMAX", SCORING_SOFTMAX),
    ("SCORING_SIGMOID", SCORING_SIGMOID),
    ("SCORING_RELU", SCORING_RELU),
    ("DIVISOR_NONE", DIVISOR_NONE),
    ("DIVISOR_SELECTED", DIVISOR_SELECTED),
    ("DIVISOR_CANDIDATES", DIVISOR_CANDIDATES),
    ("STATE_MINIMUM", STATE_MINIMUM),
    ("STATE_MAXIMUM", STATE_MAXIMUM),
    ("STATE_PRICE", STATE_PRICE),
    ("STATE_STEPS", STATE_STEPS),
    ("ARRIVAL_TICKET", ARRIVAL_TICKET),
    ("ARRIVAL_UNMASKED", ARRIVAL_UNMASKED),
    ("ARRIVAL_LENGTH", ARRIVAL_LENGTH),
    ("FOUND_PRICE", FOUND_PRICE),
    ("FOUND_LEFT", FOUND_LEFT),
    ("FOUND_LEVEL", FOUND_LEVEL),
    ("FOUND_LEFT_AT_LEVEL", FOUND_LEFT_AT_LEVEL),
    ("FOUND_LENGTH", FOUND_LENGTH),
    ("ACTIVATION_NONE", ACTIVATION_NONE),
    ("ACTIVATION_RELU", ACTIVATION_RELU),
    ("ACTIVATION_GELU", ACTIVATION_GELU),
    ("ACTIVATION_GELU_TANH", ACTIVATION_GELU_TANH),
    ("ACTIVATION_SILU", ACTIVATION_SILU),
    ("ACTIVATION_SWIGLU", ACTIVATION_SWIGLU),
    ("ACTIVATION_GEGLU", ACTIVATION_GEGLU),
    ("ACTIVATION_REGLU", ACTIVATION_REGLU),
    ("NULL_ZERO", NULL_ZERO),
    ("NULL_COPY", NULL_COPY),
    ("NULL_CONSTANT", NULL_CONSTANT),
];
