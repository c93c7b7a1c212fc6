//! `plan`: the reviewed tables, and that its object says the same.

use crate::common::{assert_refused, program};
use serde_json::Value;

fn plan(arguments: &[&str]) -> String {
    let output = program().arg("plan").args(arguments).output().expect("a program that starts");
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn object(arguments: &[&str]) -> Value {
    serde_json::from_str(&plan(&[arguments, &["--json"]].concat())).expect("one JSON object")
}

/// The shapes whose `k` is fixed as well as variable.
const FIXED: [(&str, &str); 7] = [
    ("c-mid", "2"),
    ("c-fine", "4"),
    ("switch-base", "1"),
    ("olmoe", "8"),
    ("qwen3-30b", "8"),
    ("fine-256", "4"),
    ("decode", "8"),
];

/// Every named shape, those of which `k` is also fixed, one in f16, whose backward has other kernels, one for another
/// architecture, and one that nothing is aligned in. A change to a grid, a kernel's name or the model shows here; `UPDATE_SNAPSHOTS=1 cargo test` writes them
/// anew.
#[test]
fn plans_are_as_reviewed() {
    let mut calls: Vec<Vec<&str>> = vec![vec!["--backward"]];
    calls.extend(FIXED.map(|(shape, k)| vec!["--shape", shape, "--k", k]));
    calls.push(vec!["--shape", "marin", "--dtype", "f16", "--backward"]);
    calls.push(vec!["--shape", "marin", "--arch", "sm_80", "--backward"]);
    calls.push(vec!["--shape", "100,71,41,6", "--k", "3", "--dtype", "f32", "--act", "gelu", "--backward"]);
    let with_command = |call: &Vec<&str>| format!("$ da-moe plan {}\n{}\n", call.join(" "), plan(call));
    let plans: String = calls.iter().map(with_command).collect();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/plan.txt");
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(path, &plans).expect("a written file");
    }
    let reviewed = std::fs::read_to_string(path).expect("the reviewed plans").replace("\r\n", "\n");
    assert!(plans == reviewed, "plans have changed; review them and run with UPDATE_SNAPSHOTS=1:\n{plans}");
}

#[test]
fn the_object_has_what_the_table_has() {
    let all = object(&[]);
    assert_eq!(all["shapes"].as_array().map(Vec::len), Some(9));
    assert_eq!(all["model"]["measured"], false);
    let marin = &object(&["--shape", "marin", "--mean-k", "1.5"])["shapes"][0];
    for (field, value) in [("T", 8192), ("D", 2048), ("F", 3072), ("E", 8), ("rows", 12288)] {
        assert_eq!(marin[field], value, "{field}");
    }
    assert_eq!((&marin["dtype"], &marin["activation"]), (&"bf16".into(), &"swiglu".into()));
    let launches = marin["launches"].as_array().expect("launches");
    let sum = |stage: &str, field: &str| -> f64 {
        let of_stage = launches.iter().filter(|launch| stage.is_empty() || launch["stage"] == stage);
        of_stage.map(|launch| launch[field].as_f64().expect("a number")).sum()
    };
    for stage in ["importance", "gate", "permute", "experts", "combine"] {
        let expected = marin["stages_us"][stage].as_f64().expect("a number");
        assert!((sum(stage, "us") - expected).abs() < 1e-6, "{stage}");
    }
    assert!((sum("", "us") - marin["forward_us"].as_f64().expect("a number")).abs() < 1e-6);
    // 6·D·F for every routed row, as `bench` counts.
    assert_eq!(sum("experts", "operations"), 6.0 * 2048.0 * 3072.0 * 12288.0);
    assert!(marin["backward"].is_null());
}

/// What the goals of forward are held against: the prediction's better end where nothing but tensor cores counts.
#[test]
fn hoppers_own_products_are_predicted() {
    let shape = &object(&["--shape", "marin"])["shapes"][0];
    let launches = shape["launches"].as_array().expect("launches");
    let mut predicted = 0;
    for launch in launches.iter().filter(|launch| launch["stage"] == "experts") {
        assert!(launch["kernel"].as_str().expect("a name").ends_with("_hopper"));
        let [least, most] = [0, 1].map(|end| launch["predicted_us"][end].as_f64().expect("a time"));
        let rate = launch["operations"].as_f64().expect("a number") / least / 1e6;
        assert!(least < most && (700.0..800.5).contains(&rate), "{rate} TFLOP/s at best");
        predicted += 1;
    }
    assert_eq!(predicted, 2);
    let portable = &object(&["--shape", "marin", "--arch", "sm_80"])["shapes"][0];
    assert!(portable["launches"].as_array().expect("launches").iter().all(|launch| launch["predicted_us"].is_null()));
}

#[test]
fn backward_multiplies_twice_as_much() {
    let shape = &object(&["--shape", "marin", "--mean-k", "1.5", "--backward"])["shapes"][0];
    let launches = shape["backward"]["launches"].as_array().expect("launches");
    let of_experts = launches.iter().filter(|launch| launch["stage"] == "experts");
    let operations: f64 = of_experts.map(|launch| launch["operations"].as_f64().expect("a number")).sum();
    assert_eq!(operations, 12.0 * 2048.0 * 3072.0 * 12288.0);
}

#[test]
fn memory_is_what_the_library_allocates() {
    let shape = &object(&["--shape", "c-small"])["shapes"][0];
    let bytes = |kept: &str, part: &str| shape["memory"][kept][part].as_u64().expect("a number");
    for kept in ["nothing", "hidden", "recompute"] {
        let parts = ["saved_bytes", "scratch_bytes", "workspace_bytes"].map(|part| bytes(kept, part));
        assert_eq!(bytes(kept, "peak_bytes"), parts.iter().sum::<u64>());
        assert_eq!(bytes(kept, "step_bytes"), parts[..2].iter().sum::<u64>());
    }
    // Hidden rows are bf16: 256 tokens with room for 4 experts of 2 · 256 each.
    assert_eq!(bytes("hidden", "saved_row_bytes") - bytes("recompute", "saved_row_bytes"), 2 * 512);
    assert_eq!(bytes("hidden", "saved_bytes") - bytes("recompute", "saved_bytes"), 256 * 4 * 2 * 512);
}

#[test]
fn the_documentation_has_the_memory_of_these_plans() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/MEMORY.md")).expect("a page");
    for shape in ["marin", "olmoe", "qwen3-30b", "fine-256"] {
        let text = plan(&["--shape", shape]);
        let memory = text.lines().skip_while(|line| !line.starts_with("memory")).take(4);
        let block: Vec<&str> = text.lines().take(1).chain(memory).collect();
        assert!(page.contains(&block.join("\n")), "docs/MEMORY.md says something else than\n{}", block.join("\n"));
    }
}

#[test]
fn work_follows_rows_and_types() {
    let time = |arguments: &[&str]| {
        let object = object(&[&["--shape", "fine-256"], arguments].concat());
        object["shapes"][0]["stages_us"]["experts"].as_f64().expect("a number")
    };
    assert!(time(&["--k", "2"]) < time(&["--k", "4"]));
    // Rows that are combined are f32 in f16.
    assert!(
        (1.0..1.2).contains(&(time(&["--dtype", "f16"]) / time(&[]))) && time(&["--dtype", "f32"]) > 4.0 * time(&[])
    );
}

#[test]
fn what_no_kernel_can_do_is_refused() {
    let refused = |arguments: &[&str], culprit: &str| {
        let output = program().arg("plan").args(arguments).output().expect("a program that starts");
        assert_refused(&output, culprit);
    };
    refused(&["--shape", "marine"], "marine");
    refused(&["--arch", "sm_100"], "sm_100");
    refused(&["--shape", "8,8,8,600"], "num_experts");
    refused(&["--shape", "8,8,8,4", "--k", "5"], "experts_per_token");
    refused(&["--shape", "8,8,8,4", "--mean-k", "0.5"], "--mean-k");
    refused(&["--shape", "2000000000,8,8,4"], "row indices");
    refused(&["--shape", "2,3000000000,8,4"], "3000000000");
    refused(&["--k", "2", "--mean-k", "2"], "--mean-k");
}
