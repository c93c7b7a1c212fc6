//! What is read from a file is believed only where it fits together: no checkpoint, however mutated, is computed with by mistake,
//! panics, or takes memory or time for sizes that it only claims.

use crate::common::{Scratch, TestResult, config, corpus, variant};
use candle_core::Device;
use da_moe_train::{Checkpoint, Folder, Pace, explain, run};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;

/// A valid checkpoint's header, the text in it, and the tensors' bytes; and where variations of it go.
struct Sound {
    header: Value,
    text: Value,
    data: Vec<u8>,
    path: PathBuf,
    _folder: Scratch,
}

impl Sound {
    fn new() -> TestResult<Self> {
        let folder = Scratch::new()?;
        let policy = json!({ "policy": "budget-running", "mean_k": 2, "momentum": 0.5, "min": 1, "max": 3 });
        let running = json!({ "source": "given-entropy", "normalize": "running", "momentum": 0.5, "causal": true });
        let layer = json!({ "experts_per_token": policy, "importance": running, "num_null_experts": 1,
            "shared_intermediate_size": 3, "losses": { "balance": 0.01, "z": 0.001 } });
        let config = config(variant(json!({ "name": "sound", "layer": layer })), true, 2);
        let place = Folder(folder.path().join("run"));
        let pace = Pace { line: 2, held_out: 1, checkpoint: 1, batches: 1 };
        run(&config, &Arc::new(corpus()?), pace, &place, &Device::Cpu, &mut |_| true)?;
        let bytes = std::fs::read(place.checkpoint())?;
        let length = u64::from_le_bytes(bytes[..8].try_into()?) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + length])?;
        let text = serde_json::from_str(header["__metadata__"]["da-moe"].as_str().ok_or("no text")?)?;
        let path = folder.path().join("mutated.safetensors");
        let sound = Self { header, text, data: bytes[8 + length..].to_vec(), path, _folder: folder };
        assert!(sound.answers(&sound.header, &sound.text)?.is_ok());
        Ok(sound)
    }

    fn bytes(&self, header: &str) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &self.data].concat()
    }

    /// What is made of a file: the text explained, or the refusal.
    fn of_bytes(&self, bytes: &[u8]) -> TestResult<Result<usize, String>> {
        // A new file: ext4 writes one that is cut to nothing and filled again to the disk, a thousand times in some tests.
        std::fs::remove_file(&self.path).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
        std::fs::write(&self.path, bytes)?;
        let explained = Checkpoint::read(&self.path).and_then(|checkpoint| explain(&checkpoint, "the red fox"));
        Ok(explained.map(|explained| explained.pieces.len()).map_err(|error| error.to_string()))
    }

    fn answers(&self, header: &Value, text: &Value) -> TestResult<Result<usize, String>> {
        let mut header = header.clone();
        header["__metadata__"]["da-moe"] = text.to_string().into();
        self.of_bytes(&self.bytes(&header.to_string()))
    }

    fn refuses(&self, header: &Value, culprit: &str) -> TestResult {
        let refusal = self.answers(header, &self.text)?.err().ok_or(format!("{culprit}: not refused"))?;
        // A backtrace may follow, if the environment asks for it.
        let line = refusal.lines().next().unwrap_or_default();
        assert!(line.contains("mutated.safetensors") && line.contains(culprit), "{culprit} is not named: {refusal}");
        Ok(())
    }

    fn tensors(&self) -> Vec<String> {
        let entries = self.header.as_object().into_iter().flatten().map(|(name, _)| name.clone());
        entries.filter(|name| name != "__metadata__").collect()
    }
}

/// Paths of every number below `value`.
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

/// What may stand there instead of a number, or nothing.
fn others() -> Vec<Option<Value>> {
    let numbers = [json!(0), json!(1), json!(1_000_000_000u64), json!(u64::MAX), json!(-1), json!(0.5), json!(1e300)];
    let others = [json!("8"), json!(null), json!([8]), json!({})];
    numbers.into_iter().chain(others).map(Some).chain([None]).collect()
}

fn mutated(text: &Value, path: &str, other: &Option<Value>) -> Value {
    let mut text = text.clone();
    match other {
        Some(other) => *text.pointer_mut(path).expect("a path") = other.clone(),
        None => {
            let (parent, name) = path.rsplit_once('/').expect("a path");
            match text.pointer_mut(parent) {
                Some(Value::Object(fields)) => drop(fields.remove(name)),
                Some(Value::Array(list)) => drop(list.remove(name.parse().expect("a number"))),
                _ => {}
            }
        }
    }
    text
}

#[test]
fn a_mutated_configuration_is_refused_or_changes_nothing_that_tensors_depend_on() -> TestResult {
    /// What a finished model's answer does not depend on, or may depend on as any other value: `heads`. When its run was measured
    /// is held against whoever goes on with it.
    const FREE: [&str; 18] = [
        "heads",
        "seed",
        "batch",
        "steps",
        "rate",
        "warm_up",
        "weight_decay",
        "clip",
        "mask_rate",
        "mean_k",
        "momentum",
        "min",
        "max",
        "balance",
        "z",
        "line",
        "held_out",
        "held_out_batches",
    ];
    let sound = Sound::new()?;
    let mut paths = Vec::new();
    numbers(&sound.text, String::new(), &mut paths);
    assert!(paths.len() > 20, "{paths:?}");
    for path in &paths {
        for other in others() {
            let text = mutated(&sound.text, path, &other);
            let field = path.rsplit('/').next().unwrap_or_default();
            if sound.answers(&sound.header, &text)?.is_ok() && text != sound.text {
                assert!(FREE.contains(&field), "{path} as {other:?} is believed");
            }
        }
    }
    // Sizes that would take all memory, or all time.
    for (field, size) in [("heads", 0), ("width", 1_000_000_000), ("layers", 1_000_000_000), ("length", 1_000_000_000)]
    {
        let text = mutated(&sound.text, &format!("/config/model/{field}"), &Some(json!(size)));
        assert!(sound.answers(&sound.header, &text)?.is_err_and(|refusal| refusal.contains("model")));
    }
    Ok(())
}

#[test]
fn a_tokenizer_that_is_not_the_models_is_refused() -> TestResult {
    let sound = Sound::new()?;
    let saved: Value = serde_json::from_str(sound.text["tokenizer"].as_str().ok_or("no tokenizer")?)?;
    let pairs = saved["byte_pairs"].as_array().ok_or("no pairs")?.len();
    let mut mutations: Vec<Value> = others().iter().map(|other| mutated(&saved, "/byte_pairs/0/1", other)).collect();
    mutations.extend([0, pairs - 1].map(|at| mutated(&saved, &format!("/byte_pairs/{at}"), &None)));
    mutations.extend([
        json!({}),
        json!({ "byte_pairs": [] }),
        json!(null),
        json!({ "byte_pairs": saved["byte_pairs"][0] }),
    ]);
    for mutation in mutations.iter().filter(|mutation| **mutation != saved) {
        let text = mutated(&sound.text, "/tokenizer", &Some(mutation.to_string().into()));
        let refused = sound.answers(&sound.header, &text)?.is_err();
        // Another pair of two earlier tokens is another tokenizer, and as good a one.
        let as_good =
            serde_json::from_value::<u32>(mutation["byte_pairs"][0][1].clone()).is_ok_and(|id| (4..260).contains(&id));
        assert!(refused || as_good, "{mutation}");
    }
    Ok(())
}

#[test]
fn tensors_that_are_not_those_of_the_configuration_are_refused() -> TestResult {
    let sound = Sound::new()?;
    assert!(sound.tensors().len() > 60, "{}", sound.tensors().len());
    for name in sound.tensors() {
        let shape = sound.header[&name]["shape"].as_array().ok_or("no shape")?.clone();
        for at in 0..shape.len() {
            for other in others() {
                let path = format!("/{}/shape/{at}", name.replace('/', "~1"));
                let header = mutated(&sound.header, &path, &other);
                if header != sound.header {
                    sound.refuses(&header, "")?;
                }
            }
        }
        // As many elements, in another shape.
        let count: u64 = shape.iter().filter_map(Value::as_u64).product();
        for same in [json!([count, 1, 1]), json!([1, count])] {
            let mut header = sound.header.clone();
            header[&name]["shape"] = same;
            sound.refuses(&header, &name)?;
        }
        let mut header = sound.header.clone();
        header[&name]["dtype"] = "I32".into();
        sound.refuses(&header, &name)?;
        let mut header = sound.header.clone();
        let entry = header.as_object_mut().and_then(|entries| entries.remove(&name)).ok_or("no entry")?;
        header["other\nname"] = entry;
        sound.refuses(&header, "")?;
    }
    Ok(())
}

#[test]
fn a_tensor_that_is_there_twice_or_has_no_place_in_the_model_is_refused() -> TestResult {
    let sound = Sound::new()?;
    let entry = sound.header["rarity"].to_string();
    let twice = sound.header.to_string().replacen('{', &format!("{{\"rarity\":{entry},"), 1);
    assert!(sound.of_bytes(&sound.bytes(&twice))?.is_err_and(|refusal| refusal.contains("`rarity` is there twice")));
    let end = sound.data.len();
    let mut header = sound.header.clone();
    header["a\nb"] = json!({ "dtype": "F32", "shape": [0], "data_offsets": [end, end] });
    sound.refuses(&header, "tensor `a\\nb`")
}

#[test]
fn numbers_that_no_training_came_to_are_refused() -> TestResult {
    let mut sound = Sound::new()?;
    let data = sound.data.clone();
    for name in sound.tensors() {
        let first = sound.header[&name]["data_offsets"][0].as_u64().ok_or("no offset")? as usize;
        for wrong in [f32::NAN, f32::INFINITY, -1.0] {
            sound.data[first..first + 4].copy_from_slice(&wrong.to_le_bytes());
            if wrong != -1.0 || name.starts_with("adam.square") {
                sound.refuses(&sound.header, &name)?;
            }
            sound.data.copy_from_slice(&data);
        }
    }
    // What a layer carries: minimum, maximum, price, steps.
    let first = sound.header["state.1"]["data_offsets"][0].as_u64().ok_or("no offset")? as usize;
    for (index, wrong) in [(0, 2.0f32), (2, -1.0), (3, -1.0), (3, 0.5)] {
        let at = first + 4 * index;
        sound.data[at..at + 4].copy_from_slice(&wrong.to_le_bytes());
        sound.refuses(&sound.header, "carries")?;
        sound.data.copy_from_slice(&data);
    }
    Ok(())
}

#[test]
fn no_byte_of_the_header_panics() -> TestResult {
    let sound = Sound::new()?;
    let mut header = sound.header.clone();
    header["__metadata__"]["da-moe"] = sound.text.to_string().into();
    let header = header.to_string();
    for at in (0..header.len()).step_by(23) {
        for byte in [b'9', b'{', b'"', 0xff] {
            let mut bytes = sound.bytes(&header);
            bytes[8 + at] = byte;
            let _ = sound.of_bytes(&bytes)?;
        }
    }
    for length in [0, 4, 8, 9, 100, header.len(), header.len() + 8, header.len() + 100] {
        assert!(sound.of_bytes(&sound.bytes(&header)[..length])?.is_err(), "{length} bytes");
    }
    assert!(
        sound.of_bytes(b"version https://git-lfs.github.com/spec/v1\n")?.is_err_and(|e| e.contains("git lfs pull"))
    );
    Ok(())
}
