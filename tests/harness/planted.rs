//! Bugs planted in the kernels' own sources: what a change to one place shows under several orders of execution.

use super::case::Case;
use super::data::Data;
use super::ends::{Ends, Gradients};
use super::product::{HiddenProduct, Product, WeightProduct};
use super::{Through, judge, kernels};
use da_moe::cuda::{Architecture, Emulated, Kernels, Staged, StandIn};
use da_moe::{Error, Keep};
use da_moe_emulator::{Module, Schedule};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
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

/// The emulator, watched.
pub type Watched = StandIn<Emulated>;

/// What bugs are looked for in.
pub trait Trial: fmt::Debug {
    /// Its tensors, or what they should become.
    type Data;

    fn data(&self) -> Self::Data;

    /// What is wrong with the results, if anything is.
    ///
    /// # Errors
    /// Of the device.
    fn run(&self, data: &Self::Data, device: Arc<Watched>) -> Result<Result<(), String>, Error>;
}

/// Stages in their order.
impl Trial for Case {
    type Data = Data;

    fn data(&self) -> Data {
        Data::new(self)
    }

    fn run(&self, data: &Data, device: Arc<Watched>) -> Result<Result<(), String>, Error> {
        let outcome = Through(Staged::new(Kernels::new(device))).run_with(data, self, None)?;
        Ok(judge(data, &outcome).map(drop).map_err(|mismatches| mismatches[0].to_string()))
    }
}

/// One launch.
macro_rules! trial {
    ($product:ty, $data:ty) => {
        impl Trial for $product {
            type Data = $data;

            fn data(&self) -> Self::Data {
                self.expected()
            }

            fn run(&self, expected: &Self::Data, device: Arc<Watched>) -> Result<Result<(), String>, Error> {
                <$product>::run(self, &*device).map(|results| self.judge(expected, &results))
            }
        }
    };
}
trial!(Product, [Vec<f64>; 2]);
trial!(HiddenProduct, [Vec<f64>; 3]);
trial!(WeightProduct, Vec<f64>);

/// Gradients of more than a layer says of them.
impl Trial for Ends {
    type Data = (Data, Gradients);

    fn data(&self) -> Self::Data {
        let data = self.tensors();
        let expected = self.expected(&data);
        (data, expected)
    }

    fn run(&self, (data, expected): &Self::Data, device: Arc<Watched>) -> Result<Result<(), String>, Error> {
        let found = Ends::run(self, data, Staged::new(Kernels::new(device)))?;
        Ok(self.judge(expected, &found))
    }
}

/// A change to one place in a kernel's source.
pub struct Bug<T = Case> {
    pub file: &'static str,
    pub from: &'static str,
    pub to: &'static str,
    pub shows: Shows,
    /// What it is to show in.
    pub call: fn() -> T,
}

impl<T: Trial> Bug<T> {
    /// Of the kernels that it is in: what only Hopper has is in files that say so, and there it replaces what others have.
    fn architecture(&self) -> Architecture {
        let is_hopper = ["/hopper/", "_sm90"].iter().any(|part| self.file.contains(part));
        if is_hopper { Architecture::Hopper } else { Architecture::Portable }
    }
}

fn watched(module: Arc<Module>, seed: u64, architecture: Architecture) -> Arc<Watched> {
    let device = Emulated::new(module, Schedule::from_seed(seed)).of_architecture(architecture);
    Arc::new(StandIn::new(Arc::new(device), None))
}

/// The kernels that `run` launches: what has to be compiled to see a bug in it.
pub fn launched<T>(architecture: Architecture, run: impl FnOnce(Kernels<Watched>) -> T) -> (BTreeSet<&'static str>, T) {
    let device = watched(kernels::module(), 0, architecture);
    let result = run(Kernels::new(device.clone()));
    (device.kernels(), result)
}

/// The same for a trial, which is found to pass; many bugs are looked for in one.
fn launched_by<T: Trial>(
    architecture: Architecture,
    trial: &T,
    data: &T::Data,
) -> Result<BTreeSet<&'static str>, String> {
    static KNOWN: Mutex<BTreeMap<String, BTreeSet<&str>>> = Mutex::new(BTreeMap::new());
    let known = || KNOWN.lock().expect("nothing panics while it is held");
    let name = format!("{architecture:?} {trial:?}");
    if let Some(kernels) = known().get(&name) {
        return Ok(kernels.clone());
    }
    let device = watched(kernels::module(), 0, architecture);
    let wrong = trial.run(data, device.clone()).map_err(|error| error.to_string()).and_then(|right| right);
    wrong.map_err(|wrong| format!("without the bug: {wrong}"))?;
    known().insert(name, device.kernels());
    Ok(device.kernels())
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
fn shown<T: Trial>(bug: &Bug<T>, trial: &T, data: &T::Data, device: Arc<Watched>) -> Option<(Shows, String)> {
    match trial.run(data, device) {
        Err(Error::Kernel { problem, .. }) if problem.contains("were not written") => Some((Shows::Unwritten, problem)),
        Err(Error::Kernel { problem, .. }) => match bug.shows {
            Shows::Report(any) if any.split('|').any(|what| problem.contains(what)) => Some((bug.shows, problem)),
            _ => Some((Shows::Report("something else"), problem)),
        },
        Err(error) => Some((Shows::Report("an error"), error.to_string())),
        Ok(judged) => judged.err().map(|wrong| (Shows::Wrong, wrong)),
    }
}

/// Fails unless the bug shows as expected under every schedule.
fn find<T: Trial>(bug: &Bug<T>, trial: &T) -> Result<(), String> {
    let place = |problem: String| format!("{}: `{}` for `{}`\n{problem}", bug.file, bug.to.trim(), bug.from.trim());
    let data = trial.data();
    let kernels = launched_by(bug.architecture(), trial, &data);
    let module = kernels.and_then(|kernels| mutant([bug.file, bug.from, bug.to], kernels)).map_err(place)?;
    for seed in 0..SCHEDULES {
        let found = shown(bug, trial, &data, watched(module.clone(), seed, bug.architecture()));
        if found.as_ref().map(|(shows, _)| *shows) != Some(bug.shows) {
            return Err(place(format!("expected {:?} under schedule {seed}, found {found:?}", bug.shows)));
        }
    }
    Ok(())
}

/// Fails with every bug that is not found under every schedule; `asked` is what is run for what a bug asks for.
pub fn assert_found<T: Trial>(bugs: &[Bug<T>], asked: impl Fn(T) -> T + Sync) {
    let asked = &asked;
    let find = move |bug: &Bug<T>| find(bug, &asked((bug.call)())).err();
    let failures: Vec<String> = thread::scope(|scope| {
        let halves =
            [0, 1].map(|half| scope.spawn(move || bugs.iter().skip(half).step_by(2).filter_map(find).collect()));
        halves.into_iter().flat_map(|half| -> Vec<String> { half.join().unwrap() }).collect()
    });
    assert!(failures.is_empty(), "{} of {} bugs:\n\n{}", failures.len(), bugs.len(), failures.join("\n\n"));
}

/// The same in calls of layers; `keep` in place of what the calls keep.
pub fn assert_all_found(bugs: &[Bug], keep: Option<Keep>) {
    assert_found(bugs, |case| Case { keep: keep.unwrap_or(case.keep), ..case });
}

/// Fails unless the kernels of each architecture, as they are, pass a call under every schedule.
pub fn assert_clean(call: fn() -> Case) {
    [Architecture::Portable, Architecture::Hopper].into_iter().for_each(|of| assert_clean_on(of, &call()));
}

/// The same of one architecture.
pub fn assert_clean_on<T: Trial>(architecture: Architecture, trial: &T) {
    let data = trial.data();
    for seed in 0..SCHEDULES {
        trial.run(&data, watched(kernels::module(), seed, architecture)).unwrap().unwrap();
    }
}
