//! Why there is no data: one clear line each, naming the file and the line.

use std::io;
use std::path::{Path, PathBuf};

/// What is wrong with a file, or with what was asked of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },

    /// A set that `cargo xtask data` writes is not there.
    #[error("there is no `{}`: run `cargo xtask data`, which writes it", path.display())]
    Missing {
        /// Which file.
        path: PathBuf,
    },

    /// A line of a file is not what it must be.
    #[error("`{}`, line {line}: {problem}", path.display())]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },

    /// A file as a whole cannot be used.
    #[error("`{}` {problem}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },

    /// A GLUE task that is not one, or that has no classes.
    #[error("GLUE task `{name}`: {problem}")]
    Task {
        /// The name as given.
        name: String,
        /// Why it cannot be loaded.
        problem: String,
    },

    /// A vocabulary too small for the special tokens and the bytes.
    #[error("a vocabulary of {asked} tokens: at least {least} are needed, for the special tokens and each byte")]
    Vocabulary {
        /// Tokens asked for.
        asked: usize,
        /// The fewest possible.
        least: usize,
    },

    /// What should be a saved tokenizer is none.
    #[error("not a saved tokenizer: {0}")]
    Tokenizer(String),

    /// A text has too little to train on, or too little to hold out.
    #[error("the text is too short: {tokens} tokens of it are {part}, at least {} are needed for a block of {length}", length.saturating_sub(1))]
    Short {
        /// What for.
        part: &'static str,
        /// Tokens of that part.
        tokens: usize,
        /// Tokens of a block.
        length: usize,
    },

    /// The documents cannot be packed into blocks.
    #[error("blocks of {length} tokens from {tokens} tokens of text: {problem}")]
    Blocks {
        /// Tokens of a block.
        length: usize,
        /// Tokens of all documents, with the breaks between them.
        tokens: usize,
        /// What is wrong with that.
        problem: &'static str,
    },
}

impl DataError {
    pub(super) fn line(path: &Path, line: usize, problem: impl Into<String>) -> Self {
        DataError::Line { path: path.into(), line, problem: problem.into() }
    }
}
