//! A run from its first step to its last, in a folder of its own; interrupted anywhere, it goes on from its last checkpoint
//! with the same bits.

use crate::checkpoint::Checkpoint;
use crate::config::RunConfig;
use crate::corpus::Corpus;
use crate::error::{Result, TrainError};
use crate::journal::{self, Journal};
use crate::metrics::Line;
use crate::owner::Owner;
use crate::pace::Pace;
use crate::trainer::{Since, Trainer};
use crate::whole;
use candle_core::Device;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// A run's files.
#[derive(Clone, Debug)]
pub struct Folder(pub PathBuf);

impl Folder {
    /// One [`Line`] a line.
    pub fn metrics(&self) -> PathBuf {
        self.0.join("metrics.jsonl")
    }

    /// The last checkpoint.
    pub fn checkpoint(&self) -> PathBuf {
        self.0.join("checkpoint.safetensors")
    }

    /// What is to be gone on from, if there is anything.
    pub(crate) fn last(&self) -> Result<Option<Checkpoint>> {
        let path = self.checkpoint();
        let is_there = path.try_exists().map_err(TrainError::file(&path))?;
        is_there.then(|| Checkpoint::read(&path)).transpose()
    }

    /// The lines that are there.
    ///
    /// # Errors
    /// A file that cannot be read, or a line that is none.
    pub fn lines(&self) -> Result<Vec<Line>> {
        Ok(journal::read(&self.metrics())?.objects.into_iter().map(|(_, line)| line).collect())
    }

    /// The lines up to the checkpoint that a run goes on from: later ones will be written again.
    ///
    /// # Errors
    /// As [`Folder::lines`], or lines that are missing.
    pub(crate) fn lines_until(&self, step: u64, pace: Pace) -> Result<Vec<Line>> {
        let kept: Vec<Line> = self.lines()?.into_iter().filter(|line| line.step <= step).collect();
        let expected = step.div_ceil(pace.line.max(1));
        if kept.len() as u64 != expected {
            let problem = format!("has {} of the {expected} lines up to the checkpoint at step {step}", kept.len());
            let remedy = "remove the folder, and the run is made again";
            return Err(TrainError::contents(&self.metrics(), format!("{problem}: {remedy}")));
        }
        Ok(kept)
    }

    /// Drops all but these lines.
    fn keep(&self, lines: &[Line]) -> Result<()> {
        let (path, mut text) = (self.metrics(), String::new());
        for line in lines {
            text += &serde_json::to_string(line).map_err(|error| TrainError::contents(&path, error))?;
            text.push('\n');
        }
        whole::replace(&path, text.as_bytes())
    }
}

/// A run whose folder this process owns, where it was left.
pub struct Run {
    trainer: Trainer,
    pace: Pace,
    folder: Folder,
    metrics: Journal,
    /// Until the last line is written.
    _owner: Owner,
}

impl Run {
    /// Takes up a run in its folder, or begins one there. Whatever can be refused is refused here, before the first step.
    ///
    /// # Errors
    /// The folder is another's, or has another run, or whatever training refuses.
    pub fn open(
        config: &RunConfig,
        corpus: &Arc<Corpus>,
        pace: Pace,
        folder: &Folder,
        device: &Device,
    ) -> Result<Self> {
        let mut trainer = Trainer::new(config.clone(), Arc::clone(corpus), device)?;
        trainer.identity = trainer.identity.measured(pace);
        let owner = Owner::of(&folder.0)?;
        whole::sweep(&folder.0)?;
        if let Some(checkpoint) = folder.last()? {
            trainer.restore(&checkpoint, &folder.checkpoint())?;
        }
        trainer.lines = folder.lines_until(trainer.step, pace)?;
        folder.keep(&trainer.lines)?;
        let (metrics, _) = Journal::open::<Line>(&folder.metrics())?;
        Ok(Self { trainer, pace, folder: folder.clone(), metrics, _owner: owner })
    }

    /// Steps that have been taken.
    pub fn step(&self) -> u64 {
        self.trainer.step
    }

    /// Trains to the last step, or until `watch` returns false after a line. Returns the trainer where it ended.
    ///
    /// # Errors
    /// A loss that is not finite, a file that cannot be written, or the device's refusal.
    pub fn train(mut self, watch: &mut dyn FnMut(&Line) -> bool) -> Result<Trainer> {
        let (pace, last) = (self.pace, self.trainer.config.schedule.steps);
        while self.trainer.step < last {
            let start = Instant::now();
            let mut since = Since::default();
            let until = last.min(self.trainer.step.saturating_add(pace.line.max(1)));
            while self.trainer.step < until {
                self.trainer.step(&mut since)?;
            }
            let number = until.div_ceil(pace.line.max(1));
            let due = |every: u64| until == last || number.is_multiple_of(every.max(1));
            let (loss, allocated) = since.finish();
            let seconds = start.elapsed().as_secs_f64();
            let line = Line {
                step: self.trainer.step,
                tokens: self.trainer.step * self.trainer.tokens_per_step(),
                loss,
                rate: since.rate,
                gradient_norm: since.gradient_norm,
                seconds,
                allocated,
                held_out: if due(pace.held_out) { Some(self.trainer.held_out(pace.batches)?) } else { None },
            };
            self.metrics.append(&line)?;
            if due(pace.checkpoint) {
                self.trainer.save(self.trainer.tokenizer(), &self.folder.checkpoint())?;
            }
            let goes_on = watch(&line);
            self.trainer.lines.push(line);
            if !goes_on {
                break;
            }
        }
        Ok(self.trainer)
    }
}

/// Trains to the last step, or until `watch` returns false after a line. Returns the trainer where it ended.
///
/// # Errors
/// As [`Run::open`] and [`Run::train`].
pub fn run(
    config: &RunConfig,
    corpus: &Arc<Corpus>,
    pace: Pace,
    folder: &Folder,
    device: &Device,
    watch: &mut dyn FnMut(&Line) -> bool,
) -> Result<Trainer> {
    Run::open(config, corpus, pace, folder, device)?.train(watch)
}
