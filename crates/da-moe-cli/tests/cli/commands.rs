//! `demo`, `bench` and `doctor`, and what `--help` says.

use crate::common::{assert_refused, program};
use predicates::prelude::*;
use serde_json::Value;
use tempfile::TempDir;

const TEXT: &str = "The committee met on Tuesday. It found that the <bridge> & its foundations, built in 1931, \
    were no longer safe; the engineers recommended immediate closure.\n\nA second \"report\" will follow.";

#[test]
fn demo_runs_on_its_own_text_and_agrees_with_the_oracle() {
    let folder = TempDir::new().expect("a temporary folder");
    let (svg, html) = (folder.path().join("demo.svg"), folder.path().join("demo.html"));
    let mut command = program();
    command.arg("demo").arg("--svg").arg(&svg).arg("--html").arg(&html);
    command
        .assert()
        .success()
        .stdout(predicate::str::contains("agrees with the f64 oracle"))
        .stdout(predicate::str::contains("fixed top-4"))
        .stdout(predicate::str::contains("\u{1b}").not())
        .stderr("");
    for path in [svg, html] {
        let text = std::fs::read_to_string(&path).expect("a picture");
        let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
        roxmltree::Document::parse_with_options(&text, options).expect("well-formed XML");
        assert!(!text.contains("href") && !text.contains("src="), "a picture needs no other file");
    }
}

#[test]
fn without_a_command_the_demo_runs() {
    program().assert().success().stdout(predicate::str::contains("agrees with the f64 oracle"));
}

#[test]
fn demo_reads_standard_input_and_escapes_it() {
    let folder = TempDir::new().expect("a temporary folder");
    let svg = folder.path().join("demo.svg");
    let mut command = program();
    command.args(["demo", "--text", "-", "--svg"]).arg(&svg).write_stdin(TEXT);
    command.assert().success().stdout(predicate::str::contains("foundations"));
    let text = std::fs::read_to_string(&svg).expect("a picture");
    let document = roxmltree::Document::parse(&text).expect("well-formed XML");
    let shown = document.descendants().filter_map(|node| node.text()).any(|text| text.trim() == "&");
    assert!(shown && !text.contains("<bridge>"));
}

#[test]
fn demo_takes_any_text_that_has_a_word() {
    let long = "word ".repeat(3000);
    for text in ["a", "…word…", "注意力機制", "naïve café\u{301}", "1 2 3", long.as_str()] {
        program().args(["demo", "--text", "-"]).write_stdin(text).assert().success();
    }
}

#[test]
fn demo_refuses_a_text_without_words() {
    for text in ["", "  \n\n ", "?! ..."] {
        let output = program().args(["demo", "--text", "-"]).write_stdin(text).output().expect("a program that starts");
        assert_refused(&output, "no words");
    }
    let output = program().args(["demo", "--text", "-"]).write_stdin([0xff, 0xfe]).output();
    assert_refused(&output.expect("a program that starts"), "cannot read `-`");
}

#[test]
fn demo_colours_where_it_is_told_to() {
    let mut command = program();
    command.args(["demo", "--text", "-"]).write_stdin(TEXT).env("CLICOLOR_FORCE", "1").env("COLORTERM", "truecolor");
    command.assert().success().stdout(predicate::str::contains("\u{1b}[48;2;").or(predicate::str::contains("48;2;")));
    let mut command = program();
    command.args(["demo", "--text", "-"]).write_stdin(TEXT).env("NO_COLOR", "1");
    command.assert().success().stdout(predicate::str::contains("\u{1b}").not());
}

#[test]
fn bench_prints_one_object() {
    let output = program()
        .args(["bench", "--shape", "64,16,24,8", "--mean-k", "1.5", "--backward", "--repeats", "5", "--json"])
        .output()
        .expect("a program that starts");
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let object: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    for (field, value) in [("T", 64), ("D", 16), ("F", 24), ("E", 8), ("repeats", 5)] {
        assert_eq!(object[field], value, "{field}");
    }
    assert_eq!((&object["shape"], &object["dtype"]), (&"64,16,24,8".into(), &"f32".into()));
    assert!((object["mean_k"].as_f64().expect("a number") - 1.5).abs() < 0.02);
    assert_eq!(object["rows"].as_f64().expect("a number"), 64.0 * object["mean_k"].as_f64().expect("a number"));
    for stage in ["importance", "gate", "permute", "experts", "combine"] {
        assert!(object["stages_ms"][stage].as_f64().is_some_and(|ms| ms >= 0.0), "{stage}");
    }
    assert!(object["stages_ms"]["experts"].as_f64() > Some(0.0));
    for field in ["forward_ms", "backward_ms", "gflops_forward", "gflops_backward", "ceiling_gflops"] {
        assert!(object[field].as_f64().is_some_and(|number| number > 0.0), "{field}");
    }
    assert!(object["device"].is_string() && object.get("peak_bytes").is_some());
}

#[test]
fn bench_without_backward_has_no_backward() {
    for more in [["--k", "2"], ["--dtype", "bf16"], ["--dtype", "f16"], ["--act", "relu"]] {
        let output = program().args(["bench", "--shape", "9,8,8,3", "--json"]).args(more).output();
        let output = output.expect("a program that starts");
        let object: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        assert!(object["backward_ms"].is_null() && object["gflops_backward"].is_null());
    }
    let table = program().args(["bench", "--shape", "9,8,8,3", "--backward"]).output().expect("a program that starts");
    let table = String::from_utf8(table.stdout).expect("text");
    assert!(table.contains("ceiling") && table.contains("% of the ceiling") && table.contains("backward"), "{table}");
}

#[test]
fn bench_keeps_what_it_is_told_to() {
    let bench = |more: &[&str]| {
        let output = program().args(["bench", "--shape", "64,16,24,8", "--repeats", "5", "--json"]).args(more).output();
        output.expect("a program that starts")
    };
    for keep in ["hidden", "recompute"] {
        let output = bench(&["--backward", "--keep", keep]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let object: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        assert!(object["backward_ms"].as_f64() > Some(0.0), "{keep}");
    }
    assert_refused(&bench(&["--keep", "hidden"]), "--backward");
    assert_refused(&bench(&["--backward", "--keep", "nothing"]), "'nothing'");
}

/// What `auto` chose is told with the reason, what was named without.
#[test]
fn auto_says_why_there_is_no_gpu() {
    let device = |device: &str| {
        let bench = ["bench", "--shape", "9,8,8,3", "--repeats", "5", "--json", "--device", device];
        let output = program().args(bench).output().expect("a program that starts");
        let object: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        object["device"].as_str().expect("a text").to_string()
    };
    let (cpu, auto) = (device("cpu"), device("auto"));
    match da_moe::Cuda::open(0) {
        Ok(cuda) => assert_eq!(auto, da_moe::Backend::describe(&cuda)),
        Err(error) => {
            assert_eq!(auto.lines().count(), 1);
            assert_eq!(auto, format!("{cpu} ({})", error.to_string().replace('\n', " ")));
            let named = program().args(["bench", "--device", "cuda"]).output().expect("a program that starts");
            assert_refused(&named, &error.to_string()[..20]);
            let demo =
                program().args(["demo", "--text", "-"]).write_stdin(TEXT).output().expect("a program that starts");
            assert!(String::from_utf8_lossy(&demo.stdout).contains(&format!("({error})")), "demo tells it too");
        }
    }
}

#[test]
fn doctor_answers() {
    let output = program().args(["doctor", "--json"]).output().expect("a program that starts");
    let object: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert!(output.status.success() && output.stderr.is_empty());
    assert!(object["cpu"]["cores"].as_u64().is_some_and(|cores| cores > 0));
    assert!(object["cpu"]["features"].is_array() && object["gpu"]["devices"].is_array());
    let (kernels, built) = (&object["kernels"], da_moe::cuda::kernels().is_some());
    assert_eq!(kernels["built"], built);
    assert!(kernels["compiler"].is_string() == built && kernels["reason"].is_null() == built);
    assert_eq!(kernels["architectures"].as_array().map(Vec::is_empty), Some(!built));
    let compiler = &object["compiler"];
    assert!(compiler["nvcc"].is_string() != compiler["reason"].is_string());
    program().arg("doctor").assert().success().stdout(predicate::str::contains(if built {
        "built by nvcc"
    } else {
        "not built ("
    }));
}

#[test]
fn doctor_says_where_the_compiler_was_looked_for() {
    let folder = TempDir::new().expect("a temporary folder");
    let missing = folder.path().join("nvcc");
    let mut command = program();
    command.arg("doctor").env("NVCC", &missing);
    command.assert().success().stdout(predicate::str::contains("NVCC names"));
    std::fs::write(&missing, "").expect("a written file");
    let mut command = program();
    command.arg("doctor").env("NVCC", &missing);
    command.assert().success().stdout(predicate::str::contains(missing.to_string_lossy().into_owned()));
}

/// The texts that users read first. `UPDATE_SNAPSHOTS=1 cargo test` writes them anew.
#[test]
fn help_is_as_reviewed() {
    let commands = ["", "demo", "train", "explain", "evaluate", "run", "bench", "plan", "doctor"];
    let mut help = String::new();
    for command in commands {
        let command: Vec<&str> = Some(command).into_iter().filter(|name| !name.is_empty()).collect();
        let output = program().args(&command).arg("--help").output().expect("a program that starts");
        assert!(output.status.success() && output.stderr.is_empty());
        let text = String::from_utf8(output.stdout).expect("text");
        let lines: Vec<_> = text.lines().map(str::trim_end).collect();
        help += &format!("$ da-moe {}\n{}\n\n", [&command[..], &["--help"]].concat().join(" "), lines.join("\n"));
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/help.txt");
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(path, &help).expect("a written file");
    }
    let reviewed = std::fs::read_to_string(path).expect("the reviewed texts").replace("\r\n", "\n");
    assert!(help == reviewed, "--help has changed; review it and run with UPDATE_SNAPSHOTS=1:\n{help}");
}
