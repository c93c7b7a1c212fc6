//! Everything that decides the results of a run beside its configuration, and how it is told that two runs are not the same.

use crate::config::RunConfig;
use crate::data::{Labelled, Prose, Tokenizer};
use crate::pace::Pace;
use candle_core::Device;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// What a run was made of. Long things are known by their SHA-256.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Of this package, which may compute otherwise in its next version.
    pub version: String,
    /// Documents to train on and documents held out.
    pub text: String,
    /// What the text was read with.
    pub tokenizer: String,
    /// `cpu`, `cuda` or `metal`, which round differently.
    pub device: String,
    /// When the run was measured; absent of a model that was trained outside of a run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Measured>,
    /// What the model was fine-tuned on afterwards, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fine_tuning: Option<Tuned>,
}

/// Which steps the figures of a run are of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// Steps of a line of its metrics.
    pub line: u64,
    /// Lines between measurements on held-out text.
    pub held_out: u64,
    /// Batches of held-out text.
    pub held_out_batches: u64,
}

/// How a model was fine-tuned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuned {
    /// SHA-256 of each set by its name.
    pub sets: BTreeMap<String, String>,
    /// Sequences a step.
    pub batch: usize,
    /// Steps on each set.
    pub steps: u64,
    /// Largest learning rate.
    pub rate: f64,
}

impl Identity {
    /// Of a model that is trained on this text, on this device.
    pub(crate) fn new(text: &str, tokenizer: &Tokenizer, device: &Device) -> Self {
        let device = match device {
            Device::Cpu => "cpu",
            Device::Cuda(_) => "cuda",
            Device::Metal(_) => "metal",
        };
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            text: text.into(),
            tokenizer: digest([tokenizer.to_json().as_bytes()]),
            device: device.into(),
            measured: None,
            fine_tuning: None,
        }
    }

    /// In a run of this pace.
    pub(crate) fn measured(self, pace: Pace) -> Self {
        let Pace { line, held_out, batches, .. } = pace;
        Self { measured: Some(Measured { line, held_out, held_out_batches: batches }), ..self }
    }
}

/// Of the text that a model is trained on.
pub(crate) fn of_prose(prose: &Prose) -> String {
    let sides = [&prose.train, &prose.held_out];
    digest(sides.into_iter().flat_map(|side| {
        // A number that no document is: where one side ends is a part of what is summed up.
        std::iter::once(&b"documents"[..]).chain(side.iter().map(String::as_bytes))
    }))
}

/// Of a set for fine-tuning.
pub(crate) fn of_labelled(set: &Labelled) -> String {
    let mut parts: Vec<&[u8]> = set.labels.iter().map(String::as_bytes).collect();
    for examples in [&set.train, &set.validation, &set.test] {
        parts.push(b"examples");
        for example in examples {
            let label = set.labels.get(example.label).map_or("", String::as_str);
            let pair = example.pair.as_deref();
            parts.extend([example.text.as_bytes(), label.as_bytes(), pair.map_or(b"no pair", |_| b"pair")]);
            parts.push(pair.unwrap_or_default().as_bytes());
        }
    }
    digest(parts)
}

/// SHA-256 of parts, each after its length, so that it matters where one ends.
pub(crate) fn digest<'p>(parts: impl IntoIterator<Item = &'p [u8]>) -> String {
    let mut sum = Sha256::new();
    for part in parts {
        sum.update((part.len() as u64).to_le_bytes());
        sum.update(part);
    }
    sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What is told first: from another text follows another tokeniser, from other steps that other ones are measured.
const FIRST: [&str; 5] = ["text", "seed", "variant", "schedule", "model"];
/// Differences that are told, at most.
const TOLD: usize = 3;

/// A run as it is compared: its configuration and its identity.
pub(crate) type Known<'r> = (&'r RunConfig, &'r Identity);

/// How what is there differs from what is asked for, field by field in one line; `None` where it does not.
pub(crate) fn differences(there: Known<'_>, here: Known<'_>) -> Option<String> {
    let value = |(config, identity): Known<'_>| -> serde_json::Result<Value> {
        let mut all = serde_json::to_value(config)?;
        if let (Value::Object(all), Value::Object(identity)) = (&mut all, serde_json::to_value(identity)?) {
            all.extend(identity);
        }
        Ok(all)
    };
    let mut found = Vec::new();
    match (value(there), value(here)) {
        (Ok(there), Ok(here)) => walk(String::new(), Some(&there), Some(&here), &mut found),
        // Numbers that JSON has no words for are refused long before.
        (Err(error), _) | (_, Err(error)) => found.push(error.to_string()),
    }
    let more = found.len().saturating_sub(TOLD);
    found.truncate(TOLD);
    let told = found.join("; ");
    match (found.is_empty(), more) {
        (true, _) => None,
        (false, 0) => Some(told),
        (false, more) => Some(format!("{told}; and {more} more")),
    }
}

fn walk(path: String, there: Option<&Value>, here: Option<&Value>, found: &mut Vec<String>) {
    match (there, here) {
        (Some(Value::Object(left)), Some(Value::Object(right))) => {
            let place = |name: &str| FIRST.iter().position(|first| *first == name).unwrap_or(FIRST.len());
            let names: BTreeSet<(usize, &String)> =
                left.keys().chain(right.keys()).map(|name| (place(name), name)).collect();
            for (_, name) in names {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                walk(path, left.get(name), right.get(name), found);
            }
        }
        _ if there == here => {}
        _ => found.push(format!("`{path}` is {} there, {} here", short(there), short(here))),
    }
}

/// As much of a value as tells it from another.
fn short(value: Option<&Value>) -> String {
    const LONGEST: usize = 60;
    let Some(value) = value else { return "absent".into() };
    let hexadecimal = |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let (text, longest) = match value {
        Value::String(text) if hexadecimal(text) => (format!("sha256:{text}"), "sha256:".len() + 12),
        Value::String(text) => (text.escape_debug().to_string(), LONGEST),
        other => (other.to_string(), LONGEST),
    };
    match text.char_indices().nth(longest) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(there: Value, here: Value) -> Vec<String> {
        let mut found = Vec::new();
        walk(String::new(), Some(&there), Some(&here), &mut found);
        found
    }

    #[test]
    fn every_field_that_differs_is_named_with_both_values() {
        assert_eq!(told(json!({ "a": { "b": [1] } }), json!({ "a": { "b": [1] } })), [""; 0]);
        assert_eq!(
            told(
                json!({ "a": { "b": 1, "c": "x" }, "d": 1 }),
                json!({ "a": { "b": 2, "c": "x" }, "text": "0".repeat(64) })
            ),
            [
                "`text` is absent there, sha256:000000000000… here",
                "`a.b` is 1 there, 2 here",
                "`d` is 1 there, absent here"
            ]
        );
    }

    #[test]
    fn where_a_document_ends_matters() {
        let prose = |train: &[&str], held_out: &[&str]| {
            let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_string()).collect();
            of_prose(&Prose { train: texts(train), held_out: texts(held_out) })
        };
        let digests =
            [prose(&["ab"], &["c"]), prose(&["a", "b"], &["c"]), prose(&["ab", "c"], &[]), prose(&["a"], &["bc"])];
        let distinct: BTreeSet<_> = digests.iter().collect();
        assert_eq!(distinct.len(), digests.len());
    }
}
