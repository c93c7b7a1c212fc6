//! A grid of runs, so many at a time, and everything found so far in one file: stopped anywhere, it goes on from there.

mod checks;
mod grid;
mod outcome;
mod places;
mod plan;
mod queue;
mod statistics;

pub use crate::fine_tuning::FineTuning;
pub use crate::metrics::TokenExperts;
pub use grid::Grid;
pub use outcome::{Outcome, Outcomes};
pub use places::{Event, Places};
pub use plan::{Comparison, Group, Job, Matched, Plan, Text};
pub use statistics::Estimate;

use crate::classify;
use crate::error::{Result, TrainError};
use crate::run::Run;
use cpu_time::ThreadTime;
use queue::Queue;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Runs what is left of a plan.
///
/// # Errors
/// As [`Grid::open`] and [`Grid::run`].
pub fn evaluate(plan: &Plan, places: &Places, watch: &(dyn Fn(Event<'_>) + Sync)) -> Result<Outcomes> {
    Grid::open(plan, places)?.run(watch)
}

fn run_all(grid: &Grid<'_>, watch: &(dyn Fn(Event<'_>) + Sync)) -> Result<()> {
    grid.notes().iter().for_each(|note| watch(Event::Note(note)));
    let jobs = grid.plan.jobs();
    let threads = grid.places.at_once.clamp(1, jobs.len().max(1));
    let queue = Queue::new(jobs);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(job) = queue.next() {
                    let outcome = on_one_thread(grid, &job, watch);
                    queue.done(&job, outcome.is_ok());
                    if let Err(error) = outcome {
                        failures.lock().unwrap_or_else(PoisonError::into_inner).push(error);
                    }
                }
            });
        }
    });
    failures.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().next().map_or(Ok(()), Err)
}

fn on_one_thread(grid: &Grid<'_>, job: &Job, watch: &(dyn Fn(Event<'_>) + Sync)) -> Result<()> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    let pool = pool.map_err(|error| TrainError::config("at_once", error.to_string()))?;
    pool.install(|| work(grid, job, watch))
}

/// Trains, tries and fine-tunes, unless that has been done.
fn work(grid: &Grid<'_>, job: &Job, watch: &(dyn Fn(Event<'_>) + Sync)) -> Result<()> {
    if grid.is_done(job)? {
        watch(Event::Done(job));
        return Ok(());
    }
    watch(Event::Start(job));
    let outcome = train(grid, job, watch)?;
    let mut found = grid.lock();
    found.add(outcome.clone())?;
    watch(Event::End(job, &outcome));
    Ok(())
}

fn train(grid: &Grid<'_>, job: &Job, watch: &(dyn Fn(Event<'_>) + Sync)) -> Result<Outcome> {
    let start = ThreadTime::now();
    let (group, corpus) = grid.parts(job)?;
    let unknown = || TrainError::config("matched.mean_k_of", format!("`{}` has not been run", job.variant));
    let config = grid.config(job)?.ok_or_else(unknown)?;
    let pace = grid.pace(group);
    let run = Run::open(&config, corpus, pace, &grid.folder(job), &grid.places.device)?;
    let resumed = run.step() > 0;
    let trainer = run.train(&mut |line| {
        watch(Event::Line(job, line));
        true
    })?;
    let trained = start.elapsed().as_secs_f64();
    let lines = trainer.lines();
    let last = lines.last().and_then(|line| Some((line.held_out.clone()?, line.allocated.clone())));
    let (held_out, allocated) = last.ok_or_else(|| TrainError::config("schedule.steps", "none were taken"))?;
    let mut accuracy = BTreeMap::new();
    for set in group.fine_tuning.iter().flat_map(|tuning| &tuning.sets) {
        if let (Some(tuning), Some(labelled)) = (&group.fine_tuning, grid.labelled.get(set)) {
            accuracy.insert(set.clone(), classify::fine_tune(&trainer, labelled, tuning)?);
        }
    }
    Ok(Outcome {
        group: job.group.clone(),
        identity: Some(grid.identity(group, corpus)),
        parameters: trainer.parameters(),
        tokens: config.schedule.steps * trainer.tokens_per_step(),
        held_out,
        curve: lines.iter().filter_map(|line| Some((line.step, line.held_out.as_ref()?.loss))).collect(),
        training_rows: lines.iter().map(|line| line.allocated.rows_per_token).sum::<f64>() / lines.len() as f64,
        router_gradient_by_k: allocated.router_gradient_by_k,
        processor_seconds: (!resumed).then_some(trained),
        accuracy,
        experts_by_token: trainer.experts_by_token(group.held_out_batches)?,
        config,
    })
}
