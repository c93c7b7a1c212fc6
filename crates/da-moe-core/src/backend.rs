//! One method per stage and direction. Data flows straight down: router product, importance, gate, permute, experts,
//! combine; and straight up again in backward. A fused kernel replaces the inside of a stage, never the order.
//!
//! Arguments are views checked by [`Layer`](crate::Layer) or, for engines that call stages one by one, by the backend
//! itself. Outputs are the caller's and are overwritten entirely.

use crate::{
    Activation, DType, ImportanceConfig, LayerConfig, NullExpert, Plan, PlanMut, Result, Routing, Selection,
    SelectionMut, TensorMut, TensorRef,
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
    /// Scratch: `[3, T]` f32.
    pub scratch: TensorMut<'a, 2>,
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
        /// `[rows]` f32.
        row_weight: TensorRef<'a, 1>,
    },
    /// One expert takes every token, with weight 1: the shared expert.
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
    /// Out, when kept for backward: `[rows, F or 2F]` intermediate, before the activation.
    pub hidden: Option<TensorMut<'a, 2>>,
    /// Out: `[rows, D]` intermediate, not yet weighted.
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
    /// `[rows, D]` intermediate, from experts.
    pub rows: TensorRef<'a, 2>,
    /// `[T, D]` intermediate: the shared expert's output.
    pub shared: Option<TensorRef<'a, 2>>,
    /// Out: `[T, D]` storage.
    pub y: TensorMut<'a, 2>,
}

/// Gradient through the null experts' part of combine (SPEC §6).
#[derive(Debug)]
pub struct CombineBackwardArgs<'a> {
    /// `E`.
    pub experts: usize,
    /// What null experts return.
    pub null_expert: NullExpert,
    /// `[T, D]` storage.
    pub x: TensorRef<'a, 2>,
    /// `[Z, D]` storage.
    pub constants: Option<TensorRef<'a, 2>>,
    /// From the gate.
    pub selection: Selection<'a>,
    /// `[T, D]` storage.
    pub dy: TensorRef<'a, 2>,
    /// Out: `[T, k_max]` f32, `⟨dy, null(x)⟩` for null slots and 0 elsewhere.
    pub d_weights: TensorMut<'a, 2>,
    /// Out: `[Z, D]` storage.
    pub d_constants: Option<TensorMut<'a, 2>>,
}

/// Gradients of the experts' own weights.
#[derive(Debug)]
pub struct ExpertGradients<'a> {
    /// `[E, F or 2F, D]` storage.
    pub w_in: TensorMut<'a, 3>,
    /// `[E, D, F]` storage.
    pub w_out: TensorMut<'a, 3>,
    /// `[E, F or 2F]` storage.
    pub b_in: Option<TensorMut<'a, 2>>,
    /// `[E, D]` storage.
    pub b_out: Option<TensorMut<'a, 2>>,
}

/// Gradient through the experts (SPEC §6).
#[derive(Debug)]
pub struct ExpertsBackwardArgs<'a> {
    /// Activation.
    pub activation: Activation,
    /// `[T, D]` storage.
    pub x: TensorRef<'a, 2>,
    /// `[T, D]` storage.
    pub dy: TensorRef<'a, 2>,
    /// Who went where.
    pub rows: Rows<'a>,
    /// The experts.
    pub weights: ExpertWeights<'a>,
    /// `[rows, F or 2F]` intermediate as kept by forward; recomputed from `x` when absent.
    pub hidden: Option<TensorRef<'a, 2>>,
    /// Scratch: `[rows, F or 2F]` intermediate, holds `dh`.
    pub d_hidden: TensorMut<'a, 2>,
    /// Scratch: `[rows, F]` intermediate, holds `g·a`.
    pub activated: TensorMut<'a, 2>,
    /// Out: `[rows, D]` intermediate, `W_inᵀ dh` of each row.
    pub dx_rows: TensorMut<'a, 2>,
    /// Out: `[rows]` f32, `⟨dy, o⟩` of each row.
    pub d_row_weight: TensorMut<'a, 1>,
    /// Out.
    pub gradients: ExpertGradients<'a>,
}

/// Gather-and-sum of the rows' gradients back to their tokens (SPEC §6).
#[derive(Debug)]
pub struct PermuteBackwardArgs<'a> {
    /// `E`.
    pub experts: usize,
    /// What null experts return.
    pub null_expert: NullExpert,
    /// From the gate.
    pub selection: Selection<'a>,
    /// From permute.
    pub plan: Plan<'a>,
    /// `[rows, D]` intermediate, from experts.
    pub dx_rows: TensorRef<'a, 2>,
    /// `[rows]` f32, from experts.
    pub d_row_weight: TensorRef<'a, 1>,
    /// `[T, D]` intermediate: the shared expert's part.
    pub shared_dx: Option<TensorRef<'a, 2>>,
    /// `[T, D]` storage, for `copy`.
    pub dy: TensorRef<'a, 2>,
    /// In and out: `[T, k_max]` f32; null slots are filled, routed ones are filled here, dropped ones stay 0.
    pub d_weights: TensorMut<'a, 2>,
    /// Out: `[T, D]` f32, everything of `dx` but the router's part.
    pub dx: TensorMut<'a, 2>,
}

/// What the gradient through the router needs.
#[derive(Debug)]
pub struct RouterBackward<'a> {
    /// `[E + Z, D]`, the storage type or f32.
    pub weight: TensorRef<'a, 2>,
    /// `[T, E + Z]` f32.
    pub logits: TensorRef<'a, 2>,
    /// `[E + Z]` i32, from the gate.
    pub load: TensorRef<'a, 1>,
    /// Scratch: `[T, E + Z]` f32, holds `dz`.
    pub d_logits: TensorMut<'a, 2>,
    /// Out: `[E + Z, D]` of `weight`'s type.
    pub d_weight: TensorMut<'a, 2>,
}

/// Gradient through weights, scores, losses and the router product (SPEC §6).
#[derive(Debug)]
pub struct GateBackwardArgs<'a> {
    /// Router and losses.
    pub config: &'a LayerConfig,
    /// `[T, D]` storage.
    pub x: TensorRef<'a, 2>,
    /// `[T]` u8.
    pub mask: Option<TensorRef<'a, 1>>,
    /// From the gate.
    pub selection: Selection<'a>,
    /// `[T, k_max]` f32.
    pub d_weights: TensorRef<'a, 2>,
    /// `[T, D]` f32, from permute's backward.
    pub dx_rows: TensorRef<'a, 2>,
    /// Absent when the routing came from outside: `dx` is then `dx_rows` alone.
    pub router: Option<RouterBackward<'a>>,
    /// Out: `[T, D]` storage.
    pub dx: TensorMut<'a, 2>,
}

/// Gradient of a routing from outside: `d_weights` put back into the caller's layout.
#[derive(Debug)]
pub struct RoutingBackwardArgs<'a> {
    /// What the caller gave forward.
    pub routing: Routing<'a>,
    /// From [`Backend::routing`]; `ranked` holds each slot's position among the caller's entries.
    pub selection: Selection<'a>,
    /// `[T, k_max]` f32.
    pub d_weights: TensorRef<'a, 2>,
    /// Out: f32 of the caller's weights, flattened: `T·K` or `nnz`; 0 where no expert was named.
    pub d_routing: TensorMut<'a, 1>,
}

/// How the selection bias follows the load (SPEC §3).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BiasUpdate {
    /// `b_e += rate · sign(mean count − count_e)`.
    Sign {
        /// Step size.
        rate: f32,
    },
    /// `b_e += rate · (mean count − count_e) / mean count`.
    Proportional {
        /// Step size.
        rate: f32,
    },
}

/// Executes the stages.
pub trait Backend: Send + Sync {
    /// What work is ordered on; `()` where calls are synchronous.
    type Stream: ?Sized;

    /// What does the work, for people.
    fn describe(&self) -> String;

    /// `len` zeros of type `dtype`.
    ///
    /// # Errors
    /// When the memory cannot be had.
    fn allocate(&self, dtype: DType, len: usize) -> Result<crate::Buffer>;

    /// The type in which everything per row (hidden, activated, output, their gradients) passes between stages, for a
    /// storage type.
    fn intermediate(&self, storage: DType) -> DType;

    /// Refuses contents that would index out of bounds, where the backend can read them without waiting.
    ///
    /// # Errors
    /// [`Error::Value`](crate::Error::Value) naming the tensor, the position and the value.
    fn check_contents(&self, config: &LayerConfig, inputs: &crate::Inputs<'_>, tokens: usize) -> Result<()>;

    /// The router product.
    ///
    /// # Errors
    /// Views of wrong shape or type.
    fn router(&self, stream: &Self::Stream, args: RouterArgs<'_>) -> Result<()>;
    /// Stage 1.
    ///
    /// # Errors
    /// Views of wrong shape or type, or missing for the configured source.
    fn importance(&self, stream: &Self::Stream, args: ImportanceArgs<'_>) -> Result<()>;
    /// Stage 2.
    ///
    /// # Errors
    /// Views of wrong shape or type, or missing for the configured policy.
    fn gate(&self, stream: &Self::Stream, args: GateArgs<'_>) -> Result<()>;
    /// Stage 2 for a routing from outside.
    ///
    /// # Errors
    /// Views of wrong shape or type, or ids out of range.
    fn routing(&self, stream: &Self::Stream, args: RoutingArgs<'_>) -> Result<()>;
    /// Stage 3.
    ///
    /// # Errors
    /// Views of wrong shape or type.
    fn permute(&self, stream: &Self::Stream, args: PermuteArgs<'_>) -> Result<()>;
    /// Stage 4.
    ///
    /// # Errors
    /// Views of wrong shape or type.
    fn experts(&self, stream: &Self::Stream, args: ExpertsArgs<'_>) -> Result<()>;
    /// Stage 5.
    ///
    /// # Errors
    /// Views of wrong shape or type.
    fn combine(&self, stream: &Self::Stream, args: CombineArgs<'_>) -> Result<()>;

    /// Stage 5, backward.
    ///
    /// # Errors
    /// Views of wrong shape or type.
    fn combine_backward(&self, stream: &Self::Stream, args: CombineBackwardArgs<'_>) -> Result<()>;
    /// Stage 4, backward.
    ///
    /// # Errors
    /// Views of wrong shape or type.
    fn experts_backward(&self, stream: &Self::Stream, args: ExpertsBackwardArgs<'_>) -> Result<()>;
    /// Stage 3, backward.
    ///
    /// # Errors
    /// Views of wrong shape or type.
    fn permute_backward(&self, stream: &Self::Stream, args: PermuteBackwardArgs<'_>) -> Result<()>;
    /// Stage 2, backward, with the router product.
    ///
    /// # Errors
    /// Views of wrong shape or type.
    fn gate_backward(&self, stream: &Self::Stream, args: GateBackwardArgs<'_>) -> Result<()>;

    /// Stage 2, backward, for a routing from outside.
    ///
    /// # Errors
    /// Views of wrong shape or type.
    fn routing_backward(&self, stream: &Self::Stream, args: RoutingBackwardArgs<'_>) -> Result<()>;

    /// Moves the selection bias `[E + Z]` f32 against the load `[E + Z]` i32 (SPEC §3).
    ///
    /// # Errors
    /// Views of wrong shape or type.
    fn update_bias(
        &self,
        stream: &Self::Stream,
        update: BiasUpdate,
        load: TensorRef<'_, 1>,
        bias: TensorMut<'_, 1>,
    ) -> Result<()>;
}
