//! The layer's configuration: one struct in Rust, one JSON object outside.
//!
//! Every choice of SPEC.md is a Rust enum; its JSON form is flat, the choice by name and its parameters as fields
//! beside it. A field that the chosen variant does not use is refused by name, as an unknown one is.

mod experts_per_token;
mod flat;
mod importance;
mod presets;
mod router;
mod validate;

pub use experts_per_token::{ExpertsPerToken, Policy, Threshold};
pub use importance::{AttentionSource, Heads, ImportanceConfig, ImportancePart, Normalize, Source};
pub use router::{Drop, Losses, NormalizeWeights, RouterConfig, Scoring};

use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Everything that defines a DA-MoE layer except its weights.
///
/// ```
/// use da_moe_core::LayerConfig;
/// let config = LayerConfig::from_json(r#"{
///     "hidden_size": 64, "num_experts": 8, "moe_intermediate_size": 128,
///     "importance": { "source": "received-max" },
///     "experts_per_token": { "policy": "proportional", "min": 1, "max": 4 } }"#)?;
/// assert_eq!(config.k_max(), 4);
/// # Ok::<(), da_moe_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerConfig {
    /// `D`: model width.
    pub hidden_size: usize,
    /// `E`: routed experts.
    pub num_experts: usize,
    /// `Z`: zero-computation experts, numbered after the routed ones.
    #[serde(default)]
    pub num_null_experts: usize,
    /// What a zero-computation expert returns.
    #[serde(default)]
    pub null_expert: NullExpert,
    /// `F`: width of a routed expert.
    pub moe_intermediate_size: usize,
    /// Width of the always-on shared expert; 0 for none.
    #[serde(default)]
    pub shared_intermediate_size: usize,
    /// Activation inside every expert.
    #[serde(default)]
    pub hidden_act: Activation,
    /// How the importance of a token is measured (SPEC §1).
    #[serde(default)]
    pub importance: ImportanceConfig,
    /// How importance becomes a number of experts (SPEC §2).
    #[serde(default)]
    pub experts_per_token: ExpertsPerToken,
    /// Scores, selection, weights and capacity (SPEC §3).
    #[serde(default)]
    pub router: RouterConfig,
    /// Coefficients of the auxiliary losses (SPEC §3).
    #[serde(default)]
    pub losses: Losses,
}

/// What a zero-computation expert returns for a token `x` (SPEC §2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NullExpert {
    /// Nothing.
    #[default]
    Zero,
    /// `x` itself.
    Copy,
    /// A learned vector, one per expert.
    Constant,
}

/// The function between an expert's two matrices (SPEC §5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// `max(h, 0)`.
    Relu,
    /// `h Φ(h)` with the exact normal distribution function.
    Gelu,
    /// GELU's tanh approximation.
    GeluTanh,
    /// `h σ(h)`.
    Silu,
    /// `silu(gate) · up`.
    #[default]
    Swiglu,
    /// `gelu(gate) · up`.
    Geglu,
    /// `relu(gate) · up`.
    Reglu,
}

impl Activation {
    /// Every activation, in documentation order.
    pub const ALL: [Activation; 7] = [
        Activation::Relu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Silu,
        Activation::Swiglu,
        Activation::Geglu,
        Activation::Reglu,
    ];

    /// Whether `W_in` holds a gate and an up projection (`2F` rows).
    pub const fn is_gated(self) -> bool {
        matches!(self, Activation::Swiglu | Activation::Geglu | Activation::Reglu)
    }

    /// Rows of `W_in` for an expert of width `width`: `F`, or `2F` when gated.
    pub const fn rows_in(self, width: usize) -> usize {
        if self.is_gated() { 2 * width } else { width }
    }

    /// Useful operations of one routed row forward: a multiplication and an addition for each weight. Backward takes
    /// twice as many. Padding does not count.
    pub fn row_operations(self, hidden: usize, width: usize) -> f64 {
        2.0 * hidden as f64 * (self.rows_in(width) + width) as f64
    }
}

impl LayerConfig {
    /// Parses and validates the JSON form.
    ///
    /// # Errors
    /// [`Error::Json`] with the path of an unknown, unused or mistyped field; [`Error::Config`] and [`Error::Leak`]
    /// from [`LayerConfig::validate`].
    pub fn from_json(text: &str) -> Result<Self> {
        let mut parser = serde_json::Deserializer::from_str(text);
        let config: LayerConfig = serde_path_to_error::deserialize(&mut parser).map_err(|error| {
            let path = error.path().to_string();
            Error::Json { field: if path == "." { String::new() } else { path }, problem: error.inner().to_string() }
        })?;
        parser.end().map_err(|error| Error::Json { field: String::new(), problem: error.to_string() })?;
        config.validate()?;
        Ok(config)
    }

    /// The JSON form, indented.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// `E + Z`: everything the router can choose.
    pub fn candidates(&self) -> usize {
        self.num_experts + self.num_null_experts
    }

    /// `k_min`.
    pub fn k_min(&self) -> usize {
        self.experts_per_token.bounds(self.candidates()).0
    }

    /// `k_max`: the number of slots per token in every plan.
    pub fn k_max(&self) -> usize {
        self.experts_per_token.bounds(self.candidates()).1
    }

    /// Rows of one routed expert's `W_in`.
    pub fn rows_in(&self) -> usize {
        self.hidden_act.rows_in(self.moe_intermediate_size)
    }

    /// Rows of the shared expert's `W_in`.
    pub fn shared_rows_in(&self) -> usize {
        self.hidden_act.rows_in(self.shared_intermediate_size)
    }
}

#[cfg(test)]
mod tests {
    use super::Activation;

    #[test]
    fn operations_of_a_row() {
        assert_eq!(Activation::Swiglu.row_operations(10, 100), 6.0 * 1000.0);
        assert_eq!(Activation::Relu.row_operations(10, 100), 4.0 * 1000.0);
    }
}
