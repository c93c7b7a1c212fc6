//! The oracle: docs/SPEC.md in plain f64 loops, forward and backward, slow and obvious on purpose, to be read beside it.
//!
//! [`Problem`] is one call with everything widened to f64; [`forward`] and [`backward`] answer it, stage by stage, with
//! the functions of the modules below; [`check::verify`] holds what a backend produced against the answer.
#![forbid(unsafe_code)]

mod activation;
mod attention;
mod backward;
pub mod check;
mod combine;
mod experts;
mod experts_per_token;
mod forward;
mod importance;
mod kept;
mod losses;
mod normalize;
mod plan;
mod problem;
mod scores;
mod select;
mod state;
mod weights;
mod widen;

pub use activation::{activate, activate_backward};
pub use attention::attention_importance;
pub use backward::{Gradients, backward, objective};
pub use combine::combine;
pub use experts::{ExpertRows, expert_rows, shared_rows};
pub use experts_per_token::{experts_per_token, levels_to_share};
pub use forward::{Decision, Forward, decide, forward, forward_with};
pub use importance::{importance, measure};
pub use kept::kept;
pub use losses::{balance_loss, z_loss};
pub use normalize::normalize;
pub use plan::{Plan, Slot, capacity_drops, plan};
pub use problem::{Attention, Experts, Problem};
pub use scores::{log_sum_exp, logits, probabilities, scores, shares, softmax};
pub use select::{Keys, ranked_by_logits, reachable, selection_order};
pub use state::{next_state, price, running_statistics};
pub use weights::{slot_order, weights};
