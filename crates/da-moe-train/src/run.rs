//! A run from its first step to its last, in a folder of its own; interrupted anywhere, it goes on from its last checkpoint
//! with the same bits.

use crate::checkpoint::{Checkpoint, write_whole};
use crate::config::RunConfig;
use crate::corpus::Corpus;
use crate::error::{Result, TrainError};
use crate::metrics::Line;
use crate::trainer::{Since, Trainer};
use candle_core::Device;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// How often a run writes, and how much held-out text it is tried on.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Steps between lines of `metrics.jsonl`.
    pub line: u64,
    /// Lines between measurements on held-out text; there is one after the last step in any case.
    pub held_out: u64,
    /// Lines between checkpoints; there is one after the last step in any case.
    pub checkpoint: u64,
    /// Batches of held-out text.
    pub batches: u64,
}

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

    /// The lines that are there.
    ///
    /// # Errors
    /// A line that is none.
    pub fn lines(&self) -> Result<Vec<Line>> {
        let path = self.metrics();
        let Ok(text) = fs::read_to_string(&path) else { return Ok(Vec::new()) };
        let parse = |line: &str| serde_json::from_str(line).map_err(|error| TrainError::contents(&path, error));
        // An interruption can leave half a line at the end.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(parse).collect()
    }
}

/// Trains to the last step, or until `watch` returns false after a line. Returns the trainer where it ended.
///
/// # Errors
/// The folder belongs to another run, or whatever training refuses.
pub fn run(
    config: &RunConfig,
    corpus: &Arc<Corpus>,
    pace: Pace,
    folder: &Folder,
    device: &Device,
    watch: &mut dyn FnMut(&Line) -> bool,
) -> Result<Trainer> {
    fs::create_dir_all(&folder.0).map_err(TrainError::file(&folder.0))?;
    let mut trainer = Trainer::new(config.clone(), Arc::clone(corpus), device)?;
    if folder.checkpoint().exists() {
        trainer.restore(&Checkpoint::read(&folder.checkpoint())?, &folder.checkpoint())?;
    }
    keep_lines(folder, trainer.step)?;
    let last = config.schedule.steps;
    while trainer.step < last {
        let start = Instant::now();
        let mut since = Since::default();
        let until = last.min(trainer.step + pace.line.max(1));
        while trainer.step < until {
            trainer.step(&mut since)?;
        }
        let number = until.div_ceil(pace.line.max(1));
        let due = |every: u64| until == last || number.is_multiple_of(every.max(1));
        let (loss, allocated) = since.finish();
        let seconds = start.elapsed().as_secs_f64();
        let line = Line {
            step: trainer.step,
            tokens: trainer.step * trainer.tokens_per_step(),
            loss,
            rate: since.rate,
            gradient_norm: since.gradient_norm,
            seconds,
            allocated,
            held_out: if due(pace.held_out) { Some(trainer.held_out(pace.batches)?) } else { None },
        };
        append(&folder.metrics(), &line)?;
        if due(pace.checkpoint) {
            trainer.save(&corpus.tokenizer, &folder.checkpoint())?;
        }
        if !watch(&line) {
            break;
        }
    }
    Ok(trainer)
}

/// Drops lines past the checkpoint that the run goes on from: they will be written again.
fn keep_lines(folder: &Folder, step: u64) -> Result<()> {
    let kept: Vec<Line> = folder.lines()?.into_iter().filter(|line| line.step <= step).collect();
    let text: Vec<String> = kept.iter().map(|line| to_json(&folder.metrics(), line)).collect::<Result<_>>()?;
    write_whole(&folder.metrics(), text.concat().as_bytes())
}

fn append(path: &Path, line: &Line) -> Result<()> {
    let mut file = fs::OpenOptions::new().append(true).create(true).open(path).map_err(TrainError::file(path))?;
    file.write_all(to_json(path, line)?.as_bytes()).map_err(TrainError::file(path))
}

fn to_json(path: &Path, line: &Line) -> Result<String> {
    serde_json::to_string(line).map(|json| json + "\n").map_err(|error| TrainError::contents(path, error))
}
