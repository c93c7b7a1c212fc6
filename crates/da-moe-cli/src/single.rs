//! The program once more, with one thread for each run.
//!
//! candle shares one pool of threads among all runs of a process, and its threads spin while they wait: small models that are
//! trained at the same time spend most of it waiting for each other. How many threads there are is read from the environment when the first
//! tensor is made, so the program has to be started again: in its own place, as the same process, so that signals, exit code
//! and terminal are those of one process and nothing can outlive it.

use crate::Result;

/// What candle and rayon read.
const THREADS: &str = "RAYON_NUM_THREADS";
/// Says that the program has been started again; whatever [`THREADS`] is then, once is enough.
const AGAIN: &str = "DA_MOE_AGAIN";

/// Goes on in a process with one thread a run, from the program's beginning; returns in that very process.
pub(crate) fn ensure() -> Result<()> {
    let is = |name, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    // A process keeps its number when it is replaced: what another one left in the environment does not count.
    let id = std::process::id().to_string();
    if is(THREADS, "1") || is(AGAIN, &id) { Ok(()) } else { replace(&id) }
}

#[cfg(unix)]
fn replace(id: &str) -> Result<()> {
    use std::os::unix::process::CommandExt;
    let program = std::env::current_exe().map_err(crate::Error::Restart)?;
    let mut again = std::process::Command::new(program);
    again.args(std::env::args_os().skip(1)).env(THREADS, "1").env(AGAIN, id);
    // Returns only if it failed.
    Err(crate::Error::Restart(again.exec()))
}

/// A process that cannot be replaced goes on as it is: a child could outlive it, which is worse than slow.
#[cfg(not(unix))]
fn replace(_: &str) -> Result<()> {
    use std::io::Write;
    let _ =
        writeln!(std::io::stderr(), "note: with {THREADS}=1 in the environment, models train faster beside each other");
    Ok(())
}
