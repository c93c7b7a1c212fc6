//! What a run of the grid found, and the file that keeps it.

use super::plan::Group;
use super::statistics::Estimate;
use crate::config::RunConfig;
use crate::error::{Result, TrainError};
use crate::identity::{Identity, differences};
use crate::journal;
use crate::metrics::{HeldOut, TokenExperts};
use crate::variant::Variant;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// A finished run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Name of its group.
    pub group: String,
    /// What was run: a result of another configuration is not a result of this run.
    pub config: RunConfig,
    /// What else it was made of: a result of another text is none either. Absent in files of versions that did not ask.
    #[serde(default)]
    pub identity: Option<Identity>,
    /// Learned numbers.
    pub parameters: usize,
    /// Tokens seen.
    pub tokens: u64,
    /// After the last step.
    pub held_out: HeldOut,
    /// Step and loss of each measurement on held-out text.
    pub curve: Vec<(u64, f64)>,
    /// Expert rows of a token and layer in training, mean over all steps.
    pub training_rows: f64,
    /// The router's gradient by number of experts, in the last steps.
    pub router_gradient_by_k: BTreeMap<usize, f64>,
    /// Seconds of one processor in training; unknown of a run that was interrupted.
    pub processor_seconds: Option<f64>,
    /// Accuracy after fine-tuning, by labelled set.
    #[serde(default)]
    pub accuracy: BTreeMap<String, f64>,
    /// Tokens of held-out text with their mean number of experts, most first and fewest last.
    #[serde(default)]
    pub experts_by_token: Vec<TokenExperts>,
}

/// Everything found so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcomes(pub Vec<Outcome>);

impl Outcomes {
    /// Reads a file of one outcome a line; none where there is no file. What a writer that was stopped left of a line is passed
    /// over: [`Outcomes::read_noting`] says where.
    ///
    /// # Errors
    /// A file that cannot be read, or a line that is no outcome, by its number.
    pub fn read(path: &Path) -> Result<Self> {
        Self::read_noting(path).map(|(outcomes, _)| outcomes)
    }

    /// The same, with a sentence for each line that was passed over.
    ///
    /// # Errors
    /// As [`Outcomes::read`].
    pub fn read_noting(path: &Path) -> Result<(Self, Vec<String>)> {
        let lines = journal::read(path)?;
        Ok((Self(lines.objects.into_iter().map(|(_, outcome)| outcome).collect()), lines.notes))
    }

    /// Refuses outcomes of one group that were not made of the same: their differences would be no answer to anything.
    ///
    /// # Errors
    /// [`TrainError::Contents`] with the field; `path` is what it calls the file.
    pub fn check_alike(&self, group: &Group, path: &Path) -> Result<()> {
        let named: Vec<&Outcome> = group.names().flat_map(|name| self.by_seed(group, name).into_values()).collect();
        let Some(first) = named.first() else { return Ok(()) };
        let Some(other) = named.iter().find(|other| other.identity != first.identity) else { return Ok(()) };
        let differs = match (&first.identity, &other.identity) {
            (Some(one), Some(two)) => differences((&first.config, one), (&first.config, two)),
            _ => Some("some say which text they are of, some do not".into()),
        };
        let problem = format!("has outcomes of group `{}` that cannot be compared", group.name);
        Err(TrainError::contents(path, format!("{problem}: {}", differs.unwrap_or_default())))
    }

    /// Outcomes of a variant whose model, schedule and configuration are the group's, by seed.
    pub fn by_seed(&self, group: &Group, variant: &str) -> BTreeMap<u64, &Outcome> {
        let fits = |outcome: &&Outcome| {
            let (model, config) = (&outcome.config.model, &outcome.config);
            outcome.group == group.name
                && config.variant.name == variant
                && *model == group.sized(model.vocabulary)
                && config.schedule == group.schedule
                && self.expected(group, variant, config.seed).as_ref() == Some(&config.variant)
        };
        self.0.iter().filter(fits).map(|outcome| (outcome.config.seed, outcome)).collect()
    }

    /// What a run of this name and seed is configured as; of a control, if its model has been run.
    fn expected(&self, group: &Group, name: &str, seed: u64) -> Option<Variant> {
        let model = group.matched.iter().find(|matched| matched.name == name).map(|matched| &matched.mean_k_of);
        let mean_k = model.and_then(|model| Some(self.by_seed(group, model).get(&seed)?.held_out.allocated.mean_k));
        group.variant(name, mean_k)
    }

    /// A figure of a variant over its seeds.
    pub fn estimate(&self, group: &Group, variant: &str, figure: impl Fn(&Outcome) -> f64) -> Option<Estimate> {
        let values: Vec<f64> = self.by_seed(group, variant).into_values().map(figure).collect();
        Estimate::of(&values)
    }

    /// A figure of one variant less that of another, seed by seed.
    pub fn difference(
        &self,
        group: &Group,
        [of, against]: [&str; 2],
        figure: impl Fn(&Outcome) -> Option<f64>,
    ) -> Option<Estimate> {
        let (left, right) = (self.by_seed(group, of), self.by_seed(group, against));
        let pairs = left.iter().filter_map(|(seed, left)| Some(figure(left)? - figure(right.get(seed)?)?));
        Estimate::of(&pairs.collect::<Vec<_>>())
    }
}
