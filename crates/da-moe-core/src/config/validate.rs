//! SPEC §7, for the configuration: everything that can be refused before any tensor is seen.

use super::{ImportancePart, LayerConfig, Normalize, Policy, Source, Threshold};
use crate::{Error, Result};

/// Largest `E + Z` (SPEC §7).
pub const MAX_CANDIDATES: usize = 512;

const SAFE_SOURCES: &str = "given-peak, given-entropy, given-self, external, token-frequency, router-entropy";
const SAFE_NORMALIZATIONS: &str = "none, affine, running";
const SAFE_POLICIES: &str = "budget-running, proportional, thresholds, fixed, top-p, score-threshold, given";

fn refuse<T>(field: impl Into<String>, problem: impl Into<String>) -> Result<T> {
    Err(Error::Config { field: field.into(), problem: problem.into() })
}

fn finite(field: &str, value: f64) -> Result<()> {
    if value.is_finite() { Ok(()) } else { refuse(field, format!("{value} is not finite")) }
}

fn within(field: &str, value: f64, low: f64, high: f64) -> Result<()> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    refuse(field, format!("{value} is not between {low} and {high}"))
}

fn at_least(field: &str, value: f64, low: f64) -> Result<()> {
    finite(field, value)?;
    if value >= low { Ok(()) } else { refuse(field, format!("{value} is below {low}")) }
}

impl LayerConfig {
    /// Checks every rule of SPEC §7 that concerns the configuration, and the leak rule of SPEC §1.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field, [`Error::Leak`], or [`Error::Overflow`].
    pub fn validate(&self) -> Result<()> {
        self.validate_sizes()?;
        self.validate_importance()?;
        self.validate_policy()?;
        self.validate_router()?;
        finite("losses.balance", self.losses.balance)?;
        finite("losses.z", self.losses.z)?;
        self.validate_leak()
    }

    fn validate_sizes(&self) -> Result<()> {
        let positive = [
            ("hidden_size", self.hidden_size),
            ("num_experts", self.num_experts),
            ("moe_intermediate_size", self.moe_intermediate_size),
        ];
        if let Some((field, _)) = positive.into_iter().find(|(_, size)| *size == 0) {
            return refuse(field, "must be at least 1");
        }
        if self.num_experts.saturating_add(self.num_null_experts) > MAX_CANDIDATES {
            let problem = format!(
                "{} experts and {} null experts are more than {MAX_CANDIDATES} together",
                self.num_experts, self.num_null_experts
            );
            return refuse("num_experts", problem);
        }
        let widest = self.moe_intermediate_size.max(self.shared_intermediate_size);
        let sizes = [self.candidates(), 2, widest, self.hidden_size];
        let bytes = sizes.iter().try_fold(4usize, |product, &size| product.checked_mul(size));
        if bytes.is_none_or(|bytes| bytes > isize::MAX as usize) {
            return Err(Error::Overflow { what: "expert weights", sizes: sizes.to_vec(), limit: isize::MAX as usize });
        }
        Ok(())
    }

    fn validate_importance(&self) -> Result<()> {
        validate_source("importance", &self.importance.source)?;
        validate_normalize("importance", &self.importance.normalize)
    }

    fn validate_policy(&self) -> Result<()> {
        let candidates = self.candidates();
        let (k_min, k_max) = self.experts_per_token.bounds(candidates);
        if k_max > candidates {
            let field = match self.experts_per_token.max {
                Some(_) => "experts_per_token.max",
                None => "experts_per_token.k",
            };
            return refuse(field, format!("{k_max} experts per token, but there are {candidates}"));
        }
        if k_min > k_max {
            return refuse("experts_per_token.min", format!("{k_min} is above the maximum {k_max}"));
        }
        match &self.experts_per_token.policy {
            Policy::Fixed { k } if *k > candidates => {
                refuse("experts_per_token.k", format!("{k} experts per token, but there are {candidates}"))
            }
            Policy::Fixed { .. } | Policy::Given => Ok(()),
            Policy::Proportional { scale } => {
                scale.map_or(Ok(()), |scale| at_least("experts_per_token.scale", scale, 0.0))
            }
            Policy::Thresholds { thresholds } => {
                thresholds.iter().try_for_each(|c| finite("experts_per_token.thresholds", *c))?;
                if thresholds.windows(2).all(|pair| pair[0] < pair[1]) {
                    return Ok(());
                }
                refuse("experts_per_token.thresholds", "not strictly ascending")
            }
            Policy::Budget { mean_k } => validate_mean(*mean_k, k_min, k_max),
            Policy::BudgetRunning { mean_k, momentum } => {
                validate_mean(*mean_k, k_min, k_max)?;
                within("experts_per_token.momentum", *momentum, 0.0, 1.0)
            }
            Policy::TopP { p } if *p > 0.0 && *p <= 1.0 => Ok(()),
            Policy::TopP { p } => refuse("experts_per_token.p", format!("{p} is outside (0, 1]")),
            Policy::ScoreThreshold { threshold: Threshold::All(c) } => finite("experts_per_token.threshold", *c),
            Policy::ScoreThreshold { threshold: Threshold::Each(c) } => {
                c.iter().try_for_each(|c| finite("experts_per_token.threshold", *c))?;
                if c.len() == candidates {
                    return Ok(());
                }
                let problem = format!("{} thresholds for {candidates} experts", c.len());
                refuse("experts_per_token.threshold", problem)
            }
        }
    }

    fn validate_router(&self) -> Result<()> {
        let router = &self.router;
        finite("router.routed_scaling", router.routed_scaling)?;
        if let Some(factor) = router.capacity_factor {
            at_least("router.capacity_factor", factor, 0.0)?;
        }
        if router.n_group == 0 || !self.candidates().is_multiple_of(router.n_group) {
            let problem = format!("{} does not divide {} experts", router.n_group, self.candidates());
            return refuse("router.n_group", problem);
        }
        if router.topk_group == 0 || router.topk_group > router.n_group {
            let problem = format!("{} is not between 1 and n_group {}", router.topk_group, router.n_group);
            return refuse("router.topk_group", problem);
        }
        let reachable = self.candidates() / router.n_group * router.topk_group;
        if self.k_max() > reachable {
            let problem = format!("{reachable} experts are reachable, but a token may get {}", self.k_max());
            return refuse("router.topk_group", problem);
        }
        Ok(())
    }

    /// The leak rule. `budget` ranks tokens against later ones, so it falls under it as sources and normalisations do.
    fn validate_leak(&self) -> Result<()> {
        let policy = &self.experts_per_token.policy;
        if !self.importance.causal || self.importance.allow_future {
            return Ok(());
        }
        if let Some((field, choice)) = self.importance.future_choice() {
            let safe = if field.ends_with("source") { SAFE_SOURCES } else { SAFE_NORMALIZATIONS };
            return Err(Error::Leak { field, choice, safe });
        }
        match policy {
            Policy::Budget { .. } => {
                let field = "experts_per_token.policy".into();
                Err(Error::Leak { field, choice: policy.name(), safe: SAFE_POLICIES })
            }
            _ => Ok(()),
        }
    }
}

/// A mean outside of what every token gets could not be held.
fn validate_mean(mean_k: f64, k_min: usize, k_max: usize) -> Result<()> {
    let field = "experts_per_token.mean_k";
    at_least(field, mean_k, 0.0)?;
    if mean_k < k_min as f64 || mean_k > k_max as f64 {
        return refuse(field, format!("{mean_k} is not between the minimum {k_min} and the maximum {k_max}"));
    }
    Ok(())
}

fn validate_source(field: &str, source: &Source) -> Result<()> {
    match source {
        Source::Attention { scale: Some(scale), .. } => finite(&format!("{field}.scale"), *scale),
        Source::Mix(parts) if parts.is_empty() => refuse(format!("{field}.parts"), "is empty"),
        Source::Mix(parts) => parts
            .iter()
            .enumerate()
            .try_for_each(|(index, part)| validate_part(&format!("{field}.parts[{index}]"), part)),
        _ => Ok(()),
    }
}

fn validate_part(field: &str, part: &ImportancePart) -> Result<()> {
    finite(&format!("{field}.weight"), part.weight)?;
    if matches!(part.source, Source::Mix(_)) {
        return refuse(format!("{field}.source"), "a mix cannot contain a mix");
    }
    if matches!(part.normalize, Normalize::Running { .. }) {
        return refuse(format!("{field}.normalize"), "`running` carries one set of statistics, for the whole mix");
    }
    validate_source(field, &part.source)?;
    validate_normalize(field, &part.normalize)
}

fn validate_normalize(field: &str, normalize: &Normalize) -> Result<()> {
    match normalize {
        Normalize::Affine { a, b } => {
            finite(&format!("{field}.a"), *a)?;
            finite(&format!("{field}.b"), *b)
        }
        Normalize::Running { momentum } => within(&format!("{field}.momentum"), *momentum, 0.0, 1.0),
        _ => Ok(()),
    }
}
