//! Whatever a file has in it, what is wrong with it is one line that a terminal shows as it is.

use crate::common::{Case, D, T, assert_refused, config, program, tensors};
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 12345\n";

fn one_line(output: &std::process::Output, culprit: &str) {
    assert_refused(output, culprit);
    let line = String::from_utf8_lossy(&output.stderr);
    let odd = line.trim_end_matches('\n').chars().find(|c| c.is_control() || *c == '\u{2028}');
    assert_eq!(odd, None, "{culprit}: {line:?}");
}

/// A safetensors file of this header and 32 bytes.
fn file(header: &str) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 32]].concat()
}

#[test]
fn about_inputs_of_run() {
    let good = tensors().bytes();
    let entry = r#"{"dtype":"F32","shape":[2,4],"data_offsets":[0,32]}"#;
    let far = r#"{"dtype":"F32","shape":[2,4],"data_offsets":[0,320000]}"#;
    let cases: [(String, Vec<u8>, &str); 10] = [
        (POINTER.into(), good.clone(), "git lfs pull"),
        (config(""), POINTER.into(), "git lfs pull"),
        (config(r#""a\nb\u001b[31m": 1"#), good.clone(), r"a\nb\u{1b}[31m"),
        (config(r#""hidden_act": "a\nb\u2028""#), good.clone(), r"a\nb\u{2028}"),
        (config(r#""importance": { "source": "\n" }"#), good.clone(), "importance"),
        (config(""), file(&format!(r#"{{"x":{entry},"x":{entry}}}"#)), "`x` is there twice"),
        (config(""), file(&format!(r#"{{"a\nb":{entry},"a\nb":{entry}}}"#)), r"`a\nb` is there twice"),
        (config(""), file(&format!(r#"{{"a\nb":{far}}}"#)), r"`a\nb` lies past the end"),
        (config(""), file(r#"{"a\nb":{"dtype":"\n","shape":[],"data_offsets":[0,0]}}"#), "safetensors"),
        (config(""), tensors().raw("x", Dtype::I16, &[T, D], vec![0; 2 * T * D]).bytes(), "`x`"),
    ];
    for (config, input, culprit) in cases {
        let case = Case::new(&config, &input);
        one_line(&case.run(&["--backward"]), culprit);
        assert!(!case.output().exists(), "{culprit}");
    }
}

/// A checkpoint that has a configuration, and a tensor that is none of its model's.
fn checkpoint(change: impl Fn(&mut Value)) -> Vec<u8> {
    let merges: Vec<[u32; 2]> = (0..20).map(|index| [4 + index, 5 + index]).collect();
    let mut text = json!({
        "config": {
            "model": { "vocabulary": 280, "width": 16, "layers": 2, "heads": 2, "length": 16, "experts": 4, "expert_width": 8 },
            "schedule": { "batch": 4, "steps": 20, "rate": 0.01, "warm_up": 5 },
            "variant": { "name": "x" },
            "seed": 1,
        },
        "step": 20,
        "optimizer_step": 20,
        "tokenizer": json!({ "byte_pairs": merges }).to_string(),
    });
    change(&mut text);
    let entry = json!({ "dtype": "F32", "shape": [8], "data_offsets": [0, 32] });
    file(&json!({ "__metadata__": { "da-moe": text.to_string() }, "a\nb": entry }).to_string())
}

#[test]
fn about_checkpoints_whatever_sizes_they_claim() {
    let folder = TempDir::new().expect("a temporary folder");
    let explain = |bytes: &[u8], culprit: &str| {
        std::fs::write(folder.path().join("model.safetensors"), bytes).expect("a written file");
        let mut command = program();
        command.current_dir(folder.path()).args(["explain", "--text", "a", "--model", "model.safetensors"]);
        one_line(&command.output().expect("a program that starts"), culprit);
    };
    explain(POINTER.as_bytes(), "git lfs pull");
    explain(b"", "model.safetensors");
    explain(&checkpoint(|_| {}), "no tensor");
    for (field, size) in [
        ("heads", 0u64),
        ("heads", 3),
        ("width", 1_000_000_000),
        ("width", 0),
        ("layers", 1_000_000_000),
        ("length", 1),
        ("length", 1 << 40),
        ("experts", 1 << 40),
        ("expert_width", u64::MAX),
        ("vocabulary", 281),
    ] {
        let claimed = |text: &mut Value| text["config"]["model"][field] = json!(size);
        explain(&checkpoint(claimed), "model.safetensors");
    }
    explain(&checkpoint(|text| text["step"] = json!(21)), "step 21 of 20");
    explain(&checkpoint(|text| text["optimizer_step"] = json!(19)), "optimiser");
    explain(&checkpoint(|text| text["tokenizer"] = json!("{\n}")), "tokenizer");
    explain(&checkpoint(|text| text["config"]["a\nb"] = json!(1)), r"a\nb");
    explain(&checkpoint(|text| text["config"]["variant"]["layer"] = json!({ "a\nb": 1 })), r"a\nb");
}

#[test]
fn about_texts_plans_and_names_of_files() {
    let folder = TempDir::new().expect("a temporary folder");
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("a written file");
    write("pointer.txt", POINTER);
    write("plan.json", "{ \"a\\nb\": 1 }");
    write("broken.json", "{\n\n  nonsense");
    let refused = |arguments: &[&str], culprit: &str| {
        let output = program().current_dir(folder.path()).args(arguments).output().expect("a program that starts");
        one_line(&output, culprit);
    };
    refused(&["train", "--text", "pointer.txt"], "git lfs pull");
    refused(&["demo", "--text", "pointer.txt"], "git lfs pull");
    refused(&["evaluate", "--plan", "plan.json"], r"a\nb");
    refused(&["evaluate", "--plan", "broken.json"], "broken.json");
    refused(&["run", "--config", "a", "--input", "b"], "--output");
    for command in [&["demo", "--text"][..], &["train", "--text"], &["explain", "--text", "a", "--model"]] {
        refused(&[command, &["no\nsuch\u{1b}[31mfile"]].concat(), r"no\nsuch\u{1b}[31mfile");
    }
    assert!(!Path::new(&folder.path().join("da-moe-model")).exists(), "nothing was trained");
}

/// With a backtrace that was asked for, the first line is the same.
#[test]
fn and_where_it_happened_follows_where_that_is_asked_for() {
    let folder = TempDir::new().expect("a temporary folder");
    std::fs::write(folder.path().join("model.safetensors"), checkpoint(|_| {})).expect("a written file");
    let explain = |backtrace: &str| {
        let mut command = program();
        command.current_dir(folder.path()).env("RUST_BACKTRACE", backtrace);
        command.args(["explain", "--text", "a", "--model", "model.safetensors"]);
        let output = command.output().expect("a program that starts");
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let (without, with) = (explain("0"), explain("1"));
    assert_eq!(without.lines().count(), 1, "{without}");
    assert!(with.lines().count() > 1 && with.starts_with(without.trim_end()), "{with}");
}
