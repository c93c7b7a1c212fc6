//! No configuration and no file, however broken, makes the program panic: it answers or it refuses. `PROPTEST_CASES` sets
//! the number of cases.

use crate::common::{D, T, config, tensors};
use da_moe_cli::run::{Options, run};
use proptest::prelude::*;
use proptest::sample::Index;

/// A few bytes overwritten, removed or put in, anywhere.
fn mutated(mut bytes: Vec<u8>, edits: &[(Index, u8, u8)]) -> Vec<u8> {
    for (index, kind, value) in edits {
        let at = index.index(bytes.len() + 1);
        match kind % 4 {
            0 => bytes.insert(at, *value),
            1 => bytes.truncate(at),
            _ if at == bytes.len() => {}
            2 => bytes[at] = *value,
            _ => drop(bytes.remove(at)),
        }
    }
    bytes
}

fn edits(most: usize) -> impl Strategy<Value = Vec<(Index, u8, u8)>> {
    prop::collection::vec((any::<Index>(), prop_oneof![8 => Just(2u8), 1 => any::<u8>()], any::<u8>()), 0..most)
}

/// Pieces of configurations in any order, with values from everywhere.
fn fields() -> impl Strategy<Value = String> {
    let number = prop_oneof![
        any::<i64>().prop_map(|v| v.to_string()),
        any::<f64>().prop_map(|v| v.to_string()),
        (0..9i32).prop_map(|v| v.to_string()),
        Just("1e-300".to_string()),
        Just("null".to_string()),
    ];
    let policy = prop::sample::select(vec![
        "fixed",
        "proportional",
        "thresholds",
        "budget",
        "budget-running",
        "top-p",
        "score-threshold",
        "given",
    ]);
    let parameter = prop::sample::select(vec!["k", "scale", "mean_k", "momentum", "p", "threshold", "min", "max"]);
    let parameters = prop::collection::vec((parameter, number.clone()), 0..3);
    let size = prop::sample::select(vec!["num_null_experts", "shared_intermediate_size"]);
    let source = prop::sample::select(vec!["received-max", "given-entropy", "router-entropy", "external", "mix"]);
    let normalize = prop::sample::select(vec!["none", "max", "min-max", "rank"]);
    let router = prop::sample::select(vec!["routed_scaling", "capacity_factor", "n_group", "topk_group"]);
    (policy, parameters, size, number.clone(), source, normalize, any::<bool>(), router, number).prop_map(
        |(policy, parameters, size, first, source, normalize, causal, router, second)| {
            let parameters: String = parameters.iter().map(|(name, value)| format!(r#", "{name}": {value}"#)).collect();
            format!(
                r#""{size}": {first}, "experts_per_token": {{ "policy": "{policy}"{parameters} }}, "importance":
                {{ "source": "{source}", "normalize": "{normalize}", "causal": {causal} }}, "router": {{ "{router}": {second} }}"#
            )
        },
    )
}

fn options(backward: bool) -> Options {
    Options { backward, ..Options::default() }
}

proptest! {
    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..64), file in prop::collection::vec(any::<u8>(), 0..256)) {
        let _ = run(&String::from_utf8_lossy(&bytes), &file, &options(true));
        let _ = run(&config(""), &file, &options(true));
    }

    #[test]
    fn damaged_files(edits in edits(6), backward: bool) {
        let full = tensors().i32("cu_seqlens", &[3], &[0, 2, T as i32]).i32("mask", &[T], &[1; T]);
        let _ = run(&config(""), &mutated(full.bytes(), &edits), &options(backward));
    }

    /// Most edits of a whole file hit numbers; these hit the header.
    #[test]
    fn damaged_headers(edits in edits(4)) {
        let bytes = tensors().bytes();
        let (length, rest) = bytes.split_at(8);
        let length = u64::from_le_bytes(length.try_into().expect("eight bytes")) as usize;
        let header = mutated(rest[..length].to_vec(), &edits);
        let file = [&(header.len() as u64).to_le_bytes(), header.as_slice(), &rest[length..]].concat();
        let _ = run(&config(""), &file, &options(true));
    }

    #[test]
    fn damaged_configurations(edits in edits(4)) {
        let fields = r#""num_null_experts": 0, "experts_per_token": { "policy": "proportional", "min": 1, "max": 3 },
            "router": { "scoring": "sigmoid", "capacity_factor": 1.5 }, "losses": { "balance": 0.01, "z": 0.001 }"#;
        let config = String::from_utf8_lossy(&mutated(config(fields).into_bytes(), &edits)).into_owned();
        let _ = run(&config, &tensors().bytes(), &options(true));
    }

    #[test]
    fn wild_configurations(fields in fields(), importance in prop::collection::vec(any::<f32>(), T)) {
        let tensors = tensors().f32("importance", &[T], &importance).i32("k_given", &[T], &[3, -1, 0, 9, i32::MAX, i32::MIN]);
        let _ = run(&config(&fields), &tensors.bytes(), &options(true));
    }

    /// Any numbers, NaN and infinities among them, are computed with.
    #[test]
    fn wild_numbers(x in prop::collection::vec(any::<f32>(), T * D), q in prop::collection::vec(any::<f32>(), T * 8)) {
        let tensors = tensors().f32("x", &[T, D], &x).f32("q", &[T, 2, 4], &q);
        prop_assert!(run(&config(""), &tensors.bytes(), &options(true)).is_ok());
    }
}
