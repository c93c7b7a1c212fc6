//! What can go wrong in training, with the names and numbers that its user needs.

use crate::data::DataError;
use std::path::{Path, PathBuf};

/// Everything that training and its evaluation refuse.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A field of a configuration is out of its domain, or does not go with another.
    #[error("`{field}`: {problem}")]
    Config {
        /// Path of the field, as in the JSON form.
        field: String,
        /// What is wrong, with the value.
        problem: String,
    },
    /// The layer refused its configuration.
    #[error(transparent)]
    Layer(#[from] da_moe::Error),
    /// The engine refused a tensor.
    #[error(transparent)]
    Engine(#[from] candle_core::Error),
    /// Text or its encoding.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{}: {problem}", path.display())]
    Contents {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Another process writes into a folder.
    #[error("{}: is being written by {holder}: wait until that has ended, or use another folder", folder.display())]
    Owned {
        /// Which.
        folder: PathBuf,
        /// Who, as far as is known.
        holder: String,
    },
    /// Nobody can be kept from writing into a folder.
    #[error("{}: cannot be locked for writing: {source}", folder.display())]
    Lock {
        /// Which.
        folder: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A number that should be finite is not.
    #[error("step {step}: the loss is {loss}")]
    Diverged {
        /// Training step.
        step: u64,
        /// What it was.
        loss: f64,
    },
}

/// Result with this crate's [`TrainError`].
pub type Result<T, E = TrainError> = std::result::Result<T, E>;

impl TrainError {
    /// A refusal of a configuration's field.
    pub(crate) fn config(field: impl Into<String>, problem: impl Into<String>) -> Self {
        TrainError::Config { field: field.into(), problem: problem.into() }
    }

    /// What the system said of a file.
    pub(crate) fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| TrainError::File { path: path.into(), source }
    }

    /// What is wrong with a file's contents.
    pub(crate) fn contents(path: &Path, problem: impl ToString) -> Self {
        TrainError::Contents { path: path.into(), problem: problem.to_string() }
    }
}
