//! The program once more, with one thread for each run.
//!
//! candle shares one pool of threads among all runs of a process, and its threads spin while they wait: small models that are
//! trained at the same time spend most of it waiting for each other. How many threads there are is read from the environment when the first
//! tensor is made, so the program has to be started again.

use crate::Result;
use std::io;
use std::process::{Command, ExitStatus};

/// What candle and rayon read.
const THREADS: &str = "RAYON_NUM_THREADS";

/// Runs the same command with one thread a run and returns how it ended; `None` in that very process.
pub(crate) fn again() -> Result<Option<ExitStatus>> {
    if std::env::var(THREADS).is_ok_and(|threads| threads == "1") {
        return Ok(None);
    }
    let start = || -> io::Result<ExitStatus> {
        Command::new(std::env::current_exe()?).args(std::env::args_os().skip(1)).env(THREADS, "1").status()
    };
    start().map(Some).map_err(crate::Error::Restart)
}

/// How this process ends when that one has.
pub(crate) fn passed_on(status: ExitStatus) -> Result<()> {
    // What went wrong has been told already.
    if status.success() {
        Ok(())
    } else {
        Err(crate::Error::Told(status.code().and_then(|code| u8::try_from(code).ok())))
    }
}
