//! `train`, `explain` and `evaluate`: small models, whole commands.

use crate::common::{assert_refused, program};
use predicates::prelude::*;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

fn folder() -> TempDir {
    TempDir::new().expect("a temporary folder")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn assert_picture(path: &Path) {
    let text = read(path);
    assert!(roxmltree::Document::parse(&text).is_ok(), "{} is no picture: {text}", path.display());
}

/// A text of sixty paragraphs, no two of them the same.
fn text(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("text.txt");
    let paragraph = |n: usize| {
        let (who, what) = (["red", "grey", "young", "old"][n % 4], ["river", "road", "field"][n / 4 % 3]);
        let place = ["bridge", "house", "tree", "hill", "wall"][n / 12];
        format!(
            "The {who} fox crossed the <{what}> & slept under the {place} until the morning came, when all of the others had \
             gone down to the valley and the day was bright again, as it had been before.\n\n"
        )
    };
    fs::write(&path, (0..60).map(paragraph).collect::<String>()).expect("a written file");
    path
}

#[test]
fn train_then_explain() {
    for causal in [false, true] {
        let folder = folder();
        let (model, svg) = (folder.path().join("model"), folder.path().join("learned.svg"));
        let mut train = program();
        train.args(["train", "--steps", "8", "--vocabulary", "280", "--text"]).arg(text(folder.path()));
        train.arg("--model").arg(&model).arg("--svg").arg(&svg);
        if causal {
            train.arg("--causal");
        }
        let output =
            train.assert().success().stderr("").stdout(predicate::str::contains("fixed top-2")).get_output().clone();
        assert_picture(&svg);

        // Everything has been done: the same again says the same.
        train.assert().success().stdout(output.stdout);

        let (svg, html) = (folder.path().join("text.svg"), folder.path().join("text.html"));
        let mut explain = program();
        explain
            .args(["explain", "--text", "a grey <fox> & a bridge", "--model"])
            .arg(model.join("dynamic/checkpoint.safetensors"));
        explain.arg("--svg").arg(&svg).arg("--html").arg(&html);
        explain.assert().success().stderr("").stdout(predicate::str::contains("importance"));
        assert_picture(&svg);
        assert!(read(&html).contains("&lt;") && !read(&html).contains("<fox>"));
    }
}

#[test]
fn evaluate_writes_a_report_and_goes_on_where_it_was() {
    let folder = folder();
    let evaluate = |more: &[&str]| {
        let mut command = program();
        command.current_dir(folder.path()).arg("evaluate").args(more).assert().success().stderr("")
    };
    let first = evaluate(&[]).get_output().stdout.clone();
    let report = read(&folder.path().join("evaluation.md"));
    let headline = report.lines().nth(2).unwrap_or_default();
    assert!(headline.starts_with("- Is it importance?") && String::from_utf8_lossy(&first).starts_with(headline));
    for picture in ["headroom", "curves", "comparisons"] {
        assert!(report.contains(&format!("(evaluation/masked-{picture}.svg)")));
        assert_picture(&folder.path().join(format!("evaluation/masked-{picture}.svg")));
    }
    let outcomes = folder.path().join("evaluation/outcomes.jsonl");
    let kept = read(&outcomes);
    evaluate(&["--only-report"]);
    evaluate(&["--at-once", "1"]);
    assert_eq!((read(&outcomes), read(&folder.path().join("evaluation.md"))), (kept.clone(), report));

    // A run that is missing is said to be.
    let without_last: String =
        kept.lines().take(kept.lines().count() - 1).map(|line| line.to_string() + "\n").collect();
    fs::write(&outcomes, without_last).expect("a written file");
    evaluate(&["--only-report"]);
    assert!(read(&folder.path().join("evaluation.md")).contains("Not all runs of the plan have been made yet"));
}

/// What is published is what would run.
#[test]
fn every_plan_can_start() {
    let plans = Path::new(env!("CARGO_MANIFEST_DIR")).join("plans");
    let mut seen = 0;
    for entry in fs::read_dir(plans).expect("a folder").flatten() {
        da_moe_train::evaluate::Plan::read(&entry.path()).unwrap_or_else(|error| panic!("{error}"));
        seen += 1;
    }
    assert!(seen >= 3);
}

#[test]
fn what_is_wrong_is_one_line() {
    let folder = folder();
    let refused = |arguments: &[&str], culprit: &str| {
        let output = program().current_dir(folder.path()).args(arguments).output().expect("a program that starts");
        assert_refused(&output, culprit);
    };
    refused(&["explain", "--text", "a", "--model", "absent.safetensors"], "absent.safetensors");
    fs::write(folder.path().join("other.safetensors"), b"nonsense").expect("a written file");
    refused(&["explain", "--text", "a", "--model", "other.safetensors"], "other.safetensors");
    refused(&["train", "--text", "absent.txt"], "absent.txt");
    refused(&["train", "--steps", "0"], "--steps");
    refused(&["train", "--device", "cuda"], "--device cuda:0");
    fs::write(folder.path().join("short.txt"), "word").expect("a written file");
    refused(&["train", "--text", "short.txt"], "block");
    refused(&["evaluate", "--plan", "absent.json"], "absent.json");
    fs::write(folder.path().join("plan.json"), r#"{ "name": "x", "texts": 1 }"#).expect("a written file");
    refused(&["evaluate", "--plan", "plan.json"], "texts");
    assert!(!folder.path().join("da-moe-model").exists(), "nothing was trained");
}
