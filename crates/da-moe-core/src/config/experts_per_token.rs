//! SPEC §2: how importance becomes `k_t`.

use super::flat::{refuse_unused, required};
use serde::{Deserialize, Serialize};

/// A policy and the interval that every `k_t` ends in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "FlatPolicy", into = "FlatPolicy")]
pub struct ExpertsPerToken {
    /// The rule.
    pub policy: Policy,
    /// `k_min`; absent: `k` for [`Policy::Fixed`], otherwise 1.
    pub min: Option<usize>,
    /// `k_max`; absent: `k` for [`Policy::Fixed`], `k_min + m` for [`Policy::Thresholds`], otherwise `E + Z`.
    pub max: Option<usize>,
}

/// The rule that gives token `t` its number of experts (the table of SPEC §2).
#[derive(Clone, Debug, PartialEq)]
pub enum Policy {
    /// Always `k`.
    Fixed {
        /// Experts per token.
        k: usize,
    },
    /// `ceil(I · scale)`.
    Proportional {
        /// Factor on importance; `E` when absent.
        scale: Option<f64>,
    },
    /// `k_min + #{ I ≥ c_i }`.
    Thresholds {
        /// Strictly ascending.
        thresholds: Vec<f64>,
    },
    /// The most important pairs (token, level) of the batch, holding the mean exactly.
    Budget {
        /// Mean experts per unmasked token.
        mean_k: f64,
    },
    /// [`Policy::Budget`]'s rule with a price carried between steps.
    BudgetRunning {
        /// Mean experts per unmasked token that the price is steered toward.
        mean_k: f64,
        /// Share of the old price kept at each training step.
        momentum: f64,
    },
    /// As many experts as it takes for their probabilities to reach `p`.
    TopP {
        /// In (0, 1].
        p: f64,
    },
    /// Every expert whose selection key exceeds its threshold.
    ScoreThreshold {
        /// One for all, or one for each of the `E + Z` candidates.
        threshold: Threshold,
    },
    /// `k[T]` from the caller.
    Given,
}

/// The threshold of [`Policy::ScoreThreshold`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Threshold {
    /// One for all candidates.
    All(f64),
    /// One for each candidate.
    Each(Vec<f64>),
}

impl Threshold {
    /// The threshold of candidate `e`.
    pub fn of(&self, e: usize) -> f64 {
        match self {
            Threshold::All(c) => *c,
            Threshold::Each(c) => c.get(e).copied().unwrap_or(f64::INFINITY),
        }
    }
}

impl Policy {
    /// Name in the JSON form.
    pub const fn name(&self) -> &'static str {
        match self {
            Policy::Fixed { .. } => "fixed",
            Policy::Proportional { .. } => "proportional",
            Policy::Thresholds { .. } => "thresholds",
            Policy::Budget { .. } => "budget",
            Policy::BudgetRunning { .. } => "budget-running",
            Policy::TopP { .. } => "top-p",
            Policy::ScoreThreshold { .. } => "score-threshold",
            Policy::Given => "given",
        }
    }

    /// Whether `k_t` is computed from importance at all.
    pub const fn uses_importance(&self) -> bool {
        matches!(
            self,
            Policy::Proportional { .. }
                | Policy::Thresholds { .. }
                | Policy::Budget { .. }
                | Policy::BudgetRunning { .. }
        )
    }
}

impl ExpertsPerToken {
    /// The policy with its usual interval.
    pub fn new(policy: Policy) -> Self {
        Self { policy, min: None, max: None }
    }

    /// The policy with `k_t` held in `min ..= max`.
    pub fn between(policy: Policy, min: usize, max: usize) -> Self {
        Self { policy, min: Some(min), max: Some(max) }
    }

    /// `(k_min, k_max)` for a router with `candidates` choices.
    pub fn bounds(&self, candidates: usize) -> (usize, usize) {
        let usual_min = match self.policy {
            Policy::Fixed { k } => k.min(self.max.unwrap_or(k)),
            _ => 1.min(self.max.unwrap_or(1)),
        };
        let min = self.min.unwrap_or(usual_min);
        let usual_max = match &self.policy {
            Policy::Fixed { k } => (*k).max(min),
            Policy::Thresholds { thresholds } => min.saturating_add(thresholds.len()).min(candidates),
            _ => candidates,
        };
        (min, self.max.unwrap_or(usual_max))
    }
}

impl Default for ExpertsPerToken {
    /// The paper's rule: `ceil(I · E)`, at least 1.
    fn default() -> Self {
        Self::new(Policy::Proportional { scale: None })
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PolicyName {
    Fixed,
    Proportional,
    Thresholds,
    Budget,
    BudgetRunning,
    TopP,
    ScoreThreshold,
    Given,
}

/// The JSON object: every field of every variant, all optional.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FlatPolicy {
    policy: Option<PolicyName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    k: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scale: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    thresholds: Option<Vec<f64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mean_k: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    momentum: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    threshold: Option<Threshold>,
}

impl TryFrom<FlatPolicy> for ExpertsPerToken {
    type Error = String;

    fn try_from(mut flat: FlatPolicy) -> Result<Self, String> {
        let policy = match flat.policy.take().unwrap_or(PolicyName::Proportional) {
            PolicyName::Fixed => Policy::Fixed { k: required(&mut flat.k, "k", "fixed")? },
            PolicyName::Proportional => Policy::Proportional { scale: flat.scale.take() },
            PolicyName::Thresholds => {
                Policy::Thresholds { thresholds: required(&mut flat.thresholds, "thresholds", "thresholds")? }
            }
            PolicyName::Budget => Policy::Budget { mean_k: required(&mut flat.mean_k, "mean_k", "budget")? },
            PolicyName::BudgetRunning => Policy::BudgetRunning {
                mean_k: required(&mut flat.mean_k, "mean_k", "budget-running")?,
                momentum: required(&mut flat.momentum, "momentum", "budget-running")?,
            },
            PolicyName::TopP => Policy::TopP { p: required(&mut flat.p, "p", "top-p")? },
            PolicyName::ScoreThreshold => {
                Policy::ScoreThreshold { threshold: required(&mut flat.threshold, "threshold", "score-threshold")? }
            }
            PolicyName::Given => Policy::Given,
        };
        let left = [
            ("k", flat.k.is_some()),
            ("scale", flat.scale.is_some()),
            ("thresholds", flat.thresholds.is_some()),
            ("mean_k", flat.mean_k.is_some()),
            ("momentum", flat.momentum.is_some()),
            ("p", flat.p.is_some()),
            ("threshold", flat.threshold.is_some()),
        ];
        refuse_unused(&left, policy.name())?;
        Ok(Self { policy, min: flat.min, max: flat.max })
    }
}

impl From<ExpertsPerToken> for FlatPolicy {
    fn from(config: ExpertsPerToken) -> Self {
        let mut flat = FlatPolicy { min: config.min, max: config.max, ..FlatPolicy::default() };
        flat.policy = Some(match config.policy {
            Policy::Fixed { k } => {
                flat.k = Some(k);
                PolicyName::Fixed
            }
            Policy::Proportional { scale } => {
                flat.scale = scale;
                PolicyName::Proportional
            }
            Policy::Thresholds { thresholds } => {
                flat.thresholds = Some(thresholds);
                PolicyName::Thresholds
            }
            Policy::Budget { mean_k } => {
                flat.mean_k = Some(mean_k);
                PolicyName::Budget
            }
            Policy::BudgetRunning { mean_k, momentum } => {
                (flat.mean_k, flat.momentum) = (Some(mean_k), Some(momentum));
                PolicyName::BudgetRunning
            }
            Policy::TopP { p } => {
                flat.p = Some(p);
                PolicyName::TopP
            }
            Policy::ScoreThreshold { threshold } => {
                flat.threshold = Some(threshold);
                PolicyName::ScoreThreshold
            }
            Policy::Given => PolicyName::Given,
        });
        flat
    }
}
