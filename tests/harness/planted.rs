//! Bugs planted in the kernels' own sources: what a change to one place shows under several orders of execution.

use super::case::Case;
use super::data::Data;
use super::{Through, judge, kernels};
use da_moe::cuda::{Emulated, Kernels, Shim as StandIn, Staged};
use da_moe::{Error, Keep};
use da_moe_emulator::Schedule;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread;

/// Orders of execution that each bug must be found in.
pub const SCHEDULES: u64 = 6;

/// How a bug shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shows {
    /// The emulator's report contains one of these, separated by `|`: which of them comes first is a matter of schedule.
    Report(&'static str),
    /// An output was not written.
    Unwritten,
    /// The numbers are wrong.
    Wrong,
}

pub const RACE: Shows = Shows::Report("race");
pub const BOUNDS: Shows = Shows::Report("out of bounds");
pub const UNINITIALISED: Shows = Shows::Report("uninitialised");

/// A change to one place in a kernel's source.
pub struct Bug {
    pub file: &'static str,
    pub from: &'static str,
    pub to: &'static str,
    pub shows: Shows,
    /// The call that it is to show in.
    pub call: fn() -> Case,
}

impl Bug {
    /// The call, with `keep` in place of what it keeps.
    fn case(&self, keep: Option<Keep>) -> Case {
        let case = (self.call)();
        Case { keep: keep.unwrap_or(case.keep), ..case }
    }
}

/// The kernels that a call launches: what has to be compiled to see a bug in it.
fn launched(case: &Case) -> Result<BTreeSet<&'static str>, String> {
    let device = StandIn::new(Arc::new(Emulated::new(kernels::module(), Schedule::from_seed(0))), None);
    let kernels = Kernels::new(Arc::new(device));
    let outcome = Through(Staged::new(kernels.clone())).run_with(&Data::new(case), case, None);
    outcome.map_err(|error| format!("without the bug: {error}"))?;
    Ok(kernels.device().kernels())
}

/// What a mutant shows in one order of execution; `None` when nothing is seen.
fn shown(bug: &Bug, case: &Case, device: Emulated) -> Option<(Shows, String)> {
    let data = Data::new(case);
    match Through(Staged::new(Kernels::new(Arc::new(device)))).run_with(&data, case, None) {
        Err(Error::Kernel { problem, .. }) if problem.contains("were not written") => Some((Shows::Unwritten, problem)),
        Err(Error::Kernel { problem, .. }) => match bug.shows {
            Shows::Report(any) if any.split('|').any(|what| problem.contains(what)) => Some((bug.shows, problem)),
            _ => Some((Shows::Report("something else"), problem)),
        },
        Err(error) => Some((Shows::Report("an error"), error.to_string())),
        Ok(outcome) => judge(&data, &outcome).err().map(|mismatches| (Shows::Wrong, mismatches[0].to_string())),
    }
}

/// Fails unless the bug shows as expected under every schedule.
fn find(bug: &Bug, keep: Option<Keep>) -> Result<(), String> {
    let place = |problem: String| format!("{}: `{}` for `{}`\n{problem}", bug.file, bug.to.trim(), bug.from.trim());
    let case = bug.case(keep);
    let compiler = Emulated::compiler(kernels::CACHE).replace(bug.file, bug.from, bug.to);
    let module = launched(&case).and_then(|launched| {
        let compiler = compiler.only(&kernels::module(), launched).map_err(|error| error.to_string())?;
        compiler.compile().map_err(|error| error.to_string())
    });
    let module = module.map_err(place)?;
    for seed in 0..SCHEDULES {
        let found = shown(bug, &case, Emulated::new(module.clone(), Schedule::from_seed(seed)));
        if found.as_ref().map(|(shows, _)| *shows) != Some(bug.shows) {
            return Err(place(format!("expected {:?} under schedule {seed}, found {found:?}", bug.shows)));
        }
    }
    Ok(())
}

/// Fails with every bug that is not found under every schedule; `keep` in place of what the calls keep.
pub fn assert_all_found(bugs: &[Bug], keep: Option<Keep>) {
    let failures: Vec<String> = thread::scope(|scope| {
        let halves = [0, 1].map(|half| {
            scope.spawn(move || bugs.iter().skip(half).step_by(2).filter_map(|bug| find(bug, keep).err()).collect())
        });
        halves.into_iter().flat_map(|half| -> Vec<String> { half.join().unwrap() }).collect()
    });
    assert!(failures.is_empty(), "{} of {} bugs:\n\n{}", failures.len(), bugs.len(), failures.join("\n\n"));
}

/// Fails unless the kernels as they are pass a call under every schedule.
pub fn assert_clean(call: fn() -> Case) {
    let case = call();
    let data = Data::new(&case);
    for seed in 0..SCHEDULES {
        let outcome = Through(kernels::emulated(seed)).run_with(&data, &case, None).unwrap();
        judge(&data, &outcome).unwrap();
    }
}
