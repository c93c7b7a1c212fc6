//! Bugs planted in the kernels' own sources: what a change to one place shows under several orders of execution.

use super::case::Case;
use super::data::Data;
use super::{Through, judge, kernels};
use da_moe::cuda::{Emulated, Kernels, Staged, StandIn};
use da_moe::{Error, Keep};
use da_moe_emulator::{Module, Schedule};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
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

/// The kernels that `run` launches: what has to be compiled to see a bug in it.
pub fn launched<T>(run: impl FnOnce(Kernels<StandIn<Emulated>>) -> T) -> (BTreeSet<&'static str>, T) {
    let device = Arc::new(StandIn::new(Arc::new(Emulated::new(kernels::module(), Schedule::from_seed(0))), None));
    let result = run(Kernels::new(device.clone()));
    (device.kernels(), result)
}

/// The same for a call, which is found to pass; many bugs are looked for in one call.
fn launched_by(case: &Case) -> Result<BTreeSet<&'static str>, String> {
    static KNOWN: Mutex<BTreeMap<String, BTreeSet<&str>>> = Mutex::new(BTreeMap::new());
    let known = || KNOWN.lock().expect("nothing panics while it is held");
    let name = format!("{case:?}");
    if let Some(kernels) = known().get(&name) {
        return Ok(kernels.clone());
    }
    let data = Data::new(case);
    let (kernels, outcome) = launched(|kernels| Through(Staged::new(kernels)).run_with(&data, case, None));
    outcome.map_err(|error| format!("without the bug: {error}"))?;
    known().insert(name, kernels.clone());
    Ok(kernels)
}

/// The kernels with one text replaced, those alone that are named.
pub fn mutant<'a>(
    [file, from, to]: [&str; 3],
    kernels: impl IntoIterator<Item = &'a str>,
) -> Result<Arc<Module>, String> {
    let compiler = Emulated::compiler(kernels::CACHE).replace(file, from, to).only(&kernels::module(), kernels);
    compiler.and_then(|compiler| compiler.compile()).map_err(|error| error.to_string())
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
    let module = launched_by(&case).and_then(|kernels| mutant([bug.file, bug.from, bug.to], kernels)).map_err(place)?;
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
