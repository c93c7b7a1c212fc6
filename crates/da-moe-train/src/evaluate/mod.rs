//! A grid of runs, so many at a time, and everything found so far in one file: stopped anywhere, it goes on from there.

mod outcome;
mod plan;
mod queue;
mod statistics;

pub use outcome::{Outcome, Outcomes, TokenExperts};
pub use plan::{Comparison, FineTuning, Group, Job, Matched, Plan, Text};
pub use statistics::Estimate;

use crate::classify;
use crate::config::RunConfig;
use crate::corpus::Corpus;
use crate::data::{Labelled, glue, labelled, own_documentation, prose};
use crate::error::{Result, TrainError};
use crate::metrics::Line;
use crate::run::{Folder, Pace, run};
use candle_core::Device;
use cpu_time::ThreadTime;
use queue::Queue;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Where a grid's files are, and how much of it runs at a time.
#[derive(Clone, Debug)]
pub struct Places {
    /// What `cargo xtask data` wrote.
    pub data: PathBuf,
    /// Checkpoints and lines of runs, one folder each.
    pub work: PathBuf,
    /// The file of outcomes.
    pub outcomes: PathBuf,
    /// Runs at a time, each on one thread: small models gain nothing from more.
    pub at_once: usize,
    /// Where models are trained.
    pub device: Device,
}

/// What the names of GLUE's tasks begin with; their files are in the folder of that name below the data, as published.
const GLUE: &str = "glue/";

/// What happens while a grid runs.
#[derive(Debug)]
pub enum Event<'a> {
    /// A run had been done before.
    Done(&'a Job),
    /// A run is about to start, or to go on.
    Start(&'a Job),
    /// A run has come this far.
    Line(&'a Job, &'a Line),
    /// A run has ended.
    End(&'a Job, &'a Outcome),
}

/// What every run reads.
struct Shared<'a> {
    plan: &'a Plan,
    places: &'a Places,
    corpora: BTreeMap<usize, Arc<Corpus>>,
    labelled: BTreeMap<String, Labelled>,
    outcomes: Mutex<Outcomes>,
    watch: &'a (dyn Fn(Event<'_>) + Sync),
}

/// Runs what is left of a plan.
///
/// # Errors
/// The first refusal of any run; runs that were under way beside it end first.
pub fn evaluate(plan: &Plan, places: &Places, watch: &(dyn Fn(Event<'_>) + Sync)) -> Result<Outcomes> {
    plan.validate()?;
    let outcomes = Outcomes::read(&places.outcomes)?;
    let shared = Shared {
        plan,
        places,
        corpora: corpora(plan, &places.data)?,
        labelled: sets(plan, &places.data)?,
        outcomes: Mutex::new(outcomes),
        watch,
    };
    let queue = Queue::new(plan.jobs());
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..places.at_once.max(1) {
            scope.spawn(|| {
                while let Some(job) = queue.next() {
                    let outcome = shared.on_one_thread(&job);
                    queue.done(&job, outcome.is_ok());
                    if let Err(error) = outcome {
                        failures.lock().unwrap_or_else(PoisonError::into_inner).push(error);
                    }
                }
            });
        }
    });
    match failures.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().next() {
        Some(error) => Err(error),
        None => Ok(shared.outcomes.into_inner().unwrap_or_else(PoisonError::into_inner)),
    }
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

impl Shared<'_> {
    fn on_one_thread(&self, job: &Job) -> Result<()> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
        let pool = pool.map_err(|error| TrainError::config("at_once", error.to_string()))?;
        pool.install(|| self.work(job))
    }

    /// Trains, tries and fine-tunes, unless that has been done.
    fn work(&self, job: &Job) -> Result<()> {
        let group = self.plan.group(&job.group);
        let group = group.ok_or_else(|| TrainError::config("group", format!("there is no `{}`", job.group)))?;
        let corpus = &self.corpora[&group.model.length];
        let config = self.config(group, corpus, job)?;
        if self.lock().of(job, &config).is_some() {
            (self.watch)(Event::Done(job));
            return Ok(());
        }
        (self.watch)(Event::Start(job));
        let outcome = self.train(group, corpus, job, config)?;
        let mut outcomes = self.lock();
        Outcomes::append(&self.places.outcomes, &outcome)?;
        (self.watch)(Event::End(job, &outcome));
        outcomes.0.push(outcome);
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Outcomes> {
        self.outcomes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn config(&self, group: &Group, corpus: &Corpus, job: &Job) -> Result<RunConfig> {
        let outcomes = self.lock();
        let measured = job.after.as_ref().and_then(|variant| {
            outcomes.by_seed(group, variant).get(&job.seed).map(|outcome| outcome.held_out.allocated.mean_k)
        });
        group.config(corpus.tokenizer.vocabulary(), job, measured)
    }

    fn train(&self, group: &Group, corpus: &Arc<Corpus>, job: &Job, config: RunConfig) -> Result<Outcome> {
        let start = ThreadTime::now();
        let name = format!("{}-{}-{}", job.group, job.variant, job.seed);
        let safe = name.chars().map(|c| if c.is_alphanumeric() || c == '-' { c } else { '_' }).collect::<String>();
        let folder = Folder(self.places.work.join(&self.plan.name).join(safe));
        let steps = config.schedule.steps;
        let line = (steps / 20).max(1);
        let pace = Pace { line, held_out: 2, checkpoint: 4, batches: group.held_out_batches };
        let mut watch = |line: &Line| {
            (self.watch)(Event::Line(job, line));
            true
        };
        let resumed = folder.checkpoint().exists();
        let trainer = run(&config, corpus, pace, &folder, &self.places.device, &mut watch)?;
        let trained = start.elapsed().as_secs_f64();
        let lines = folder.lines()?;
        let last = lines.last().and_then(|line| Some((line.held_out.clone()?, line.allocated.clone())));
        let (held_out, allocated) = last.ok_or_else(|| TrainError::contents(&folder.metrics(), "has no last line"))?;
        let experts_by_token = trainer.experts_by_token(group.held_out_batches)?;
        let mut accuracy = BTreeMap::new();
        for set in group.fine_tuning.iter().flat_map(|tuning| &tuning.sets) {
            if let (Some(tuning), Some(labelled)) = (&group.fine_tuning, self.labelled.get(set)) {
                accuracy.insert(set.clone(), classify::fine_tune(&trainer, labelled, tuning)?);
            }
        }
        Ok(Outcome {
            group: job.group.clone(),
            parameters: trainer.parameters(),
            tokens: steps * trainer.tokens_per_step(),
            held_out,
            curve: lines.iter().filter_map(|line| Some((line.step, line.held_out.as_ref()?.loss))).collect(),
            training_rows: lines.iter().map(|line| line.allocated.rows_per_token).sum::<f64>() / lines.len() as f64,
            router_gradient_by_k: allocated.router_gradient_by_k,
            processor_seconds: (!resumed).then_some(trained),
            accuracy,
            experts_by_token,
            config,
        })
    }
}
