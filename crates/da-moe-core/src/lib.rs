//! Vocabulary of the `da-moe` workspace: configuration, tensors, errors, the [`Backend`] trait and the [`Layer`] written
//! once on top of it. No arithmetic happens here.
//!
//! Symbols, everywhere: `T` tokens, `D` model width, `F` expert width, `E` routed experts, `Z` zero-computation experts,
//! `k_t` experts of token `t`, `R` routed rows. Section numbers refer to the project's specification, `docs/SPEC.md`.

#![forbid(unsafe_code)]

mod backend;
mod backward_args;
mod config;
mod dtype;
mod error;
mod forward_args;
mod inputs;
mod keep;
mod layer;
mod memory;
mod parameters;
mod report;
mod routing;
mod scratch;
mod shapes;
mod sizes;
mod slice;
mod stage_checks;
mod state;
mod step;
mod tensor;
mod timed;
mod weights;

pub use backend::{Backend, BiasUpdate};
pub use backward_args::{
    CombineBackwardArgs, ExpertGradients, ExpertsBackwardArgs, GateBackwardArgs, PermuteBackwardArgs, RouterBackward,
    RoutingBackwardArgs,
};
pub use config::{
    Activation, AttentionSource, Drop, ExpertsPerToken, Heads, ImportanceConfig, ImportancePart, LayerConfig, Losses,
    Normalize, NormalizeWeights, NullExpert, Policy, RouterConfig, Scoring, Source, Threshold,
};
pub use dtype::{DType, Storage, bf16, f16};
pub use error::{Error, Result};
pub use forward_args::{
    Attention, CombineArgs, ExpertWeights, ExpertsArgs, GateArgs, ImportanceArgs, PermuteArgs, RouterArgs, RoutingArgs,
    Rows, SharedPermute,
};
pub use inputs::Inputs;
pub use keep::{Keep, hidden_type};
pub use layer::Layer;
pub use memory::{ForeignMemory, Memory, same_elements};
pub use parameters::Parameters;
pub use report::Report;
pub use routing::{Plan, PlanMut, Routing, Selection, SelectionMut, SharedPlan, SharedPlanMut, expert_id};
pub use scratch::Scratch;
pub use shapes::Shape;
pub use sizes::Sizes;
pub use slice::{Buffer, Element, Slice, SliceMut};
pub use state::{STATE_LEN, State};
pub use step::{Step, StepBytes};
pub use tensor::{TensorMut, TensorRef, expect_host};
pub use timed::{StageTimes, Timed};
pub use weights::{Gradients, Weights};
