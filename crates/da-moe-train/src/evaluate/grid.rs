//! A plan's runs, those that are to be made and those that have been: everything that can be refused, before the first step.

use super::outcome::{Outcome, Outcomes};
use super::places::{Event, Places};
use super::plan::{Group, Job, Plan, Text};
use crate::config::RunConfig;
use crate::corpus::Corpus;
use crate::data::{Labelled, glue, labelled, own_documentation, prose};
use crate::error::{Result, TrainError};
use crate::identity::{self, Identity, Tuned, differences};
use crate::journal::Journal;
use crate::names::file_name;
use crate::owner::Owner;
use crate::pace::Pace;
use crate::run::Folder;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What the names of GLUE's tasks begin with; their files are in the folder of that name below the data, as published.
const GLUE: &str = "glue/";

/// A plan that can be run, in folders that this process owns for as long as it has this.
pub struct Grid<'a> {
    pub(super) plan: &'a Plan,
    pub(super) places: &'a Places,
    corpora: BTreeMap<usize, Arc<Corpus>>,
    pub(super) labelled: BTreeMap<String, Labelled>,
    /// SHA-256 of each.
    sums: BTreeMap<String, String>,
    found: Mutex<Found>,
    notes: Vec<String>,
    _owners: Vec<Owner>,
}

/// What has been found so far, and the file that keeps it.
pub(super) struct Found {
    pub outcomes: Outcomes,
    journal: Journal,
}

impl Found {
    /// Adds an outcome here and in the file.
    pub fn add(&mut self, outcome: Outcome) -> Result<()> {
        self.journal.append(&outcome)?;
        self.outcomes.0.push(outcome);
        Ok(())
    }
}

impl<'a> Grid<'a> {
    /// Reads texts, outcomes and checkpoints, and takes possession of the folders that are written into.
    ///
    /// # Errors
    /// Whatever would stop a run before its first step: the plan, texts, a folder that is another's, or what is there of
    /// another run.
    pub fn open(plan: &'a Plan, places: &'a Places) -> Result<Self> {
        plan.validate()?;
        let labelled = sets(plan, &places.data)?;
        let corpora = corpora(plan, &places.data)?;
        let beside = places.outcomes.parent().filter(|folder| !folder.as_os_str().is_empty());
        let owners = Owner::of_all(&[&work(plan, places), beside.unwrap_or(Path::new("."))])?;
        let (journal, lines) = Journal::open(&places.outcomes)?;
        let outcomes = Outcomes(lines.objects.into_iter().map(|(_, outcome)| outcome).collect());
        let sums = labelled.iter().map(|(name, set)| (name.clone(), identity::of_labelled(set))).collect();
        let found = Mutex::new(Found { outcomes, journal });
        let grid = Self { plan, places, corpora, labelled, sums, found, notes: lines.notes, _owners: owners };
        plan.jobs().iter().try_for_each(|job| grid.check(job))?;
        Ok(grid)
    }

    /// What was passed over in the file of outcomes, a sentence for each line.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Runs what is left of the plan, in one go.
    ///
    /// # Errors
    /// The first refusal of any run; runs that were under way beside it end first.
    pub fn run(&self, watch: &(dyn Fn(Event<'_>) + Sync)) -> Result<Outcomes> {
        super::run_all(self, watch)?;
        Ok(self.lock().outcomes.clone())
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a job's run is made of.
    pub(super) fn parts(&self, job: &Job) -> Result<(&Group, &Arc<Corpus>)> {
        let group = self.plan.group(&job.group);
        let group = group.ok_or_else(|| TrainError::config("group", format!("there is no `{}`", job.group)))?;
        let corpus = self.corpora.get(&group.model.length);
        let missing = || TrainError::config("model.length", format!("there is no text for `{}`", job.group));
        Ok((group, corpus.ok_or_else(missing)?))
    }

    /// A job's configuration; `None` of a control whose model has not been run.
    pub(super) fn config(&self, job: &Job) -> Result<Option<RunConfig>> {
        let (group, corpus) = self.parts(job)?;
        let found = self.lock();
        let measured = job.after.as_ref().map(|variant| {
            found.outcomes.by_seed(group, variant).get(&job.seed).map(|outcome| outcome.held_out.allocated.mean_k)
        });
        match measured {
            Some(None) => Ok(None),
            mean_k => group.config(corpus.tokenizer.vocabulary(), job, mean_k.flatten()).map(Some),
        }
    }

    /// How often a group's runs are measured.
    pub(super) fn pace(&self, group: &Group) -> Pace {
        let line = (group.schedule.steps / 20).max(1);
        Pace { line, held_out: 2, checkpoint: 4, batches: group.held_out_batches }
    }

    /// What an outcome of this group is known by.
    pub(super) fn identity(&self, group: &Group, corpus: &Corpus) -> Identity {
        let tuned = group.fine_tuning.as_ref().map(|tuning| Tuned {
            sets: tuning.sets.iter().filter_map(|set| Some((set.clone(), self.sums.get(set)?.clone()))).collect(),
            batch: tuning.batch,
            steps: tuning.steps,
            rate: tuning.rate,
        });
        Identity { fine_tuning: tuned, ..corpus.identity(&self.places.device).measured(self.pace(group)) }
    }

    /// A job's own folder.
    pub(super) fn folder(&self, job: &Job) -> Folder {
        let group = work(self.plan, self.places).join(file_name(&job.group));
        Folder(group.join(file_name(&job.variant)).join(job.seed.to_string()))
    }

    /// Whether a job has been done, by an outcome of the same configuration.
    ///
    /// # Errors
    /// An outcome of that configuration that was made of something else.
    pub(super) fn is_done(&self, job: &Job) -> Result<bool> {
        let (group, corpus) = self.parts(job)?;
        let (config, identity) = (self.config(job)?, self.identity(group, corpus));
        let found = self.lock();
        let own = |outcome: &&Outcome| {
            let there = &outcome.config;
            let name = outcome.group == job.group && there.variant.name == job.variant && there.seed == job.seed;
            let alike =
                || there.schedule == group.schedule && there.model == group.sized(corpus.tokenizer.vocabulary());
            name && config.as_ref().map_or_else(alike, |config| there == config)
        };
        for outcome in found.outcomes.0.iter().filter(own) {
            let differs = match &outcome.identity {
                Some(there) => differences((&outcome.config, there), (&outcome.config, &identity)),
                None => Some("it is of an earlier version, which did not record the text".into()),
            };
            if let Some(differs) = differs {
                const REMEDY: &str = "write to another file (`--report` of evaluate), or remove this one";
                let Job { group, variant, seed, .. } = job;
                let problem = format!("its outcome of {group} {variant} seed {seed} is of another run: {differs}");
                return Err(TrainError::contents(&self.places.outcomes, format!("{problem}; {REMEDY}")));
            }
        }
        Ok(config.is_some() && found.outcomes.0.iter().any(|outcome| own(&outcome)))
    }

    /// Refuses a job that could not be run to its end.
    fn check(&self, job: &Job) -> Result<()> {
        if self.is_done(job)? {
            return Ok(());
        }
        let folder = self.folder(job);
        let Some(checkpoint) = folder.last()? else { return Ok(()) };
        let (group, corpus) = self.parts(job)?;
        let identity = Identity { fine_tuning: None, ..self.identity(group, corpus) };
        // Of a control the number of experts is not known before its model has been run; nor is it there then.
        let config = self.config(job)?.unwrap_or_else(|| RunConfig {
            schedule: group.schedule.clone(),
            seed: job.seed,
            ..checkpoint.config.clone()
        });
        checkpoint.check(&folder.checkpoint(), (&config, &identity))?;
        folder.lines_until(checkpoint.step, self.pace(group)).map(drop)
    }
}

/// Where a plan's runs are.
fn work(plan: &Plan, places: &Places) -> PathBuf {
    places.work.join(file_name(&plan.name))
}

/// The text in blocks of each length that a group asks for.
fn corpora(plan: &Plan, data: &Path) -> Result<BTreeMap<usize, Arc<Corpus>>> {
    let text = match plan.text {
        Text::Data => prose(data)?,
        Text::Documentation => own_documentation(),
    };
    let mut made: BTreeMap<usize, Arc<Corpus>> = BTreeMap::new();
    for length in plan.groups.iter().map(|group| group.model.length) {
        if !made.contains_key(&length) {
            let corpus = match made.values().next() {
                Some(first) => Corpus::with_tokenizer(first.tokenizer.clone(), &text, length)?,
                None => Corpus::new(&text, plan.vocabulary, length)?,
            };
            made.insert(length, Arc::new(corpus));
        }
    }
    Ok(made)
}

fn sets(plan: &Plan, data: &Path) -> Result<BTreeMap<String, Labelled>> {
    let names = plan.groups.iter().filter_map(|group| group.fine_tuning.as_ref()).flat_map(|tuning| &tuning.sets);
    let load = |name: &String| match name.strip_prefix(GLUE) {
        Some(task) => glue::load(&data.join("glue"), task),
        None => labelled(data, name),
    };
    names.map(|name| Ok((name.clone(), load(name)?))).collect()
}
