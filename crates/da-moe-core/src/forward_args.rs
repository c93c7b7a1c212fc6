//! What each stage reads and writes on the way down.
//!
//! "Storage" is the type of `x`; "hidden type" is [`hidden_type`](crate::hidden_type) of it, "row type"
//! [`Backend::row_type`](crate::Backend::row_type).

use crate::{
    Activation, ImportanceConfig, LayerConfig, NullExpert, Plan, PlanMut, Routing, Selection, SelectionMut,
    SharedPlanMut, TensorMut, TensorRef,
};

/// What importance is read off: the Transformer's own attention.
#[derive(Clone, Copy, Debug)]
pub enum Attention<'a> {
    /// Queries and keys; the attention matrix is never formed.
    QueryKey {
        /// `[T, H, dh]`, f32, bf16 or f16.
        q: TensorRef<'a, 3>,
        /// `[T, Hk, dh]` of `q`'s type; head `h` reads key head `h / (H / Hk)`.
        k: TensorRef<'a, 3>,
        /// `[H, T]` f32, natural logarithm, as FlashAttention returns it; computed when absent.
        lse: Option<TensorRef<'a, 2>>,
    },
    /// `[B, H, S, S]` probabilities, rows are queries; sequence `b` uses the leading `n_b × n_b`.
    Probabilities(TensorRef<'a, 4>),
}

impl<'a> Attention<'a> {
    /// Queries `[T, H, dh]` and keys `[T, Hk, dh]`, their log-sum-exp to be computed.
    pub fn query_key(q: TensorRef<'a, 3>, k: TensorRef<'a, 3>) -> Self {
        Self::QueryKey { q, k, lse: None }
    }
}

/// `z = x W_rᵀ` (SPEC §3).
#[derive(Debug)]
pub struct RouterArgs<'a> {
    /// `[T, D]` storage.
    pub x: TensorRef<'a, 2>,
    /// `[E + Z, D]`, the storage type or f32.
    pub weight: TensorRef<'a, 2>,
    /// Out: `[T, E + Z]` f32.
    pub logits: TensorMut<'a, 2>,
}

/// Importance (SPEC §1).
#[derive(Debug)]
pub struct ImportanceArgs<'a> {
    /// Source and normalisation; absent: importance is 0 (SPEC §1).
    pub config: Option<&'a ImportanceConfig>,
    /// `[B + 1]` i32; absent: one sequence.
    pub cu_seqlens: Option<TensorRef<'a, 1>>,
    /// `[T]` u8: 0 marks a padded or masked token, which neither asks nor answers in attention and gets 0.
    pub mask: Option<TensorRef<'a, 1>>,
    /// For attention sources.
    pub attention: Option<Attention<'a>>,
    /// `[T]` f32, for `external`.
    pub external: Option<TensorRef<'a, 1>>,
    /// `[T]` i32, for `token-frequency`.
    pub token_ids: Option<TensorRef<'a, 1>>,
    /// `[V]` f32, for `token-frequency`.
    pub token_frequency: Option<TensorRef<'a, 1>>,
    /// `[T, E + Z]` f32, for `router-entropy`.
    pub logits: TensorRef<'a, 2>,
    /// `E`, whose logarithm `router-entropy` divides by.
    pub experts: usize,
    /// `[STATE_LEN]` f32 carried between steps, see [`State`](crate::State).
    pub state: TensorMut<'a, 1>,
    /// Whether running statistics move.
    pub training: bool,
    /// Scratch: f32, as much as [`Backend::stage_scratch`](crate::Backend::stage_scratch) says.
    pub scratch: TensorMut<'a, 1>,
    /// Out: `[T]` f32.
    pub importance: TensorMut<'a, 1>,
}

/// Scores, `k_t`, selection, weights and losses (SPEC §2, §3).
#[derive(Debug)]
pub struct GateArgs<'a> {
    /// Policy, router and sizes.
    pub config: &'a LayerConfig,
    /// `[T, E + Z]` f32.
    pub logits: TensorRef<'a, 2>,
    /// `[T]` f32.
    pub importance: TensorRef<'a, 1>,
    /// `[E + Z]` f32, added to the scores for selection only.
    pub bias: Option<TensorRef<'a, 1>>,
    /// `[T]` u8: tokens with 0 get no experts and do not count in the losses.
    pub mask: Option<TensorRef<'a, 1>>,
    /// `[T]` i32, for the policy `given`.
    pub k_given: Option<TensorRef<'a, 1>>,
    /// `[STATE_LEN]` f32 carried between steps.
    pub state: TensorMut<'a, 1>,
    /// Whether the running price moves.
    pub training: bool,
    /// Out.
    pub selection: SelectionMut<'a>,
    /// Out: `[E + Z]` i32, selections of each candidate before any drop.
    pub load: TensorMut<'a, 1>,
    /// Out: `[1]` i32, unmasked tokens.
    pub unmasked: TensorMut<'a, 1>,
    /// Out: `[2]` f32, balance loss and z-loss without their coefficients.
    pub losses: TensorMut<'a, 1>,
}

/// A routing from outside, put into slot order (SPEC §2 `given`, §4). `selection.ranked` receives, for each slot, its
/// position among the caller's entries of that token (−1 where absent), for the way back.
#[derive(Debug)]
pub struct RoutingArgs<'a> {
    /// `E + Z`.
    pub candidates: usize,
    /// What the caller decided.
    pub routing: Routing<'a>,
    /// `[T]` u8: tokens with 0 get no experts.
    pub mask: Option<TensorRef<'a, 1>>,
    /// Out.
    pub selection: SelectionMut<'a>,
    /// Out: `[E + Z]` i32.
    pub load: TensorMut<'a, 1>,
    /// Out: `[1]` i32, unmasked tokens.
    pub unmasked: TensorMut<'a, 1>,
    /// Out: `[2]` f32, zeros: without a gate there are no losses.
    pub losses: TensorMut<'a, 1>,
}

/// The dispatch plan (SPEC §3 capacity, §4).
#[derive(Debug)]
pub struct PermuteArgs<'a> {
    /// Sizes and capacity.
    pub config: &'a LayerConfig,
    /// From the gate.
    pub selection: Selection<'a>,
    /// Out.
    pub plan: PlanMut<'a>,
    /// Where there is a shared expert and a mask.
    pub shared: Option<SharedPermute<'a>>,
}

/// Which tokens the shared expert takes.
#[derive(Debug)]
pub struct SharedPermute<'a> {
    /// `[T]` u8: tokens with 0 are not taken.
    pub mask: TensorRef<'a, 1>,
    /// Out.
    pub plan: SharedPlanMut<'a>,
}

/// Which rows go through which expert.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// Expert `e` takes rows `offsets[e] .. offsets[e + 1]` of the plan.
    Routed {
        /// `[E + 1]` i32.
        offsets: TensorRef<'a, 1>,
        /// `[rows]` i32.
        row_token: TensorRef<'a, 1>,
        /// `[rows]` f32; absent: 1, as of the shared expert.
        row_weight: Option<TensorRef<'a, 1>>,
    },
    /// One expert takes every token, with weight 1: the shared expert where no token is masked.
    All,
}

/// The two matrices of each expert and their optional biases.
#[derive(Clone, Copy, Debug)]
pub struct ExpertWeights<'a> {
    /// `[E, F or 2F, D]` storage; gate rows first when gated.
    pub w_in: TensorRef<'a, 3>,
    /// `[E, D, F]` storage.
    pub w_out: TensorRef<'a, 3>,
    /// `[E, F or 2F]` storage.
    pub b_in: Option<TensorRef<'a, 2>>,
    /// `[E, D]` storage.
    pub b_out: Option<TensorRef<'a, 2>>,
}

/// `o = W_out act(W_in x)` for every row (SPEC §5).
#[derive(Debug)]
pub struct ExpertsArgs<'a> {
    /// Activation.
    pub activation: Activation,
    /// `[T, D]` storage.
    pub x: TensorRef<'a, 2>,
    /// Who goes where.
    pub rows: Rows<'a>,
    /// The experts.
    pub weights: ExpertWeights<'a>,
    /// Out, when kept for backward: `[rows, F or 2F]` hidden type, before the activation.
    pub hidden: Option<TensorMut<'a, 2>>,
    /// Out: `[rows, D]` row type, not yet weighted.
    pub out: TensorMut<'a, 2>,
}

/// `y_t = Σ_slots g·o_row (+ null experts) (+ shared)`, in slot order (SPEC §5).
#[derive(Debug)]
pub struct CombineArgs<'a> {
    /// `E`: ids from here on are null experts.
    pub experts: usize,
    /// What null experts return.
    pub null_expert: NullExpert,
    /// `[T, D]` storage, for `copy`.
    pub x: TensorRef<'a, 2>,
    /// `[Z, D]` storage, for `constant`.
    pub constants: Option<TensorRef<'a, 2>>,
    /// From the gate.
    pub selection: Selection<'a>,
    /// From permute.
    pub plan: Plan<'a>,
    /// `[rows, D]` row type, from experts.
    pub rows: TensorRef<'a, 2>,
    /// `[T, D]` row type: the shared expert's output, by its rows.
    pub shared: Option<TensorRef<'a, 2>>,
    /// `[T]` i32, [`SharedPlan::token_row`](crate::SharedPlan::token_row); absent: row `t` is token `t`.
    pub shared_row: Option<TensorRef<'a, 1>>,
    /// Out: `[T, D]` storage.
    pub y: TensorMut<'a, 2>,
}
