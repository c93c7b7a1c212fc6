//! Sizes that files claim: whatever they say, `run` answers or refuses, at once, and takes no memory for what is not there.

use crate::common::{D, E, F, T, Tensors, tensors};
use da_moe_cli::run::{Options, run};
use serde_json::{Value, json};

/// Everything that a layer can be given, and a configuration that uses it.
fn full() -> (Value, Tensors) {
    let config = json!({
        "hidden_size": D, "num_experts": E, "num_null_experts": 1, "null_expert": "constant", "moe_intermediate_size": F,
        "shared_intermediate_size": 3,
        "importance": { "source": "mix", "normalize": "running", "momentum": 0.5, "parts": [
            { "weight": 0.5, "source": "received-max", "scale": 0.5 },
            { "weight": 0.5, "source": "token-frequency", "normalize": "affine", "a": 0.5, "b": 0.25 }] },
        "experts_per_token": { "policy": "budget-running", "mean_k": 2, "momentum": 0.5, "min": 1, "max": 3 },
        "router": { "routed_scaling": 1.5, "capacity_factor": 2, "n_group": 1, "topk_group": 1 },
        "losses": { "balance": 0.01, "z": 0.001 },
    });
    let tensors = tensors()
        .i32("cu_seqlens", &[3], &[0, 2, T as i32])
        .i32("mask", &[T], &[1; T])
        .i32("token_ids", &[T], &[0; T])
        .random("router.weight", &[E + 1, D])
        .random("router.bias", &[E + 1])
        .random("token_frequency", &[3])
        .random("experts.b_in", &[E, 2 * F])
        .random("experts.b_out", &[E, D])
        .random("shared.w_in", &[6, D])
        .random("shared.w_out", &[D, 3])
        .random("null.constants", &[1, D])
        .f32("lse", &[2, T], &[9.0; 2 * T]);
    (config, tensors)
}

fn answers(config: &Value, file: &[u8]) -> bool {
    run(&config.to_string(), file, &Options { backward: true, ..Options::default() }).is_ok()
}

fn numbers(value: &Value, path: String, found: &mut Vec<String>) {
    match value {
        Value::Number(_) => found.push(path),
        Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| numbers(value, format!("{path}/{name}"), found))
        }
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(at, value)| numbers(value, format!("{path}/{at}"), found))
        }
        _ => {}
    }
}

const SIZES: [u64; 6] = [0, 1, 1_000_000_000, 1 << 40, i64::MAX as u64, u64::MAX];

#[test]
fn of_configurations() {
    let (config, tensors) = full();
    let file = tensors.bytes();
    assert!(answers(&config, &file));
    let mut paths = Vec::new();
    numbers(&config, String::new(), &mut paths);
    assert!(paths.len() > 15);
    let others = [json!(-1), json!(1e300), json!("8"), json!(null), json!([])];
    for path in paths {
        for other in SIZES.map(|size| json!(size)).iter().chain(&others) {
            let mut mutated = config.clone();
            *mutated.pointer_mut(&path).expect("a path") = other.clone();
            let answered = answers(&mutated, &file);
            // Sizes have tensors that they must agree with.
            assert!(!(answered && path.ends_with("_size")), "{path} as {other} is believed");
        }
    }
}

/// Shapes with as many bytes as the file has for them, and others.
#[test]
fn of_tensors() {
    let (config, tensors) = full();
    for name in tensors.0.keys() {
        let (dtype, shape, _) = &tensors.0[name];
        for at in 0..shape.len() {
            for size in SIZES {
                for zero in [None, Some((at + 1) % shape.len())] {
                    let mut mutated = shape.clone();
                    mutated[at] = size as usize;
                    if let Some(zero) = zero {
                        mutated[zero] = 0;
                    }
                    // An extent of 0 leaves no bytes whatever the others are; a writer would refuse some of these.
                    let bytes = with_shape(&tensors, name, &mutated, zero.is_some() || size == 0);
                    assert!(mutated == *shape || !answers(&config, &bytes) || size < 2, "{name} {dtype:?} {mutated:?}");
                }
            }
        }
    }
}

/// The file with another shape in its header, and with the tensor's bytes left out where there are none.
fn with_shape(tensors: &Tensors, name: &str, shape: &[usize], empty: bool) -> Vec<u8> {
    let bytes = match empty {
        true => tensors.clone().raw(name, tensors.0[name].0, &[0], Vec::new()).bytes(),
        false => tensors.bytes(),
    };
    let (length, rest) = bytes.split_first_chunk::<8>().expect("eight bytes");
    let length = u64::from_le_bytes(*length) as usize;
    let mut header: Value = serde_json::from_slice(&rest[..length]).expect("a header");
    header[name]["shape"] = json!(shape);
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &rest[length..]].concat()
}
