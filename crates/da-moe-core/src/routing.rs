//! What the gate decides and what the dispatch plan says: the integers between the stages.
//!
//! What is read and what is written are two structs of the same fields, as [`TensorRef`] and [`TensorMut`] are two types: a generic over
//! them would put a trait and a lifetime bound into every signature of [`Backend`](crate::Backend). A field is described once.

use crate::{DType, Error, Result, TensorMut, TensorRef};

/// A finished routing from the caller, in place of importance and gate (SPEC §2, `given`).
#[derive(Clone, Copy, Debug)]
pub enum Routing<'a> {
    /// The convention of HuggingFace and of expert parallelism: one row per token, padded.
    Padded {
        /// `[T, K]` i32 expert ids; `E + Z` (or any negative number) means "none". `K ≤ k_max`.
        experts: TensorRef<'a, 2>,
        /// `[T, K]` f32 weights; ignored where the id means "none".
        weights: TensorRef<'a, 2>,
    },
    /// Compressed rows: token `t` uses entries `offsets[t] .. offsets[t + 1]`, at most `k_max` of them.
    Csr {
        /// `[T + 1]` i32, leading 0, non-decreasing.
        offsets: TensorRef<'a, 1>,
        /// `[nnz]` i32 expert ids below `E + Z`.
        experts: TensorRef<'a, 1>,
        /// `[nnz]` f32 weights.
        weights: TensorRef<'a, 1>,
    },
}

impl Routing<'_> {
    /// Entries of the caller's weights, flattened.
    pub fn entries(&self) -> usize {
        match self {
            Routing::Padded { weights, .. } => weights.shape().iter().product(),
            Routing::Csr { weights, .. } => weights.shape()[0],
        }
    }

    /// Checks shapes and types for `tokens` tokens with at most `k_max` experts each.
    pub(crate) fn check(&self, op: &'static str, tokens: usize, k_max: usize) -> Result<()> {
        match self {
            Routing::Padded { experts, weights } => {
                let [_, slots] = experts.shape();
                experts.expect_shape(op, "routing.experts", [tokens, slots])?;
                experts.expect_dtype(op, "routing.experts", &[DType::I32])?;
                weights.expect_shape(op, "routing.weights", [tokens, slots])?;
                weights.expect_dtype(op, "routing.weights", &[DType::F32])?;
                if slots <= k_max {
                    return Ok(());
                }
                let problem = format!("{slots} slots per token, but the layer's k_max is {k_max}");
                Err(Error::Value { op, argument: "routing.experts", problem })
            }
            Routing::Csr { offsets, experts, weights } => {
                offsets.expect_shape(op, "routing.offsets", [tokens + 1])?;
                offsets.expect_dtype(op, "routing.offsets", &[DType::I32])?;
                experts.expect_dtype(op, "routing.experts", &[DType::I32])?;
                weights.expect_shape(op, "routing.weights", experts.shape())?;
                weights.expect_dtype(op, "routing.weights", &[DType::F32])
            }
        }
    }
}

/// The gate's decision, in slot order: descending weight, ties to the lower expert (SPEC §4).
#[derive(Clone, Copy, Debug)]
pub struct Selection<'a> {
    /// `[T]` i32: `k_t`, before any capacity drop.
    pub k: TensorRef<'a, 1>,
    /// `[T, k_max]` i32: expert of each slot, −1 past `k_t`.
    pub experts: TensorRef<'a, 2>,
    /// `[T, k_max]` f32: weight of each slot, 0 past `k_t`.
    pub weights: TensorRef<'a, 2>,
    /// `[T, k_max]` i32: the first `k_max` candidates by selection key, −1 for those that a bias of −∞ forbids and that are not
    /// selected; the divisor of `candidates` is the others' sum.
    /// After a routing from outside: for each slot its position among the caller's entries of the token, −1 where absent.
    pub ranked: TensorRef<'a, 2>,
}

/// [`Selection`], to be written.
#[derive(Debug)]
pub struct SelectionMut<'a> {
    /// See [`Selection::k`].
    pub k: TensorMut<'a, 1>,
    /// See [`Selection::experts`].
    pub experts: TensorMut<'a, 2>,
    /// See [`Selection::weights`].
    pub weights: TensorMut<'a, 2>,
    /// See [`Selection::ranked`].
    pub ranked: TensorMut<'a, 2>,
}

/// The dispatch plan (SPEC §4): a stable counting sort of (token, slot) by expert. `R = offsets[E]` stays in memory;
/// everything sized by it has room for `T · k_max` rows.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// `[E + Z]` i32: rows of each routed expert after capacity drops, selections of each null expert.
    pub counts: TensorRef<'a, 1>,
    /// `[E + 1]` i32: first row of each expert, leading 0.
    pub offsets: TensorRef<'a, 1>,
    /// `[T · k_max]` i32, first `R` valid: token of each row, ascending within an expert.
    pub row_token: TensorRef<'a, 1>,
    /// `[T · k_max]` f32, first `R` valid: weight of each row.
    pub row_weight: TensorRef<'a, 1>,
    /// `[T, k_max]` i32: row of each slot; −1 where absent, dropped, or a null expert.
    pub token_row: TensorRef<'a, 2>,
    /// `[1]` i32: selections dropped by capacity.
    pub dropped: TensorRef<'a, 1>,
}

/// [`Plan`], to be written.
#[derive(Debug)]
pub struct PlanMut<'a> {
    /// See [`Plan::counts`].
    pub counts: TensorMut<'a, 1>,
    /// See [`Plan::offsets`].
    pub offsets: TensorMut<'a, 1>,
    /// See [`Plan::row_token`].
    pub row_token: TensorMut<'a, 1>,
    /// See [`Plan::row_weight`].
    pub row_weight: TensorMut<'a, 1>,
    /// See [`Plan::token_row`].
    pub token_row: TensorMut<'a, 2>,
    /// See [`Plan::dropped`].
    pub dropped: TensorMut<'a, 1>,
}

/// The rows of the shared expert where some tokens are masked: the others, in order (SPEC §4). Without a mask row `t` is token `t`.
#[derive(Clone, Copy, Debug)]
pub struct SharedPlan<'a> {
    /// `[2]` i32: 0 and the number of rows, as offsets of one expert.
    pub offsets: TensorRef<'a, 1>,
    /// `[T]` i32: token of each row, ascending.
    pub row_token: TensorRef<'a, 1>,
    /// `[T]` i32: row of each token; −1 of a masked one.
    pub token_row: TensorRef<'a, 1>,
}

/// [`SharedPlan`], to be written.
#[derive(Debug)]
pub struct SharedPlanMut<'a> {
    /// See [`SharedPlan::offsets`].
    pub offsets: TensorMut<'a, 1>,
    /// See [`SharedPlan::row_token`].
    pub row_token: TensorMut<'a, 1>,
    /// See [`SharedPlan::token_row`].
    pub token_row: TensorMut<'a, 1>,
}

/// Sentinel-tolerant reading of an expert id: `None` for "no expert".
pub fn expert_id(id: i32, candidates: usize) -> Option<usize> {
    usize::try_from(id).ok().filter(|&e| e < candidates)
}
