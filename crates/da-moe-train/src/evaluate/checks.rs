//! What a plan is refused for, before anything runs.

use super::plan::{Group, Plan};
use crate::data::Tokenizer;
use crate::error::{Result, TrainError};
use crate::fine_tuning::FineTuning;
use crate::names;
use std::collections::BTreeSet;

/// Tokens of a vocabulary, at most.
const MOST_TOKENS: usize = 1_000_000;

impl Plan {
    /// Checks that every run could start.
    ///
    /// # Errors
    /// [`TrainError::Config`] naming the field, or the layer's refusal.
    pub fn validate(&self) -> Result<()> {
        names::check("name", &self.name)?;
        if !(Tokenizer::LEAST..=MOST_TOKENS).contains(&self.vocabulary) {
            let problem =
                format!("is {}, {} to {MOST_TOKENS} tokens can be learned", self.vocabulary, Tokenizer::LEAST);
            return Err(TrainError::config("vocabulary", problem));
        }
        let groups: Vec<&str> = self.groups.iter().map(|group| group.name.as_str()).collect();
        check_list("groups", &groups)?;
        for group in &self.groups {
            names::check("groups.name", &group.name)?;
            group.validate(self.vocabulary)?;
        }
        Ok(())
    }
}

impl Group {
    fn validate(&self, vocabulary: usize) -> Result<()> {
        let refused =
            |field: &str, problem: String| Err(TrainError::config(field, format!("{problem} (group `{}`)", self.name)));
        let names: Vec<&str> = self.names().collect();
        names.iter().try_for_each(|name| names::check("variants.name", name))?;
        check_list("variants", &names)?;
        check_list("seeds", &self.seeds)?;
        if self.held_out_batches == 0 {
            return refused("held_out_batches", "is 0: nothing would decide".into());
        }
        let (steps, warm_up) = (self.schedule.steps, self.schedule.warm_up);
        if steps == 0 {
            return refused("schedule.steps", "is 0: nothing would be learned".into());
        }
        if warm_up > steps {
            return refused("schedule.warm_up", format!("{warm_up} steps are more than all {steps}"));
        }
        // A control of a control, or of itself, would wait for what is never run first.
        if let Some(matched) = self.matched.iter().find(|matched| self.variant(&matched.mean_k_of, None).is_none()) {
            let problem = format!("group `{}` has no variant `{}` of its own", self.name, matched.mean_k_of);
            return Err(TrainError::config("matched.mean_k_of", problem));
        }
        self.validate_questions()?;
        for job in self.jobs(0) {
            self.config(vocabulary, &job, job.after.as_ref().map(|_| 1.0))?;
        }
        self.fine_tuning.as_ref().map_or(Ok(()), |tuning| self.validate_fine_tuning(tuning, vocabulary))
    }

    fn validate_fine_tuning(&self, tuning: &FineTuning, vocabulary: usize) -> Result<()> {
        // Tasks of GLUE are found in any case.
        check_list("fine_tuning.sets", &tuning.sets.iter().map(|set| set.to_lowercase()).collect::<Vec<_>>())?;
        for set in &tuning.sets {
            names::check("fine_tuning.sets", set.strip_prefix("glue/").unwrap_or(set))?;
        }
        if tuning.steps == 0 {
            return Err(TrainError::config("fine_tuning.steps", "is 0: nothing would be learned"));
        }
        let tuned = Self { schedule: tuning.schedule(&self.schedule), ..self.clone() };
        // The same schedule as any, under the names that its fields have here.
        let renamed = |error| match error {
            TrainError::Config { field, problem } => {
                TrainError::Config { field: field.replace("schedule.", "fine_tuning."), problem }
            }
            other => other,
        };
        for job in tuned.jobs(0).iter().filter(|job| job.after.is_none()) {
            tuned.config(vocabulary, job, None).map_err(renamed)?;
        }
        Ok(())
    }

    fn validate_questions(&self) -> Result<()> {
        let known = |field: &str, name: &String| {
            let problem = format!("group `{}` has no variant `{name}`", self.name);
            if self.names().any(|known| known == name) { Ok(()) } else { Err(TrainError::config(field, problem)) }
        };
        check_distinct("headroom", &self.headroom)?;
        self.headroom.iter().try_for_each(|name| known("headroom", name))?;
        for comparison in &self.comparisons {
            known("comparisons.of", &comparison.of)?;
            known("comparisons.against", &comparison.against)?;
            if comparison.of == comparison.against {
                return Err(TrainError::config("comparisons.against", format!("is `{}` as `of` is", comparison.of)));
            }
        }
        let pairs = self.comparisons.iter().map(|asked| format!("{} against {}", asked.of, asked.against));
        check_distinct("comparisons", &pairs.collect::<Vec<_>>())
    }
}

/// Refuses lists of nothing, and what is in one twice.
fn check_list<T: Ord + std::fmt::Display>(field: &str, list: &[T]) -> Result<()> {
    if list.is_empty() {
        return Err(TrainError::config(field, "is empty: nothing would run"));
    }
    check_distinct(field, list)
}

fn check_distinct<T: Ord + std::fmt::Display>(field: &str, list: &[T]) -> Result<()> {
    let mut seen = BTreeSet::new();
    match list.iter().find(|item| !seen.insert(*item)) {
        Some(twice) => Err(TrainError::config(field, format!("`{twice}` is there twice"))),
        None => Ok(()),
    }
}
