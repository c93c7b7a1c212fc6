//! SPEC §3: scores, selection, weights, capacity and losses.

use serde::{Deserialize, Serialize};

/// How logits become a choice of experts and their weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RouterConfig {
    /// Function from logits to scores `s`.
    pub scoring: Scoring,
    /// What the selected scores are divided by.
    pub normalize: NormalizeWeights,
    /// Factor on every weight.
    pub routed_scaling: f64,
    /// An expert keeps at most `ceil(capacity_factor · R / E)` rows; absent: dropless.
    pub capacity_factor: Option<f64>,
    /// Which rows an overfull expert keeps.
    pub drop: Drop,
    /// Groups that the `E + Z` candidates are divided into, equally and in order.
    pub n_group: usize,
    /// Groups that a token may choose from: those with the largest sum of their two largest selection keys.
    pub topk_group: usize,
}

impl Default for RouterConfig {
    fn default() -> Self {
        Self {
            scoring: Scoring::Softmax,
            normalize: NormalizeWeights::Candidates,
            routed_scaling: 1.0,
            capacity_factor: None,
            drop: Drop::Weight,
            n_group: 1,
            topk_group: 1,
        }
    }
}

/// Function from logits `z` to scores `s`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scoring {
    /// `softmax(z)` over the candidates.
    #[default]
    Softmax,
    /// `1 / (1 + e^-z)` of each.
    Sigmoid,
    /// `max(z, 0)` of each.
    Relu,
}

/// What a token's selected scores are divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NormalizeWeights {
    /// Nothing (Switch).
    None,
    /// Their own sum (Mixtral, GShard). **Starves the router under variable `k`**: a token with one expert has
    /// weight 1 whatever the router says, so its router gradient is zero. Prefer [`NormalizeWeights::Candidates`].
    Selected,
    /// The sum over the token's first `k_max` candidates (DA-MoE): keeps scale and gradient at every `k`.
    #[default]
    Candidates,
}

/// Which rows an expert over its capacity keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Drop {
    /// The largest weights, ties to the lower token.
    #[default]
    Weight,
    /// The earliest tokens.
    Token,
}

/// Coefficients of the auxiliary losses, which enter the gradients with them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Losses {
    /// Of `E · Σ_e f_e p_e`.
    pub balance: f64,
    /// Of `mean_t (logsumexp z_t)²`.
    pub z: f64,
}
