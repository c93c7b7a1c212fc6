//! Where a grid is made, and what is told of it meanwhile.

use super::outcome::Outcome;
use super::plan::Job;
use crate::metrics::Line;
use candle_core::Device;
use std::path::PathBuf;

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

/// What happens while a grid runs.
#[derive(Debug)]
pub enum Event<'a> {
    /// Something in the file of outcomes was passed over.
    Note(&'a str),
    /// A run had been done before.
    Done(&'a Job),
    /// A run is about to start, or to go on.
    Start(&'a Job),
    /// A run has come this far.
    Line(&'a Job, &'a Line),
    /// A run has ended.
    End(&'a Job, &'a Outcome),
}
