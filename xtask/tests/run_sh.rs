//! The bundle's `run.sh` with programs that only pretend: what it says, when, how much of it, and that it ends in time whatever
//! they do.
#![cfg(unix)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs};

const SCRIPT: &str = include_str!("../gpu-bundle/run.sh");

/// Passes everything, but for the tests whose names have one of these in them:
/// `FAILING` fails, `HANGING` never ends and cannot be asked to, `CRASHING` kills its process, `SLOW` takes two seconds.
const PROGRAM: &str = r#"#!/bin/sh
has() { [ -n "$2" ] && case "$1" in *"$2"*) return 0 ;; esac; return 1; }
panics() { printf "\nthread '%s' (7) panicked at tests/x.rs:1:2:\n%s\nnote: run with a backtrace\n" "$1" "$2" >&2; }
case "$*" in
    --list)
        for group in $LISTED smoke kernels::conformance properties::graphs; do printf '%s::one: test\n%s::two: test\n' $group $group; done
        printf 'properties::engine::tensors_on_it: test\nproperties::graphs::gradients_x: test\nkernels::experts::strided_x: test\n'
        printf 'kernels::forward::plans: test\nkernels::backward::no_tokens: test\n' ;;
    *probe*) printf 'running 1 test\ntest probe ... probe: %s\nprobe: sm_90a: 3 kernels\nok\n' "$PROBE" ;;
    *bench*)
        echo "tiny: $DA_MOE_BENCH, seconds: $DA_MOE_BENCH_SECONDS"
        if has bench "$FAILING"; then echo 'marin FAILED: it does not'; exit 101; fi
        for shape in a b c d e f g h i j k l m n; do printf "$shape-shape 1 TFLOP/s %0200d\n    details TFLOP/s\n" 7; done ;;
    *)
        shift; [ "$1" = 1 ] && shift
        failures=
        for name; do
            case "$name" in *::*) ;; *) continue ;; esac
            if has "$name" "$HANGING"; then trap '' TERM; printf 'test %s ... ' "$name"; sleep 60; fi
            if has "$name" "$CRASHING"; then kill -SEGV $$; fi
            if has "$name" "$SLOW"; then sleep 2; fi
            if has "$name" "$FAILING"; then
                panics "$name" "the device is lost after $$ calls: sync=$DA_MOE_SYNC blocking=$CUDA_LAUNCH_BLOCKING"
                echo "test $name ... FAILED"
                failures="$failures $name"
            else
                echo "test $name ... ok"
            fi
        done
        [ -z "$failures" ] || { echo 'test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured'; exit 101; }
        echo 'test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured' ;;
esac
"#;

/// A sanitizer that either finds what `FOUND` says, or refuses the device, or runs the program and has nothing to say.
const SANITIZER: &str = r#"#!/bin/sh
case "$FOUND" in
    refuses) echo '========= Error: Device not supported. Please refer to the manual'; exit 1 ;;
    "") while [ "${1##*/}" != da-moe-gpu ]; do shift; done; "$@"; echo '========= ERROR SUMMARY: 0 errors' ;;
    *) for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do echo "========= $FOUND number $i"; done; echo '========= ERROR SUMMARY: 16 errors'; exit 1 ;;
esac
"#;

const CLOCK: &str = "#!/bin/sh\ncase \"$1\" in -L) echo 'GPU 0: pretended' ;; --query*) exec sleep 100 ;; *) echo 'driver 580' ;; esac\n";

/// Groups of properties, as the script has them.
fn groups() -> Vec<&'static str> {
    let lists = SCRIPT.split("\nGROUPS_").skip(1).filter_map(|list| list.split('"').nth(1));
    lists.flat_map(str::split_whitespace).collect()
}

struct Bundle {
    folder: PathBuf,
    environment: Vec<(&'static str, String)>,
}

struct Ended {
    text: String,
    code: Option<i32>,
    /// When each line came.
    times: Vec<(Duration, String)>,
    took: Duration,
    files: Vec<String>,
    log: String,
}

impl Bundle {
    fn new(name: &str) -> Self {
        let folder = env::temp_dir().join(format!("da-moe-bundle-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        let bundle =
            Self { folder, environment: vec![("PROBE", "found a GPU".into()), ("LISTED", groups().join(" "))] };
        bundle.write("run.sh", SCRIPT);
        bundle.write("da-moe-gpu", PROGRAM);
        bundle.write("da-moe", "#!/bin/sh\necho \"da-moe $*\"\n");
        bundle.write("gpu_moe.py", "import sys\nprint('a-shape', 'grouped_mm', '1 TFLOP/s', sys.argv[1:])\n");
        bundle
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.folder.join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a new folder");
        fs::write(&path, text).expect("a written file");
        let executable = Command::new("chmod").arg("+x").arg(&path).status().expect("chmod");
        assert!(executable.success());
    }

    /// A program that is looked for in `PATH`.
    fn tool(self, name: &str, text: &str) -> Self {
        self.write(&format!("bin/{name}"), text);
        self
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        let (out, start) = (self.folder.join("out"), Instant::now());
        let path = format!("{}:{}", self.folder.join("bin").display(), env::var("PATH").expect("a path"));
        let mut child = Command::new("sh")
            .arg(self.folder.join("run.sh"))
            .args(arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .env("PATH", path)
            .env("OUT", &out)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("a shell");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let times: Vec<_> = lines.map(|line| (start.elapsed(), line.expect("a line"))).collect();
        let code = child.wait().expect("an end").code();
        let files = fs::read_dir(&out).into_iter().flatten().flatten();
        let mut files: Vec<String> = files.map(|file| file.file_name().to_string_lossy().into()).collect();
        files.sort();
        let text: String = times.iter().flat_map(|(_, line)| [line.as_str(), "\n"]).collect();
        let log = fs::read_to_string(out.join("log.txt")).unwrap_or_default();
        Ended { text, code, times, took: start.elapsed(), files, log }
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Ended {
    fn row(&self, name: &str) -> &str {
        let is_row = |line: &&str| line.split_once("s] ").is_some_and(|(_, rest)| rest.trim_start().starts_with(name));
        self.text.lines().find(is_row).unwrap_or_else(|| panic!("no row of {name}:\n{}", self.text))
    }

    #[track_caller]
    fn expect(&self, name: &str, outcome: &str) {
        assert!(self.row(name).contains(outcome), "{name} is not {outcome}:\n{}", self.text);
    }

    /// What comes back from a machine that is lent.
    #[track_caller]
    fn expect_within_limits(&self) {
        assert!(self.files.len() <= 6, "{:?}", self.files);
        assert!(self.text.len() <= 12_000, "{} characters", self.text.len());
    }
}

const TESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests");

/// What a file says are its modules, `folder::file` of those in a folder.
fn modules(file: &str) -> Vec<String> {
    let text = fs::read_to_string(Path::new(TESTS).join(file)).expect("a file of tests");
    let (mut all, mut folder) = (Vec::new(), String::new());
    for declared in text.lines().filter_map(|line| line.trim_start().strip_prefix("mod ").or(line.strip_prefix('}'))) {
        match (declared.strip_suffix(" {"), declared.strip_suffix(';')) {
            (Some(name), _) => folder = format!("{name}::"),
            (_, Some(name)) => all.push(format!("{folder}{name}")),
            _ => folder.clear(),
        }
    }
    all
}

#[test]
fn every_group_of_the_program_is_a_part() {
    let mut all = modules("gpu/main.rs");
    // One folder belongs to it as it is.
    let whole = all.iter().position(|module| module == "properties").expect("the properties");
    all.remove(whole);
    all.extend(modules("properties/main.rs").iter().map(|name| format!("properties::{name}")));
    for module in &all {
        let elsewhere = ["bench", "kernels::conformance", "properties::graphs", "smoke"].contains(&module.as_str());
        assert!(elsewhere != groups().contains(&module.as_str()), "{module}");
    }
    assert!(groups().iter().all(|group| all.iter().any(|module| module == group)), "{:?}", groups());
    // And every file of tests that would run on a GPU is of the program.
    for folder in ["kernels", "planted_bugs", "properties", "refusals", "tools"] {
        for name in modules(&format!("{folder}/main.rs")) {
            let files = [format!("{folder}/{name}.rs"), format!("{folder}/{name}/mod.rs")];
            let text = files.iter().find_map(|file| fs::read_to_string(Path::new(TESTS).join(file)).ok());
            let text = text.expect("a module's file");
            let on_gpu = ["on_every_device!", "on_each(", "subjects()", "on_gpu(", "kernels::gpu()", "taking_turns("];
            if on_gpu.iter().any(|call| text.contains(call)) {
                assert!(
                    all.contains(&format!("{folder}::{name}")),
                    "tests/{folder}/{name}.rs is not in tests/gpu/main.rs"
                );
            }
        }
    }
}

#[test]
fn limits_leave_time_for_another_try() {
    let totals: Vec<u32> =
        SCRIPT.split("total=").skip(1).filter_map(|rest| rest.split(' ').next()?.parse().ok()).collect();
    assert_eq!(totals, [400, 270]);
    let mut limits = SCRIPT.split("timeout ").skip(1);
    assert!(limits.all(|rest| rest.starts_with("-k 5 ")), "what ignores being asked to end is ended");
    assert!(!SCRIPT.contains("--quiet"));
}

#[test]
fn without_a_gpu_it_says_so_and_ends() {
    let ended = Bundle::new("none").with("PROBE", "none no GPU: there is no driver").run(&["first"]);
    assert_eq!((ended.text.as_str(), ended.code), ("no GPU: there is no driver\nnothing was run\n", Some(0)));
    let ended = Bundle::new("hidden").with("PROBE", "none no driver").tool("nvidia-smi", CLOCK).run(&["first"]);
    ended.expect("probe", "FAILED, nvidia-smi sees a GPU: no driver");
    assert_eq!(ended.code, Some(1));
    let ended = Bundle::new("broken").with("PROBE", "broken cuInit: unknown error").run(&["again"]);
    ended.expect("probe", "FAILED, the GPU cannot be used");
    assert!(ended.text.contains("\n  cuInit: unknown error\n"), "{}", ended.text);
    assert!(ended.text.ends_with("nothing was run\n") && ended.code == Some(1));
    let bundle = Bundle::new("mute").with("DA_MOE_SECONDS", "5");
    bundle.write("da-moe-gpu", "#!/bin/sh\n[ \"$1\" = --list ] || exec sleep 60\n");
    let ended = bundle.run(&["first"]);
    ended.expect("probe", "FAILED, the GPU does not answer within ");
    let bundle = Bundle::new("absent");
    bundle.write("da-moe-gpu", "#!/bin/sh\necho GLIBC_9.9 not found\nexit 1\n");
    let ended = bundle.run(&["first"]);
    ended.expect("probe", "FAILED, the program does not start: GLIBC_9.9 not found");
    assert_eq!(ended.code, Some(1));
}

#[test]
fn only_what_there_is_can_be_asked_for() {
    for arguments in [&[][..], &["all"], &["first", "engine::"], &["again", "--only"], &["again", "-x"]] {
        let ended = Bundle::new("usage").run(arguments);
        assert_eq!((ended.text.as_str(), ended.code), ("", Some(2)), "{arguments:?}");
    }
}

#[test]
fn everything_passes_and_is_told() {
    let bundle = Bundle::new("passing").tool("nvidia-smi", CLOCK).with("DA_MOE_SECONDS", "60");
    let ended = bundle.run(&["first"]);
    assert_eq!(ended.code, Some(0), "{}", ended.text);
    ended.expect_within_limits();
    for name in
        ["probe", "conformance", "smoke", "demo", "graphs", "bench-tiny", "bench ", "peers"].iter().chain(&groups())
    {
        ended.expect(name, "passed");
    }
    ended.expect("graphs", "passed, 2 passed; 0 failed");
    assert_eq!(ended.files, ["bench.txt", "log.txt", "peers.txt", "smi.csv", "table.txt"]);
    assert!(ended.text.contains("\nn-shape 1 TFLOP/s") && !ended.text.contains("details"), "{}", ended.text);
    assert!(ended.text.contains("grouped_mm 1 TFLOP/s ['--seconds', '") && ended.text.contains("sm_90a: 3 kernels"));
    assert!(ended.text.ends_with("next: ./run.sh again REST=\"\"\n"), "{}", ended.text);
    // Every test but those of time, once: in the log with its command, each group by its own names alone.
    assert!(
        ended.log.contains("--nocapture --exact kernels::forward::one kernels::forward::plans kernels::forward::two\n"),
        "{}",
        ended.log
    );
    assert!(ended.log.contains("test properties::edges::two ... ok") && ended.log.contains("    details TFLOP/s"));
}

#[test]
fn failures_are_told_with_their_words_and_in_the_next_call() {
    let ended =
        Bundle::new("failing").with("FAILING", "properties::engine::").with("DA_MOE_SECONDS", "60").run(&["first"]);
    assert_eq!(ended.code, Some(1));
    ended.expect_within_limits();
    ended.expect("properties::engine", "FAILED with 101");
    ended.expect("properties::leak", "passed");
    assert!(ended.text.contains("  properties::engine::one: the device is lost after "), "{}", ended.text);
    assert!(ended.text.contains("sync=1 blocking=1"), "smoke waits for every launch: {}", ended.text);
    // The same words of the other tests of a group are counted.
    assert!(ended.text.contains("  and 2 more with the same words"), "{}", ended.text);
    assert!(
        ended.text.contains(
            "next: ./run.sh again properties::engine::one properties::engine::tensors_on_it properties::engine::two REST=\"\""
        ),
        "{}",
        ended.text
    );
    let ended = Bundle::new("bench").with("FAILING", "bench").with("DA_MOE_SECONDS", "60").run(&["first"]);
    ended.expect("bench-tiny", "FAILED with 101");
    assert!(ended.text.contains("  marin FAILED: it does not") && ended.code == Some(1), "{}", ended.text);
    // Everything fails: what is told of it still fits.
    let ended = Bundle::new("lost").with("FAILING", "::").with("DA_MOE_SECONDS", "60").run(&["first"]);
    ended.expect_within_limits();
    ended.expect("properties::finite_differences", "FAILED with 101");
}

#[test]
fn rows_come_as_they_happen() {
    let bundle = Bundle::new("rows").with("SLOW", "properties::graphs::").with("DA_MOE_SECONDS", "60");
    let ended = bundle.run(&["first"]);
    let when = |name: &str| ended.times.iter().find(|(_, line)| line.contains(name)).expect("a row").0;
    assert!(when("] graphs") - when("] smoke") > Duration::from_secs(4), "{:?}", ended.times);
    assert!(ended.took - when("] smoke") > Duration::from_secs(4), "{:?}", ended.times);
}

#[test]
fn what_hangs_is_killed_and_the_rest_has_no_time() {
    let bundle = Bundle::new("hanging").with("HANGING", "properties::graphs::two").with("DA_MOE_SECONDS", "9");
    let ended = bundle.run(&["first"]);
    assert!(ended.took < Duration::from_secs(9 + 5 + 4), "{:?}: {}", ended.took, ended.text);
    ended.expect_within_limits();
    ended.expect("graphs", "FAILED, out of time after");
    ended.expect("peers", "no time");
    ended.expect("properties::leak", "no time");
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.text.contains("next: ./run.sh again properties::graphs::two REST=\"kernels::forward "),
        "{}",
        ended.text
    );
    assert!(
        ended.log.contains("test properties::graphs::one ... ok\ntest properties::graphs::two ... "),
        "{}",
        ended.log
    );
}

#[test]
fn what_crashes_takes_nothing_along() {
    let ended =
        Bundle::new("crashing").with("CRASHING", "properties::edges::two").with("DA_MOE_SECONDS", "60").run(&["first"]);
    ended.expect("properties::edges", "FAILED with 139");
    ended.expect("properties::engine", "passed");
    assert!(ended.text.contains("next: ./run.sh again properties::edges::two REST=\"\""), "{}", ended.text);
}

#[test]
fn a_group_that_the_end_cuts_off_goes_on_in_the_next_call() {
    let bundle = Bundle::new("cut").with("HANGING", "kernels::forward::one").with("DA_MOE_SECONDS", "12");
    let ended = bundle.run(&["first"]);
    ended.expect("kernels::forward", "no time, cut off after");
    assert!(
        ended.code == Some(0) && ended.text.contains("again REST=\"kernels::forward kernels::experts "),
        "{}",
        ended.text
    );
}

#[test]
fn the_peers_say_what_keeps_them() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/peers");
    for file in ["gpu_moe.py", "gpu_peers.py"] {
        let program = "import ast, sys; ast.parse(open(sys.argv[1]).read())";
        let parsed = Command::new("python3").args(["-c", program]).arg(folder.join(file)).status().expect("python3");
        assert!(parsed.success(), "{file}");
    }
    // Without the packages of this machine, so without PyTorch.
    let run = |arguments: &[&str]| {
        let output = Command::new("python3").arg("-S").arg(folder.join("gpu_moe.py")).args(arguments).output();
        let output = output.expect("python3");
        (String::from_utf8_lossy(&output.stdout).into_owned(), output.status.code())
    };
    let skipped = ("peers: skipped, PyTorch is not installed\n".to_string(), Some(0));
    assert_eq!([run(&["--seconds", "50"]), run(&["--cpu"])], [skipped.clone(), skipped]);
    assert_eq!(run(&["--seconds", "soon"]).1, Some(2));
    let (help, _) = run(&["--help"]);
    assert!(help.contains("--seconds") && help.contains("--cpu"), "{help}");
}

#[test]
fn the_second_call_looks_closer() {
    let bundle = Bundle::new("closer").tool("compute-sanitizer", SANITIZER).with("DA_MOE_SECONDS", "60");
    let ended = bundle.with("FAILING", "properties::engine::one");
    let ended = ended.run(&["again", "F=properties::engine::one properties::graphs::", "REST=properties::leak"]);
    ended.expect_within_limits();
    ended.expect("alone properties::engine::one", "FAILED with 101");
    assert!(ended.text.contains("sync=1 blocking=1"), "{}", ended.text);
    ended.expect("memcheck properties::engine::one", "ERROR SUMMARY: 0 errors");
    ended.expect("alone properties::graphs::", "passed");
    ended.expect("properties::leak", "passed");
    ended.expect("initcheck", "passed");
    ended.expect("bench ", "passed");
    assert!(!ended.text.contains("] properties::nonfinite") && ended.code == Some(1), "{}", ended.text);
}

#[test]
fn sanitizers_find_or_refuse() {
    let bundle = Bundle::new("finding").tool("compute-sanitizer", SANITIZER).with("DA_MOE_SECONDS", "60");
    let ended = bundle.with("FOUND", "Invalid __global__ write").run(&["again", "REST="]);
    ended.expect("racecheck", "FAILED with 1");
    assert!(ended.text.contains("  ========= Invalid __global__ write number 1\n"), "{}", ended.text);
    ended.expect_within_limits();
    let bundle = Bundle::new("refusing").tool("compute-sanitizer", SANITIZER).with("DA_MOE_SECONDS", "60");
    let ended = bundle.with("FOUND", "refuses").run(&["again", "REST="]);
    ended.expect("memcheck", "skipped, the tool does not support this device");
    assert_eq!(ended.code, Some(0), "{}", ended.text);
    let ended = Bundle::new("no-tool").with("DA_MOE_SECONDS", "60").run(&["again", "engine::nothing", "REST="]);
    ended.expect("synccheck", "skipped, compute-sanitizer is not installed");
    ended.expect("alone engine::nothing", "FAILED, there is no such test: engine::nothing");
}

#[test]
fn programs_may_be_elsewhere_and_packed() {
    let elsewhere = Bundle::new("elsewhere");
    let bundle = Bundle::new("scripts").with("DA_MOE_BUNDLE", &elsewhere.folder.display().to_string());
    fs::remove_file(bundle.folder.join("da-moe-gpu")).expect("a file");
    fs::remove_file(bundle.folder.join("da-moe")).expect("a file");
    let packed = Command::new("gzip").arg(elsewhere.folder.join("da-moe-gpu")).status().expect("gzip");
    assert!(packed.success() && !elsewhere.folder.join("da-moe-gpu").exists());
    let ended = bundle.with("DA_MOE_SECONDS", "60").run(&["first"]);
    assert_eq!(ended.code, Some(0), "{}", ended.text);
    ended.expect("demo", "passed");
}
