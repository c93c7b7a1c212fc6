//! What is compared: a grid of variants and seeds, and the questions that it should answer, stated before anything runs.

use crate::allocation::{Rank, Signal};
use crate::config::RunConfig;
use crate::error::{Result, TrainError};
use crate::fine_tuning::FineTuning;
use crate::header;
use crate::model_config::{ModelConfig, Schedule};
use crate::variant::Variant;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::path::Path;

/// A grid of runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Its name, which names its folders.
    pub name: String,
    /// What is trained on.
    pub text: Text,
    /// Tokens of the byte-pair vocabulary, learned from the training text.
    pub vocabulary: usize,
    /// Runs that share a model and its schedule.
    pub groups: Vec<Group>,
}

/// Text that runs are trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Text {
    /// The prose that `cargo xtask data` writes.
    Data,
    /// This project's own documentation.
    Documentation,
}

/// Variants of one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// The model; its vocabulary is the plan's.
    pub model: ModelConfig,
    /// Its training.
    pub schedule: Schedule,
    /// One run of every variant for each.
    pub seeds: Vec<u64>,
    /// Batches of held-out text that decide.
    pub held_out_batches: u64,
    /// What is compared.
    pub variants: Vec<Variant>,
    /// Controls whose number of experts is another variant's.
    #[serde(default)]
    pub matched: Vec<Matched>,
    /// Names of the variants with 1, 2, … experts for every token: where more experts do not help, allocating them cannot.
    #[serde(default)]
    pub headroom: Vec<String>,
    /// The questions.
    #[serde(default)]
    pub comparisons: Vec<Comparison>,
    /// Sets of labelled text that every model is fine-tuned on afterwards.
    #[serde(default)]
    pub fine_tuning: Option<FineTuning>,
}

/// A number of experts that does not depend on the token, with the mean that another variant turned out to have: each token
/// gets the integer below or the one above, at random.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Matched {
    /// What reports call it.
    pub name: String,
    /// The variant.
    pub mean_k_of: String,
}

/// A difference of two variants, run by run of the same seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Comparison {
    /// What it answers.
    pub question: String,
    /// The variant whose advantage is measured.
    pub of: String,
    /// What it is measured against.
    pub against: String,
    /// Whether the report's first sentence is about it.
    #[serde(default)]
    pub headline: bool,
}

/// One run of the grid.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Name of its group.
    pub group: String,
    /// Name of its variant.
    pub variant: String,
    /// Its seed.
    pub seed: u64,
    /// Name of the variant whose mean it needs to know first.
    pub after: Option<String>,
}

impl Plan {
    /// Reads a plan and checks that every run of it could start.
    ///
    /// # Errors
    /// A file that cannot be read, an unknown field, a name that there is no variant for, or a configuration that is refused.
    pub fn read(path: &Path) -> Result<Self> {
        let text = crate::pointer::read_to_string(path).map_err(TrainError::file(path))?;
        Self::parse(&text, path)
    }

    /// The same of a text; `path` is what errors call it.
    ///
    /// # Errors
    /// As [`Plan::read`].
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let wrong = |error: serde_json::Error| TrainError::contents(path, error);
        // Of two fields of one name in a layer the last would count; what is read from the text itself says where errors are.
        header::json::<IgnoredAny>(text).map_err(wrong)?;
        let plan: Self = serde_json::from_str(text).map_err(wrong)?;
        plan.validate()?;
        Ok(plan)
    }

    /// Every run in the order in which they are made: those that the headline needs first, and among these all variants of a seed
    /// before the next seed, so that a plan that is stopped has an answer, if a less certain one.
    pub fn jobs(&self) -> Vec<Job> {
        let most = self.groups.iter().map(|group| group.seeds.len()).max().unwrap_or(0);
        let rounds = (0..most).flat_map(|round| self.groups.iter().map(move |group| (round, group)));
        let jobs = rounds.flat_map(|(round, group)| group.jobs(round).into_iter().map(move |job| (group, job)));
        let (first, later): (Vec<_>, Vec<_>) = jobs.partition(|(group, job)| group.is_headline(&job.variant));
        first.into_iter().chain(later).map(|(_, job)| job).collect()
    }

    /// A group by its name.
    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|group| group.name == name)
    }
}

impl Group {
    /// Every variant by name, those with a matched number of experts last.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let variants = self.variants.iter().map(|variant| variant.name.as_str());
        variants.chain(self.matched.iter().map(|matched| matched.name.as_str()))
    }

    fn is_headline(&self, variant: &str) -> bool {
        let asked = self.comparisons.iter().filter(|comparison| comparison.headline);
        let mut needed = asked.flat_map(|comparison| [&comparison.of, &comparison.against]).chain(&self.headroom);
        needed.any(|name| name == variant)
    }

    pub(super) fn jobs(&self, round: usize) -> Vec<Job> {
        let Some(&seed) = self.seeds.get(round) else { return Vec::new() };
        let job = |variant: &str, after: Option<&String>| Job {
            group: self.name.clone(),
            variant: variant.into(),
            seed,
            after: after.cloned(),
        };
        let free = self.variants.iter().map(|variant| job(&variant.name, None));
        free.chain(self.matched.iter().map(|matched| job(&matched.name, Some(&matched.mean_k_of)))).collect()
    }

    /// The model with a vocabulary of this size.
    pub(super) fn sized(&self, vocabulary: usize) -> ModelConfig {
        ModelConfig { vocabulary, ..self.model.clone() }
    }

    /// The configuration of a run; `mean_k` is that of the variant that it is matched with.
    pub(crate) fn config(&self, vocabulary: usize, job: &Job, mean_k: Option<f64>) -> Result<RunConfig> {
        let unknown = || TrainError::config("variant", format!("there is no `{}`", job.variant));
        let variant = self.variant(&job.variant, mean_k).ok_or_else(unknown)?;
        let model = self.sized(vocabulary);
        let config = RunConfig { model, schedule: self.schedule.clone(), variant, seed: job.seed };
        config.validate()?;
        Ok(config)
    }

    /// A variant by its name; of one that is matched, the control at that mean, which differs from its model in nothing but who
    /// gets how many experts.
    pub(crate) fn variant(&self, name: &str, mean_k: Option<f64>) -> Option<Variant> {
        let own = |name: &str| self.variants.iter().find(|variant| variant.name == name);
        let control = || {
            let model = own(&self.matched.iter().find(|matched| matched.name == name)?.mean_k_of)?;
            Some(at_mean(name, mean_k?, &self.model, model.layer.clone()))
        };
        own(name).cloned().or_else(control)
    }
}

/// See [`Matched`].
fn at_mean(name: &str, mean_k: f64, model: &ModelConfig, mut layer: Map<String, Value>) -> Variant {
    let nulls = layer.get("num_null_experts").and_then(Value::as_u64).unwrap_or(0) as usize;
    // A mean of all experts there are has none above.
    let below = (mean_k.floor() as usize).min((model.experts + nulls).saturating_sub(1));
    let policy =
        json!({ "policy": "budget-running", "mean_k": mean_k, "momentum": 0.9, "min": below, "max": below + 1 });
    layer.remove("importance");
    layer.insert("experts_per_token".into(), policy);
    let rank = if model.causal { Rank::None } else { Rank::Groups };
    Variant { name: name.into(), signal: Signal::Random, rank, layer }
}
