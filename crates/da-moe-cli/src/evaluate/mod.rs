//! `da-moe evaluate`: a grid of variants and seeds, trained, compared and reported.

mod headline;
mod plot;
mod report;

use crate::args::EvaluateArgs;
use crate::run::output::replace;
use crate::{Error, Result, single};
use da_moe_train::evaluate::{Event, Outcomes, Places, Plan, evaluate};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
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
    let beside = arguments.report.with_extension("");
    fs::create_dir_all(&beside).map_err(|source| Error::Write { path: beside.clone(), source })?;
    let places = Places {
        data: arguments.data.clone(),
        work: arguments.work.clone(),
        outcomes: beside.join("outcomes.jsonl"),
        at_once: arguments.at_once.or_else(|| std::thread::available_parallelism().ok()).map_or(1, usize::from),
        device: arguments.device.for_training()?,
    };
    let outcomes = match arguments.only_report {
        true => Outcomes::read(&places.outcomes)?,
        false => {
            let bars = Bars::new(&plan);
            let outcomes = evaluate(&plan, &places, &|event| bars.show(event))?;
            bars.total.finish_and_clear();
            outcomes
        }
    };
    write_report(&plan, &outcomes, &arguments.report, &beside)
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
