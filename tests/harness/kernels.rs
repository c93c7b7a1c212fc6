//! The kernels as subjects: their own sources on the emulator, in several orders of execution, and on a GPU where there is
//! one.

use super::case::Case;
use super::data::Data;
use super::{Subject, Through, bits};
use da_moe::Error;
use da_moe::cuda::{Architecture, Driver, Emulated, Kernels, Staged};
use da_moe_emulator::{Module, Schedule};
use da_moe_reference::check::Outcome;
use std::env;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::sync::{Arc, OnceLock};
use std::thread;

/// Of so many calls one is run in two orders of execution, whose results must have the same bits. Races are found in any order.
const CALLS_FOR_A_SECOND_ORDER: u64 = 3;

/// Orders of execution that a call is run in, by what it is: the same every time.
fn orders(case: &Case) -> usize {
    let mut hasher = DefaultHasher::new();
    format!("{case:?}").hash(&mut hasher);
    if hasher.finish().is_multiple_of(CALLS_FOR_A_SECOND_ORDER) { 2 } else { 1 }
}

/// Where compiled kernels are kept.
pub const CACHE: &str = concat!(env!("DA_MOE_TARGET"), "/tmp/kernels");

/// Every kernel, compiled once for all test programs.
pub fn module() -> Arc<Module> {
    static MODULE: OnceLock<Arc<Module>> = OnceLock::new();
    let compile = || Emulated::compiler(CACHE).compile().unwrap_or_else(|error| panic!("{error}"));
    MODULE.get_or_init(compile).clone()
}

/// The kernels on the emulator, in one order of execution. It has Hopper's.
pub fn emulated(seed: u64) -> Staged<Emulated> {
    emulated_as(seed, Architecture::Hopper)
}

/// As [`emulated`], with the kernels of one architecture.
pub fn emulated_as(seed: u64, architecture: Architecture) -> Staged<Emulated> {
    let device = Emulated::new(module(), Schedule::from_seed(seed)).of_architecture(architecture);
    Staged::new(Kernels::new(Arc::new(device)))
}

/// The kernels on the emulator: of one architecture, or of one or the other by what the call is.
pub struct EmulatedKernels(pub Option<Architecture>);

impl EmulatedKernels {
    fn architecture(&self, case: &Case) -> Architecture {
        let drawn = if case.seed.is_multiple_of(2) { Architecture::Hopper } else { Architecture::Portable };
        self.0.unwrap_or(drawn)
    }
}

impl Subject for EmulatedKernels {
    fn name(&self) -> String {
        match self.0 {
            None => "emulated kernels".into(),
            Some(architecture) => format!("emulated kernels for {}", architecture.name()),
        }
    }

    fn run(&self, data: &Data, case: &Case) -> Result<Outcome, Error> {
        let architecture = self.architecture(case);
        let run = &|schedule: usize| {
            Through(emulated_as(case.seed.wrapping_add(schedule as u64), architecture)).run(data, case)
        };
        // At once: the emulator uses one core, and a test on its own would leave the others idle.
        let (first, others) = thread::scope(|scope| {
            let others: Vec<_> = (1..orders(case)).map(|schedule| scope.spawn(move || run(schedule))).collect();
            let first = run(0);
            (first, others.into_iter().map(|other| other.join().expect("an answer")).collect::<Vec<_>>())
        });
        let first = first?;
        for other in others {
            if let Some(result) = bits::difference(&first, &other?) {
                let problem = format!("`{result}` depends on the order of execution");
                return Err(Error::Kernel { kernel: "a layer's".into(), problem });
            }
        }
        Ok(first)
    }
}

/// Whether the emulator is to be used. `DA_MOE_EMULATOR=0` leaves it out, whatever else there is: a machine that only has a
/// GPU has no compiler for the kernels' sources, and what fails there must not pass elsewhere.
pub fn is_emulator_wanted() -> bool {
    env::var_os("DA_MOE_EMULATOR").is_none_or(|wanted| wanted != "0")
}

/// The kernels on a GPU, if there is one.
pub fn gpu() -> Option<Box<dyn Subject>> {
    on_gpu().map(|gpu| Box::new(Through(gpu)) as Box<dyn Subject>)
}

/// The kernels on the emulator, if it is wanted.
pub fn emulator() -> Option<Box<dyn Subject>> {
    is_emulator_wanted().then(|| Box::new(EmulatedKernels(None)) as Box<dyn Subject>)
}

/// The kernels wherever they run here, on the emulator those of each architecture.
pub fn of_each_architecture() -> Vec<Box<dyn Subject>> {
    let emulated = [Architecture::Portable, Architecture::Hopper].map(|of| EmulatedKernels(Some(of)));
    let emulated = emulated.into_iter().filter(|_| is_emulator_wanted()).map(|of| Box::new(of) as Box<dyn Subject>);
    gpu().into_iter().chain(emulated).collect()
}

/// The kernels wherever they run here.
pub fn subjects() -> Vec<Box<dyn Subject>> {
    gpu().into_iter().chain(emulator()).collect()
}

/// As [`subjects`], for tests that look at more than a layer's outcome: each calls the one that is there.
pub fn on_each(emulator: impl FnOnce(Staged<Emulated>), gpu: impl FnOnce(Staged<Driver>)) {
    if is_emulator_wanted() {
        emulator(emulated(5));
    }
    if let Some(device) = on_gpu() {
        gpu(device);
    }
}

/// The GPU as tests have it: memory full of poison, which shows in results; or, with `DA_MOE_SANITIZE=1`, as tools that watch
/// every access need it: what nothing has written is left unwritten, what is outside an allocation is nobody's, and what is
/// never started is not there.
fn open_for_tests() -> Result<Driver, Error> {
    match env::var_os("DA_MOE_SANITIZE").is_some_and(|wanted| wanted == "1") {
        true => Driver::open_lazily(0).map(Driver::unpooled),
        false => Driver::open(0).map(|driver| driver.poisoned(0xff)),
    }
}

/// The kernels on this machine's GPU; without one, a line on standard error says why, past the test runner, which keeps
/// what passing tests print to itself. `DA_MOE_GPU=1` says that there is one: a test that cannot have it fails.
pub fn on_gpu() -> Option<Staged<Driver>> {
    static GPU: OnceLock<Result<Arc<Driver>, Error>> = OnceLock::new();
    let open = || {
        let driver = open_for_tests();
        let line = match &driver {
            Ok(driver) => format!("the kernels also run on {driver:?}"),
            Err(error) if is_emulator_wanted() => format!("the kernels run on the emulator only: {error}"),
            Err(error) => format!("the kernels run nowhere: {error}, and DA_MOE_EMULATOR=0"),
        };
        writeln!(io::stderr(), "{line}").expect("a line on standard error");
        driver.map(Arc::new)
    };
    match GPU.get_or_init(open) {
        Ok(driver) => Some(Staged::new(Kernels::new(driver.clone()))),
        Err(error) if env::var_os("DA_MOE_GPU").is_some_and(|there| there == "1") => {
            panic!("DA_MOE_GPU=1, but the GPU does not open: {error}")
        }
        Err(_) => None,
    }
}
