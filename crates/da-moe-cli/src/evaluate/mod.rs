//! `da-moe evaluate`: a grid of variants and seeds, trained, compared and reported.

mod headline;
mod plot;
mod report;

use crate::args::EvaluateArgs;
use crate::run::output::replace;
use crate::{Error, Result, ahead, single};
use da_moe_train::evaluate::{Event, Grid, Outcomes, Places, Plan};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A plan of a few seconds, for a first look and for tests.
const SMOKE: &str = include_str!("../../plans/smoke.json");

pub(crate) fn execute(arguments: &EvaluateArgs) -> Result<()> {
    if !arguments.only_report {
        single::ensure()?;
    }
    let plan = match &arguments.plan {
        Some(path) => Plan::read(path)?,
        None => Plan::parse(SMOKE, Path::new("smoke.json"))?,
    };
    let beside = beside(arguments)?;
    let places = Places {
        data: arguments.data.clone(),
        work: arguments.work.clone(),
        outcomes: beside.join("outcomes.jsonl"),
        at_once: arguments.at_once.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)),
        device: arguments.device.for_training()?,
    };
    if arguments.only_report {
        let outcomes = found(&plan, &places.outcomes)?;
        return write_report(&plan, &outcomes, &arguments.report, &beside);
    }
    let bars = Bars::new(&plan);
    // Holds the folders until the report is written.
    let grid = Grid::open(&plan, &places)?;
    let outcomes = grid.run(&|event| bars.show(event))?;
    bars.total.finish_and_clear();
    write_report(&plan, &outcomes, &arguments.report, &beside)
}

/// The folder beside the report, if both can be written.
fn beside(arguments: &EvaluateArgs) -> Result<PathBuf> {
    const OPTION: &str = "--report";
    let report = &arguments.report;
    if report.extension().is_none_or(OsStr::is_empty) {
        let problem = "needs an ending such as `.md`: pictures and outcomes go into a folder of its name without it";
        return Err(ahead::refused(OPTION, report, problem));
    }
    ahead::is_another(OPTION, report, arguments.plan.as_deref())?;
    let [data, place] = [&arguments.data, report].map(fs::canonicalize);
    if let (Ok(data), Ok(place)) = (data, place)
        && place.starts_with(data)
    {
        return Err(ahead::refused(OPTION, report, "is among the data: it would be written over"));
    }
    let beside = report.with_extension("");
    fs::create_dir_all(&beside).map_err(|source| Error::Write { path: beside.clone(), source })?;
    ahead::can_write(OPTION, report)?;
    ahead::can_write(OPTION, &beside.join("plan.json"))?;
    Ok(beside)
}

/// What there is so far, perhaps while another process adds to it.
fn found(plan: &Plan, path: &Path) -> Result<Outcomes> {
    let (outcomes, notes) = Outcomes::read_noting(path)?;
    notes.iter().for_each(|line| note(line));
    plan.groups.iter().try_for_each(|group| outcomes.check_alike(group, path))?;
    let unknown = outcomes.0.iter().filter(|outcome| outcome.identity.is_none()).count();
    if unknown > 0 {
        let count = outcomes.0.len();
        let path = path.display();
        note(&format!(
            "{path}: {unknown} of {count} outcomes are of an earlier version, which did not record their text"
        ));
    }
    Ok(outcomes)
}

fn note(line: &str) {
    // With stderr closed there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "note: {line}");
}

fn write_report(plan: &Plan, outcomes: &Outcomes, path: &Path, beside: &Path) -> Result<()> {
    let report = report::Report::new(plan, outcomes, beside);
    let described = serde_json::to_string_pretty(plan).map_err(|error| Error::Usage(error.to_string()))? + "\n";
    replace(&beside.join("plan.json"), described.as_bytes())?;
    for (file, picture) in &report.pictures {
        replace(&beside.join(file), picture.as_bytes())?;
    }
    replace(path, report.text.as_bytes())?;
    let line = format!("{}\n{}\n", report.headline, path.display());
    std::io::stdout().write_all(line.as_bytes()).map_err(Error::Stdout)
}

/// Progress, drawn on stderr and only where that is a terminal: one bar for all runs, one for each that is under way.
struct Bars {
    all: MultiProgress,
    total: ProgressBar,
    running: Mutex<BTreeMap<String, ProgressBar>>,
    steps: BTreeMap<String, u64>,
}

impl Bars {
    fn new(plan: &Plan) -> Self {
        let all = MultiProgress::new();
        let total =
            all.add(styled(plan.jobs().len() as u64, "{bar:32} {pos}/{len} runs  {elapsed} of about {duration}"));
        let steps = plan.groups.iter().map(|group| (group.name.clone(), group.schedule.steps)).collect();
        Self { all, total, running: Mutex::default(), steps }
    }

    fn show(&self, event: Event<'_>) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let key = |job: &da_moe_train::evaluate::Job| format!("{} {} seed {}", job.group, job.variant, job.seed);
        match event {
            Event::Note(line) => self.all.suspend(|| note(line)),
            Event::Done(_) => self.total.inc(1),
            Event::Start(job) => {
                let steps = self.steps.get(&job.group).copied().unwrap_or_default();
                let bar = self.all.add(styled(steps, "{bar:32} {prefix}: {msg}"));
                running.insert(key(job), bar.with_prefix(key(job)));
            }
            Event::Line(job, line) => {
                if let Some(bar) = running.get(&key(job)) {
                    let steps = line.step.saturating_sub(bar.position());
                    let tokens = line.tokens / line.step.max(1) * steps;
                    bar.set_message(format!("loss {:.3}, {:.0} tokens/s", line.loss, tokens as f64 / line.seconds));
                    bar.set_position(line.step);
                }
            }
            Event::End(job, _) => {
                if let Some(bar) = running.remove(&key(job)) {
                    bar.finish_and_clear();
                }
                self.total.inc(1);
            }
        }
    }
}

fn styled(length: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::new(length);
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
