//! Whatever is wrong: exit code 2, one line that names it, no output file.

use crate::common::{Case, D, E, F, T, Tensors, assert_refused, config, program, tensors};
use safetensors::tensor::Dtype;

fn refused(config: &str, input: &[u8], more: &[&str], culprit: &str) {
    let case = Case::new(config, input);
    assert_refused(&case.run(more), culprit);
    assert!(!case.output().exists(), "{culprit}: an output file was written");
}

fn refused_tensors(fields: &str, tensors: &Tensors, culprit: &str) {
    refused(&config(fields), &tensors.bytes(), &["--backward"], culprit);
}

#[test]
fn configurations() {
    let cases = [
        ("", "config"),
        ("{", "config"),
        ("[1]", "config"),
        ("nonsense", "config"),
        (r#"{ "hidden_size": 8 }"#, "num_experts"),
        (r#"{ "hidden_size": -8, "num_experts": 4, "moe_intermediate_size": 5 }"#, "hidden_size"),
        (r#"{ "hidden_size": 0, "num_experts": 4, "moe_intermediate_size": 5 }"#, "hidden_size"),
        (r#"{ "hidden_size": 8, "num_experts": 4, "moe_intermediate_size": 1e999 }"#, "moe_intermediate_size"),
        (r#"{ "hidden_size": 8, "num_experts": 513, "moe_intermediate_size": 5 }"#, "num_experts"),
        (r#"{ "hidden_size": 18446744073709551615, "num_experts": 4, "moe_intermediate_size": 5 }"#, "overflows"),
    ];
    for (config, culprit) in cases {
        refused(config, &tensors().bytes(), &[], culprit);
    }
    let fields = [
        (r#""hidden_atc": "relu""#, "hidden_atc"),
        (r#""hidden_act": "tanh""#, "tanh"),
        (r#""experts_per_token": { "policy": "fixed" }"#, "`k`"),
        (r#""experts_per_token": { "policy": "fixed", "k": 5 }"#, "experts_per_token.k"),
        (r#""experts_per_token": { "policy": "fixed", "k": 1, "p": 0.5 }"#, "`p`"),
        (r#""experts_per_token": { "policy": "top-p", "p": 1.5 }"#, "experts_per_token.p"),
        (r#""experts_per_token": { "min": 3, "max": 2 }"#, "experts_per_token.min"),
        (r#""experts_per_token": { "policy": "thresholds", "thresholds": [0.2, 0.1] }"#, "thresholds"),
        (r#""importance": { "source": "received-max", "causal": true }"#, "importance.source"),
        (r#""router": { "n_group": 3 }"#, "router.n_group"),
        (r#""router": { "capacity_factor": -1 }"#, "router.capacity_factor"),
    ];
    for (fields, culprit) in fields {
        refused(&config(fields), &tensors().bytes(), &[], culprit);
    }
}

#[test]
fn missing_tensors() {
    for name in ["x", "router.weight", "experts.w_in", "experts.w_out", "dy", "q", "k"] {
        refused_tensors("", &tensors().without(name), &format!("`{name}`"));
    }
    refused_tensors("", &tensors().without("q").without("k"), "received-max");
    let source = |source: &str| format!(r#""importance": {{ "source": "{source}" }}"#);
    refused_tensors(&source("external"), &tensors(), "`importance`");
    refused_tensors(&source("token-frequency"), &tensors(), "`token_ids`");
    let ids = tensors().i32("token_ids", &[T], &[0; T]);
    refused_tensors(&source("token-frequency"), &ids, "`token_frequency`");
    let given = r#""experts_per_token": { "policy": "given" }"#;
    refused_tensors(given, &tensors(), "`k_given`");
    let half = tensors().i32("routing.experts", &[T, 1], &[0; T]);
    refused_tensors(given, &half, "`routing.weights`");
    refused_tensors(r#""shared_intermediate_size": 3"#, &tensors(), "`shared.w_in`");
    let half = tensors().random("shared.w_in", &[6, D]);
    refused_tensors(r#""shared_intermediate_size": 3"#, &half, "`shared.w_out`");
    let constant = r#""num_null_experts": 1, "null_expert": "constant""#;
    refused_tensors(constant, &tensors().random("router.weight", &[E + 1, D]), "`null.constants`");
}

#[test]
fn shapes_and_ranks() {
    let shapes: [(&str, &[usize]); 14] = [
        ("x", &[T, D + 1]),
        ("x", &[T * D]),
        ("x", &[1, T, D]),
        ("router.weight", &[E + 1, D]),
        ("router.bias", &[E + 1]),
        ("experts.w_in", &[E, F, D]),
        ("experts.w_out", &[E, F, D]),
        ("experts.b_in", &[E, F]),
        ("q", &[T, 8]),
        ("k", &[T, 3, 4]),
        ("k", &[T, 1, 3]),
        ("lse", &[T, 2]),
        ("dy", &[T + 1, D]),
        ("q", &[T, 0, 4]),
    ];
    for (name, shape) in shapes {
        // Which of q and k is the odd one is a matter of taste.
        let culprit = if name == "k" { "`" } else { name };
        refused_tensors("", &tensors().random(name, shape), culprit);
    }
    let probabilities = tensors().without("q").without("k").random("attn_probs", &[1, 2, T, T - 1]);
    refused_tensors("", &probabilities, "`attn_probs`");
    refused_tensors("", &tensors().random("attn_probs", &[1, 2, T, T]), "`attn_probs`");
    refused_tensors("", &tensors().random("shared.w_in", &[6, D]).random("shared.w_out", &[D, 3]), "`shared.w_in`");
    refused_tensors("", &tensors().random("null.constants", &[1, D]), "`null.constants`");
}

#[test]
fn contents_and_types() {
    refused_tensors("", &tensors().i32("x", &[T, D], &[0; T * D]), "`x`");
    refused_tensors("", &tensors().raw("x", Dtype::F8_E4M3, &[T, D], vec![0; T * D]), "`x`");
    // Below every score there is.
    refused_tensors("", &tensors().f32("lse", &[2, T], &[-99.0; 2 * T]), "`lse`");
    refused_tensors("", &tensors().f32("cu_seqlens", &[2], &[0.0, 6.0]), "`cu_seqlens`");
    for starts in [[1, 2, 6], [0, 7, 6], [0, 3, 5], [0, -1, 6]] {
        refused_tensors("", &tensors().i32("cu_seqlens", &[3], &starts), "`cu_seqlens`");
    }
    refused_tensors("", &tensors().i64("cu_seqlens", &[2], &[0, 1 << 40]), "`cu_seqlens`");
    refused_tensors("", &tensors().i32("cu_seqlens", &[0], &[]), "`cu_seqlens`");
    refused_tensors("", &tensors().i32("mask", &[T], &[1, 1, 2, 1, 1, 1]), "`mask`");
    refused_tensors("", &tensors().f32("mask", &[T], &[1.0; T]), "`mask`");
    let frequency = |id| {
        let ids = tensors().i32("token_ids", &[T], &[0, 0, 0, 0, 0, id]);
        ids.f32("token_frequency", &[3], &[0.1, 0.5, 0.9])
    };
    for id in [3, -1] {
        refused_tensors(r#""importance": { "source": "token-frequency" }"#, &frequency(id), "`token_ids`");
    }
}

#[test]
fn broken_files() {
    let good = tensors().bytes();
    let mut huge_header = good.clone();
    huge_header[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let header = |json: &str| [&(json.len() as u64).to_le_bytes(), json.as_bytes()].concat();
    let overflowing = header(r#"{"x":{"dtype":"F32","shape":[4294967296,4294967296,16],"data_offsets":[0,0]}}"#);
    let beyond = header(r#"{"x":{"dtype":"U8","shape":[100],"data_offsets":[0,100]}}"#);
    let cases: [&[u8]; 8] = [
        b"",
        b"abc",
        b"not a safetensors file at all, but long enough",
        &good[..good.len() - 1],
        &good[..100],
        &huge_header,
        &overflowing,
        &beyond,
    ];
    for bytes in cases {
        refused(&config(""), bytes, &[], "safetensors");
    }
}

/// Offsets that add up past the largest number: the safetensors crate alone adds them without looking.
#[test]
fn offsets_that_wrap_around() {
    let step = (1u64 << 61) - 1;
    let mut offset = 0u64;
    let mut entries = Vec::new();
    for index in 0..9 {
        let end = if index < 8 { offset + step } else { u64::MAX - 7 };
        let length = end - offset;
        entries.push(format!(r#""t{index}":{{"dtype":"U8","shape":[{length}],"data_offsets":[{offset},{end}]}}"#));
        offset = end;
    }
    let json = format!("{{{}}}", entries.join(","));
    let bytes = [&(json.len() as u64).to_le_bytes(), json.as_bytes()].concat();
    refused(&config(""), &bytes, &[], "past the end");
}

#[test]
fn sizes_that_no_memory_holds() {
    let wide = r#"{ "hidden_size": 8, "num_experts": 4, "moe_intermediate_size": 100000000000 }"#;
    refused(wide, &tensors().bytes(), &[], "experts.w_in");
}

#[test]
fn files_that_are_not_there() {
    let case = Case::new(&config(""), &tensors().bytes());
    for name in ["config.json", "input.safetensors"] {
        let path = case.folder.path().join(name);
        let bytes = std::fs::read(&path).expect("a file");
        std::fs::remove_file(&path).expect("a removed file");
        assert_refused(&case.run(&[]), name);
        std::fs::write(&path, bytes).expect("a written file");
    }
    let output = case.run_to(&case.folder.path().join("no such folder/output.safetensors"), &[]);
    assert_refused(&output, "no such folder");
}

#[test]
fn command_lines() {
    let gpu = if da_moe::cuda::kernels().is_some() { "no GPU: " } else { "CUDA kernels are not built" };
    let cases: [(&[&str], &str); 14] = [
        (&["frobnicate"], "frobnicate"),
        (&["run"], "--config"),
        (&["run", "--config"], "--config"),
        (&["run", "--config", "a", "--input", "b", "--output", "c", "--device", "tpu"], "tpu"),
        (&["run", "--config", "a", "--input", "b", "--output", "c", "--dtype", "i32"], "i32"),
        (&["run", "--config", "a", "--input", "b", "--output", "c", "--device", "cuda:99"], gpu),
        (&["bench", "--shape", "c-tiny"], "c-tiny"),
        (&["bench", "--repeats", "4"], "--repeats"),
        (&["bench", "--k", "2", "--mean-k", "2"], "--mean-k"),
        (&["bench", "--shape", "8,8,8,4", "--k", "5"], "experts_per_token.k"),
        (&["bench", "--shape", "8,8,8,4", "--mean-k", "nan"], "--mean-k"),
        (&["bench", "--act", "tanh"], "tanh"),
        (&["doctor", "--jsno"], "--jsno"),
        (&["demo", "--text", "no such file.txt"], "no such file.txt"),
    ];
    for (arguments, culprit) in cases {
        assert_refused(&program().args(arguments).output().expect("a program that starts"), culprit);
    }
    for huge in ["1000000000,1000000,1000000,512", "18446744073709551615,1,18446744073709551615,2"] {
        let output = program().args(["bench", "--shape", huge]).output().expect("a program that starts");
        assert_refused(&output, if cfg!(target_os = "linux") { "memory" } else { "overflow" });
    }
}
