//! Why the program stopped: one clear line each, naming the file, field or tensor.

use da_moe_train::TrainError;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

/// Everything that ends the program early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),

    /// The library refused the configuration, a tensor or the sizes.
    #[error("{0}")]
    Layer(#[from] da_moe::Error),

    /// A file cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },

    /// A file cannot be written.
    #[error("cannot write `{}`: {source}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },

    /// The input is not a valid safetensors file.
    #[error("the input is not a safetensors file: {0}")]
    Format(String),

    /// A tensor of the input cannot be used.
    #[error("tensor `{name}` {problem}")]
    Tensor {
        /// Its name in the file.
        name: String,
        /// What is wrong with it.
        problem: String,
    },

    /// The text of the demo cannot be used.
    #[error("the text {0}")]
    Text(&'static str),

    /// Training was refused, or failed.
    #[error("{0}")]
    Train(Box<da_moe_train::TrainError>),

    /// The work does not fit into memory.
    #[error("{what} need {needed} MiB of memory, {available} MiB are available")]
    Memory {
        /// What would be allocated.
        what: &'static str,
        /// Mebibytes.
        needed: u64,
        /// Mebibytes.
        available: u64,
    },

    /// The library's result does not agree with the oracle.
    #[error("check failed: {0}")]
    Check(String),

    /// The program cannot be started once more with one thread a run.
    #[error("cannot start the program again: {0}")]
    Restart(io::Error),

    /// Standard output cannot be written.
    #[error("cannot write to standard output: {0}")]
    Stdout(io::Error),
}

/// Result with this program's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// 1 for a failed check or training, 2 for bad input.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Error::Check(_) => ExitCode::from(1),
            Error::Train(error) if matches!(**error, TrainError::Diverged { .. } | TrainError::Engine(_)) => {
                ExitCode::from(1)
            }
            _ => ExitCode::from(2),
        }
    }

    /// In one line, whatever names from files have in them; with `RUST_BACKTRACE` in the environment, where the engine was follows.
    pub(crate) fn told(&self) -> String {
        let text = self.to_string();
        let (text, backtrace) = text.split_at(text.find(FIRST_FRAME).unwrap_or(text.len()));
        let mut line = String::with_capacity(text.len());
        for character in text.trim_end().chars() {
            if breaks_lines(character) { line.extend(character.escape_default()) } else { line.push(character) }
        }
        line + backtrace.trim_end()
    }

    pub(crate) fn tensor(name: &str, problem: impl Into<String>) -> Self {
        Error::Tensor { name: name.into(), problem: problem.into() }
    }
}

/// How a backtrace begins, which candle's errors have after their text.
const FIRST_FRAME: &str = "\n   0: ";

/// Whether a character may end a line, or change how the rest of one is shown: control characters, separators of lines and
/// paragraphs, and marks of direction.
fn breaks_lines(character: char) -> bool {
    character.is_control() || matches!(character, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

impl From<TrainError> for Error {
    fn from(error: TrainError) -> Self {
        match error {
            TrainError::Layer(error) => Error::Layer(error),
            other => Error::Train(Box::new(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_one_line_and_where_it_happened_follows() {
        let told = |text: &str| Error::Usage(text.into()).told();
        assert_eq!(
            told("`a\nb\r\u{1b}[31m\u{2028}c` is ä, ` ` and \\n"),
            r"`a\nb\r\u{1b}[31m\u{2028}c` is ä, ` ` and \n"
        );
        assert_eq!(told("refused\n   0: there\n   1: here\n"), "refused\n   0: there\n   1: here");
    }

    #[test]
    fn a_failed_check_is_not_bad_input() {
        let code = |error: Error| format!("{:?}", error.exit_code());
        assert_eq!(code(Error::Check("y".into())), format!("{:?}", ExitCode::from(1)));
        assert_eq!(code(Error::Text("is empty")), format!("{:?}", ExitCode::from(2)));
    }
}
