//! The emulator, a GPU and the manuals agree on single instructions. Under nvcc a PTX wrapper is text in a string, on
//! the emulator a function: nothing else would notice a wrong operand in the text.
//!
//! Each kernel of `kernels/conformance/` is one instruction. Its output is held against plain Rust everywhere,
//! against vectors recorded on GPUs (`vectors/`), and against a GPU where there is one. `DA_MOE_RECORD=1` records it with the
//! others, `DA_MOE_RECORD=FOLDER` elsewhere.

mod bugs;
mod cases;
mod draw;
mod expansion;
mod expected;
mod hopper;
mod recorded;

use cases::{Case, all};
use da_moe::cuda::conformance::{self, KERNELS};
use da_moe::cuda::{Architecture, Device, Emulated};
use da_moe_emulator::{Compiler, Module, Schedule};
use da_moe_harness::kernels::{CACHE, on_gpu};
use expected::{differ, wrong};
use recorded::{Recording, Vector, checksum};
use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

const SEED: u64 = 1;
/// Orders of execution on the emulator: every policy, poison and number of resident blocks.
const SCHEDULES: u64 = 12;

/// Files of kernels.
const FILES: [&str; 2] = ["conformance/conformance.cu", "conformance/hopper/conformance_hopper.cu"];

fn compiler() -> Compiler {
    let compiler = Compiler::new(CACHE).include(Emulated::sources());
    FILES.iter().fold(compiler, |compiler, file| compiler.file(Emulated::sources().join(file)))
}

/// Cases that a device can be asked about.
fn cases_for(device: &impl Device) -> impl Iterator<Item = &'static Case> {
    let architecture = device.target().architecture;
    all().filter(move |case| architecture.runs(case.kernel().architecture()))
}

/// The emulator, in one order of execution; `None` where it is left out, as in `da_moe_harness::kernels`.
fn emulated(schedule: u64) -> Option<Arc<Emulated>> {
    static MODULE: OnceLock<Arc<Module>> = OnceLock::new();
    if !da_moe_harness::kernels::is_emulator_wanted() {
        return None;
    }
    let compile = || compiler().compile().unwrap_or_else(|error| panic!("{error}"));
    Some(Arc::new(Emulated::new(MODULE.get_or_init(compile).clone(), Schedule::from_seed(schedule))))
}

fn run<D: Device>(device: &Arc<D>, case: &Case, input: &[u32]) -> Vec<u32> {
    conformance::run(device, case.kernel(), input).unwrap_or_else(|error| panic!("{error}"))
}

/// What is wrong with a kernel on a device.
fn problem<D: Device>(device: &Arc<D>, case: &Case, seed: u64) -> Option<String> {
    let input = case.input(seed);
    match conformance::run(device, case.kernel(), &input) {
        Ok(output) => wrong(&case.expected(&input), &output),
        Err(error) => Some(error.to_string()),
    }
}

#[test]
fn the_emulator_does_what_the_manuals_say() {
    for schedule in 0..SCHEDULES {
        let Some(device) = emulated(schedule) else { return };
        for case in all() {
            let found = problem(&device, case, SEED + schedule);
            assert_eq!(found, None, "{} under schedule {schedule}", case.kernel().name());
        }
    }
}

/// What a device gives, and where that is not what the manuals say or another than the emulator's.
fn compare<D: Device>(device: &Arc<D>) -> (Recording, Vec<String>) {
    let (emulator, mut problems) = (emulated(0), Vec::new());
    let vector = |case: &Case| {
        let (name, input) = (case.kernel().name(), case.input(SEED));
        let (expected, output) = (case.expected(&input), run(device, case, &input));
        problems.extend(wrong(&expected, &output).map(|text| format!("{name}: {text}")));
        let other = emulator.as_ref().and_then(|other| differ(&expected, &output, &run(other, case, &input)));
        problems.extend(other.map(|text| format!("{name}, here and on the emulator: {text}")));
        Vector { kernel: name.into(), input: checksum(&input), output }
    };
    let vectors = cases_for(&**device).map(vector).collect();
    (Recording { device: device.describe(), seed: SEED, vectors }, problems)
}

#[test]
fn a_gpu_does_what_the_manuals_say_and_what_the_emulator_does() {
    let Some(gpu) = on_gpu() else { return };
    let device = gpu.kernels().device();
    let left_out = all().count() - cases_for(&**device).count();
    if left_out > 0 {
        tell(&format!("{left_out} conformance kernels are Hopper's and left out on {}", device.describe()));
    }
    let (recording, problems) = compare(device);
    // What a GPU gives is worth keeping most where it is not what was expected.
    if let Some(folder) = wanted_in(env::var_os("DA_MOE_RECORD")) {
        record(&recording, &folder);
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Where recordings are kept.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels/conformance/vectors")
}

/// Where a recording is to go, by what `DA_MOE_RECORD` says: to the others for `1`, else into the folder of that name.
fn wanted_in(asked: Option<OsString>) -> Option<PathBuf> {
    let asked = asked.filter(|asked| !asked.is_empty() && asked != "0")?;
    Some(if asked == "1" { folder() } else { asked.into() })
}

fn record(recording: &Recording, folder: &Path) {
    let (file, text) = (folder.join(recording.file_name()), recording.to_text());
    fs::write(&file, &text).unwrap_or_else(|error| panic!("cannot write {}: {error}", file.display()));
    let words: Vec<u32> = recording.vectors.iter().flat_map(|vector| vector.output.iter().copied()).collect();
    tell(&format!("conformance vectors recorded in {}, checksum {:016x}", file.display(), checksum(&words)));
}

/// A line past the test runner, which keeps what passing tests print to itself.
fn tell(line: &str) {
    writeln!(io::stderr(), "{line}").expect("a line on standard error");
}

/// Where a recording disagrees with the manuals or the emulator.
fn disagreements(file: &str, recording: &Recording) -> Vec<String> {
    let emulator = emulated(0);
    let of_vector = |vector: &Vector| {
        let Some(case) = all().find(|case| case.kernel().name() == vector.kernel) else {
            return Some("there is no such kernel any more".into());
        };
        let input = case.input(recording.seed);
        if checksum(&input) != vector.input {
            return Some("recorded of other words than are drawn now; record it again".into());
        }
        let expected = case.expected(&input);
        wrong(&expected, &vector.output).or_else(|| {
            emulator.as_ref().and_then(|device| differ(&expected, &vector.output, &run(device, case, &input)))
        })
    };
    let told = |vector: &Vector| Some(format!("{file}, {}: {}", vector.kernel, of_vector(vector)?));
    recording.vectors.iter().filter_map(told).collect()
}

#[test]
fn recorded_vectors_agree() {
    let recordings = recorded::read_all(&folder());
    if recordings.is_empty() {
        tell("no conformance vectors recorded yet");
    }
    let problems: Vec<_> = recordings.iter().flat_map(|(file, recording)| disagreements(file, recording)).collect();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn disagreements_with_a_recording_are_found() {
    let Some(device) = emulated(3) else { return };
    let (right, problems) = compare(&device);
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!(disagreements("right", &right), Vec::<String>::new());
    // The sign of some number in the middle, and so a lane, a bit of a mask or a half.
    let mut wrong = right.clone();
    for vector in &mut wrong.vectors {
        let place = vector.output.len() / 2;
        vector.output[place] ^= 1 << 31;
    }
    assert_eq!(disagreements("wrong", &wrong).len(), all().count());
    let other = Recording { seed: SEED + 1, ..right.clone() };
    assert!(disagreements("other", &other).iter().all(|text| text.contains("record it again")));
    let mut renamed = right;
    renamed.vectors.truncate(1);
    renamed.vectors[0].kernel = "conformance_gone".into();
    assert!(disagreements("renamed", &renamed)[0].contains("no such kernel"));
}

#[test]
fn recordings_go_where_they_are_wanted() {
    let of = |asked: &str| wanted_in(Some(asked.into()));
    assert_eq!([wanted_in(None), of(""), of("0")], [const { None }; 3]);
    assert_eq!(of("1"), Some(folder()));
    // Also on a machine where the sources lie, as here.
    let elsewhere = env::temp_dir().join(format!("da-moe-recording-{}", std::process::id()));
    fs::create_dir_all(&elsewhere).expect("a new folder");
    let vectors = vec![Vector { kernel: "conformance_a".into(), input: 5, output: vec![1, 2] }];
    let recording = Recording { device: "a device".into(), seed: SEED, vectors };
    record(&recording, &wanted_in(Some(elsewhere.clone().into())).expect("a folder"));
    assert_eq!(recorded::read_all(&elsewhere), [("a-device.txt".to_string(), recording)]);
    fs::remove_dir_all(&elsewhere).expect("its own folder");
}

#[test]
fn every_kernel_of_the_files_is_run() {
    let sources = FILES.map(|file| fs::read_to_string(Emulated::sources().join(file)));
    // A machine that only has test programs has no sources.
    let [Ok(portable), Ok(hopper)] = sources else { return };
    let of = |source: &str| -> Vec<String> {
        let name = |line: &str| line.strip_prefix("GPU_KERNEL(")?.strip_suffix(')').map(String::from);
        source.lines().filter_map(name).collect()
    };
    let run = |architecture| KERNELS.iter().filter(move |kernel| kernel.architecture() == architecture);
    let names = |architecture| run(architecture).map(|kernel| kernel.name()).collect::<Vec<_>>();
    assert_eq!(of(&portable), names(Architecture::Portable));
    assert_eq!(of(&hopper), names(Architecture::Hopper));
    let cases = all().map(|case| case.kernel().name());
    assert_eq!(KERNELS.iter().map(|kernel| kernel.name()).collect::<Vec<_>>(), cases.collect::<Vec<_>>());
}

/// Another GPU is not asked about them.
#[test]
fn kernels_for_hopper_are_left_out_elsewhere() {
    let Some(device) = emulated(0) else { return };
    let portable = Emulated::new(compiler().compile().expect("it did before"), Schedule::from_seed(0))
        .of_architecture(Architecture::Portable);
    let (everywhere, here) = (cases_for(&portable).count(), cases_for(&*device).count());
    assert_eq!((everywhere < here, here), (true, KERNELS.len()));
}

#[test]
fn a_wrong_number_of_words_is_refused() {
    let Some(device) = emulated(0) else { return };
    let refused = conformance::run(&device, &KERNELS[0], &[0; 3]).expect_err("three words");
    assert!(refused.to_string().contains("was given 3"), "{refused}");
}
