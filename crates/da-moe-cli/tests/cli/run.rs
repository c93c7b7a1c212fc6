//! `da-moe run` on small tensors: every policy and source, every optional tensor, every storage type.

use crate::common::{Case, D, E, F, T, Tensors, config, read, tensors};
use safetensors::tensor::Dtype;
use serde_json::Value;

/// Runs forward and backward and checks what every run must give.
fn forward_backward(fields: &str, tensors: &Tensors) -> (Case, Value) {
    let case = Case::new(&config(fields), &tensors.bytes());
    let output = case.run(&["--backward"]);
    assert!(output.status.success(), "{fields}: {}", String::from_utf8_lossy(&output.stderr));
    let summary: Value = serde_json::from_slice(&output.stdout).expect("JSON on stdout");
    let written = read(&case.output());
    let shape = |name: &str| written.get(name).map(|(_, shape, _)| shape.as_slice());
    assert_eq!(shape("y"), Some([T, D].as_slice()), "{fields}");
    assert_eq!(shape("d.x"), Some([T, D].as_slice()), "{fields}");
    assert_eq!(shape("d.experts.w_in").map(<[usize]>::len), Some(3), "{fields}");
    assert_eq!(shape("experts_per_token"), Some([T].as_slice()), "{fields}");
    assert_eq!(shape("expert.offsets"), Some([E + 1].as_slice()), "{fields}");
    let rows = summary["rows"].as_u64().expect("rows") as usize;
    assert_eq!(shape("row_token"), Some([rows].as_slice()), "{fields}");
    assert_eq!(shape("row_weight"), Some([rows].as_slice()), "{fields}");
    assert_eq!(written["expert.offsets"].2.last(), Some(&(rows as f64)), "{fields}");
    assert!(written["y"].2.iter().all(|v| v.is_finite()), "{fields}");
    for scalar in ["balance_loss", "z_loss", "mean_k", "dropped"] {
        assert!(summary[scalar].is_number(), "{fields}: {scalar}");
    }
    assert!(summary["device"].as_str().is_some_and(|device| device.starts_with("cpu")), "{fields}");
    (case, summary)
}

#[test]
fn every_policy() {
    let policies = [
        r#""policy": "fixed", "k": 2"#,
        r#""policy": "proportional", "min": 1, "max": 3"#,
        r#""policy": "proportional", "scale": 3.5"#,
        r#""policy": "thresholds", "thresholds": [0.1, 0.2]"#,
        r#""policy": "budget", "mean_k": 1.5"#,
        r#""policy": "budget-running", "mean_k": 1.5, "momentum": 0.9"#,
        r#""policy": "top-p", "p": 0.6"#,
        r#""policy": "score-threshold", "threshold": 0.3"#,
        r#""policy": "score-threshold", "threshold": [0.3, 0.2, 0.1, 0.0]"#,
    ];
    for policy in policies {
        let (case, summary) = forward_backward(&format!(r#""experts_per_token": {{ {policy} }}"#), &tensors());
        let k = &read(&case.output())["experts_per_token"].2;
        let mean = k.iter().sum::<f64>() / T as f64;
        assert!((summary["mean_k"].as_f64().unwrap() - mean).abs() < 1e-9, "{policy}");
    }
}

#[test]
fn the_policy_given_takes_its_k_from_the_file() {
    let given = tensors().i64("k_given", &[T], &[0, 1, 2, 3, 4, 1]);
    let (case, _) = forward_backward(r#""experts_per_token": { "policy": "given", "min": 0 }"#, &given);
    assert_eq!(read(&case.output())["experts_per_token"].2, [0.0, 1.0, 2.0, 3.0, 4.0, 1.0]);
}

#[test]
fn a_finished_routing_replaces_importance_and_router() {
    let experts: Vec<i32> = (0..T as i32).flat_map(|t| [t % E as i32, E as i32]).collect();
    let routed = tensors().without("router.weight").i32("routing.experts", &[T, 2], &experts).f32(
        "routing.weights",
        &[T, 2],
        &[0.5; 2 * T],
    );
    let (case, summary) =
        forward_backward(r#""experts_per_token": { "policy": "given", "min": 0, "max": 2 }"#, &routed);
    let written = read(&case.output());
    assert_eq!(summary["rows"], T);
    assert_eq!(written["d.routing.weights"].1, [T, 2]);
    for absent in ["importance", "router.logits", "d.router.weight"] {
        assert!(!written.contains_key(absent), "{absent}");
    }
}

#[test]
fn every_source() {
    let fields = |importance: &str| format!(r#""importance": {{ {importance} }}"#);
    for source in ["received-max", "received-sum", "received-mean", "given-peak", "given-entropy", "given-self"] {
        let normalized = fields(&format!(r#""source": "{source}", "normalize": "max", "heads": "max""#));
        forward_backward(&normalized, &tensors());
        let probabilities = tensors().without("q").without("k").random("attn_probs", &[1, 2, T, T]);
        forward_backward(&fields(&format!(r#""source": "{source}""#)), &probabilities);
    }
    forward_backward(&fields(r#""source": "router-entropy""#), &tensors());
    let external = tensors().f32("importance", &[T], &[0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
    let (case, _) = forward_backward(&fields(r#""source": "external""#), &external);
    assert_eq!(read(&case.output())["experts_per_token"].2, [1.0, 1.0, 2.0, 3.0, 4.0, 4.0]);
    let frequency =
        tensors().i64("token_ids", &[T], &[0, 1, 2, 2, 1, 0]).f32("token_frequency", &[3], &[0.1, 0.5, 0.9]);
    forward_backward(&fields(r#""source": "token-frequency""#), &frequency);
    let parts = r#""source": "mix", "parts": [ { "weight": 0.5, "source": "external" },
        { "weight": 0.5, "source": "received-max", "normalize": "rank" } ]"#;
    forward_backward(&fields(parts), &external);
    let causal = r#""source": "given-peak", "causal": true"#;
    forward_backward(&fields(causal), &tensors().i32("cu_seqlens", &[3], &[0, 2, T as i32]));
}

#[test]
fn every_optional_tensor_has_its_gradient() {
    let fields = r#""num_null_experts": 2, "null_expert": "constant", "shared_intermediate_size": 3,
        "router": { "capacity_factor": 1.0 }, "experts_per_token": { "policy": "fixed", "k": 3 }"#;
    let full = tensors()
        .random("router.weight", &[E + 2, D])
        .random("router.bias", &[E + 2])
        .random("experts.b_in", &[E, 2 * F])
        .random("experts.b_out", &[E, D])
        .random("null.constants", &[2, D])
        .random("shared.w_in", &[6, D])
        .random("shared.w_out", &[1, D, 3])
        .f32("lse", &[2, T], &[9.0; 2 * T])
        .raw("mask", Dtype::BOOL, &[T], vec![1, 1, 1, 1, 1, 0]);
    let (case, _) = forward_backward(fields, &full);
    let written = read(&case.output());
    assert_eq!(written["experts_per_token"].2[T - 1], 0.0);
    assert_eq!(written["expert.counts"].1, [E + 2]);
    for name in ["router.weight", "experts.b_in", "experts.b_out", "null.constants", "shared.w_in", "shared.w_out"] {
        let shape = &full.0[name].1;
        assert_eq!(&written[&format!("d.{name}")].1, shape, "{name}");
    }
}

#[test]
fn storage_types_convert_on_the_way_in() {
    for (dtype, expected) in [("f32", Dtype::F32), ("bf16", Dtype::BF16), ("f16", Dtype::F16)] {
        let case = Case::new(&config(""), &tensors().bytes());
        assert!(case.run(&["--backward", "--dtype", dtype]).status.success(), "{dtype}");
        let written = read(&case.output());
        for name in ["y", "d.x", "d.router.weight", "d.experts.w_out"] {
            assert_eq!(written[name].0, expected, "{name}");
        }
        assert_eq!(written["importance"].0, Dtype::F32);
        assert_eq!(written["row_token"].0, Dtype::I32);
    }
    // Of itself, the type of x; f64 is read as f32.
    let x: Vec<u8> = (0..T * D).flat_map(|i| half::bf16::from_f32(i as f32 / 48.0).to_le_bytes()).collect();
    let case = Case::new(&config(""), &tensors().raw("x", Dtype::BF16, &[T, D], x).bytes());
    assert!(case.run(&[]).status.success());
    assert_eq!(read(&case.output())["y"].0, Dtype::BF16);
    let x: Vec<u8> = (0..T * D).flat_map(|i| (i as f64 / 48.0).to_le_bytes()).collect();
    let case = Case::new(&config(""), &tensors().raw("x", Dtype::F64, &[T, D], x).bytes());
    assert!(case.run(&[]).status.success());
    assert_eq!(read(&case.output())["y"].0, Dtype::F32);
}

#[test]
fn no_tokens_are_a_valid_batch() {
    let empty = tensors()
        .random("x", &[0, D])
        .random("q", &[0, 2, 4])
        .random("k", &[0, 1, 4])
        .random("dy", &[0, D])
        .i32("cu_seqlens", &[1], &[0]);
    let case = Case::new(&config(""), &empty.bytes());
    let output = case.run(&["--backward"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let written = read(&case.output());
    assert_eq!(written["y"].1, [0, D]);
    assert!(written["d.experts.w_in"].2.iter().all(|v| *v == 0.0));
}

#[test]
fn forward_alone_writes_no_gradients() {
    let case = Case::new(&config(""), &tensors().bytes());
    assert!(case.run(&["--device", "cpu"]).status.success());
    assert!(read(&case.output()).keys().all(|name| !name.starts_with("d.")));
}

#[test]
fn tensors_that_are_not_read_are_told() {
    let case = Case::new(&config(""), &tensors().random("exprets.b_in", &[3]).bytes());
    let output = case.run(&[]);
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "note: tensor `exprets.b_in` is not read\n");
}

#[test]
fn the_same_run_gives_the_same_file() {
    let case = Case::new(&config(""), &tensors().bytes());
    assert!(case.run(&["--backward"]).status.success());
    let first = std::fs::read(case.output()).expect("a file");
    assert!(case.run(&["--backward"]).status.success());
    assert_eq!(first, std::fs::read(case.output()).expect("a file"));
    let left: Vec<_> = std::fs::read_dir(case.folder.path()).expect("a folder").collect();
    assert_eq!(left.len(), 3, "a temporary file was left behind");
}

#[test]
fn numbers_that_are_not_finite_are_null() {
    let mut x = vec![0.5; T * D];
    x[0] = f32::NAN;
    let case = Case::new(&config(""), &tensors().f32("x", &[T, D], &x).bytes());
    let output = case.run(&["--backward"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let summary: Value = serde_json::from_slice(&output.stdout).expect("JSON on stdout");
    assert!(summary["z_loss"].is_null());
}
