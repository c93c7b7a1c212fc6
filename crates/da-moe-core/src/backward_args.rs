//! What each stage reads and writes on the way up (SPEC §6).

use crate::{Activation, ExpertWeights, LayerConfig, NullExpert, Plan, Routing, Rows, Selection, TensorMut, TensorRef};

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
    /// Out: `[Z, D]` storage or f32.
    pub d_constants: Option<TensorMut<'a, 2>>,
    /// Whether `d_constants` is added to what is there.
    pub accumulate: bool,
}

/// Gradients of the experts' own weights: all of the storage type, or all f32.
#[derive(Debug)]
pub struct ExpertGradients<'a> {
    /// `[E, F or 2F, D]`.
    pub w_in: TensorMut<'a, 3>,
    /// `[E, D, F]`.
    pub w_out: TensorMut<'a, 3>,
    /// `[E, F or 2F]`.
    pub b_in: Option<TensorMut<'a, 2>>,
    /// `[E, D]`.
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
    /// `[rows, F or 2F]` hidden type as kept by forward; recomputed from `x` when absent.
    pub hidden: Option<TensorRef<'a, 2>>,
    /// Scratch: f32, as much as [`Backend::stage_scratch`](crate::Backend::stage_scratch) says.
    pub scratch: TensorMut<'a, 1>,
    /// Out: `[rows, D]` row type, `W_inᵀ dh` of each row.
    pub dx_rows: TensorMut<'a, 2>,
    /// Out: `[rows]` f32, `⟨dy, o⟩` of each row.
    pub d_row_weight: TensorMut<'a, 1>,
    /// Out.
    pub gradients: ExpertGradients<'a>,
    /// Whether `gradients` are added to what is there.
    pub accumulate: bool,
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
    /// `[rows, D]` row type, from experts.
    pub dx_rows: TensorRef<'a, 2>,
    /// `[rows]` f32, from experts.
    pub d_row_weight: TensorRef<'a, 1>,
    /// `[T, D]` row type: the shared expert's part, by its rows.
    pub shared_dx: Option<TensorRef<'a, 2>>,
    /// `[T]` i32, [`SharedPlan::token_row`](crate::SharedPlan::token_row); absent: row `t` is token `t`.
    pub shared_row: Option<TensorRef<'a, 1>>,
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
    /// `[1]` i32, from the gate.
    pub unmasked: TensorRef<'a, 1>,
    /// Scratch: `[T, E + Z]` f32, holds `dz`.
    pub d_logits: TensorMut<'a, 2>,
    /// Out: `[E + Z, D]` of `weight`'s type or f32.
    pub d_weight: TensorMut<'a, 2>,
    /// Whether `d_weight` is added to what is there.
    pub accumulate: bool,
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
    /// Factor on the gradients of the losses, see [`Gradients::loss_scale`](crate::Gradients::loss_scale).
    pub loss_scale: f32,
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
    /// From [`Backend::routing`](crate::Backend::routing); `ranked` holds each slot's position among the caller's entries.
    pub selection: Selection<'a>,
    /// `[T, k_max]` f32.
    pub d_weights: TensorRef<'a, 2>,
    /// Out: f32 of the caller's weights, flattened: `T·K` or `nnz`; 0 where no expert was named.
    pub d_routing: TensorMut<'a, 1>,
}
