//! Labelled text for classification.

use super::{DataError, lines};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::Path;

/// The sets that `cargo xtask data` writes for [`labelled()`].
pub const LABELLED_SETS: [&str; 4] = ["food-reviews", "reuters-r8", "20newsgroups", "bbc-news"];

/// A text, or a pair of texts, and its class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The text; of a pair, the first.
    pub text: String,
    /// The second text of a pair.
    pub pair: Option<String>,
    /// The class, an index into [`Labelled::labels`].
    pub label: usize,
}

/// A set for classification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labelled {
    /// What the set is called.
    pub name: String,
    /// The classes' names.
    pub labels: Vec<String>,
    /// To train on.
    pub train: Vec<Example>,
    /// To choose by.
    pub validation: Vec<Example>,
    /// To report. Empty where the labels are not published.
    pub test: Vec<Example>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    text: String,
    label: String,
    split: Split,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Split {
    Train,
    Validation,
    Test,
}

/// The set `name` below `folder`, as `cargo xtask data` writes it (`labelled/NAME.jsonl`). Labels are in alphabetical
/// order.
///
/// # Errors
///
/// If the file is missing, a line of it is not an object with `text`, `label` and `split` alone, a split has no
/// examples, or there are fewer than two labels.
pub fn labelled(folder: &Path, name: &str) -> Result<Labelled, DataError> {
    let path = folder.join("labelled").join(format!("{name}.jsonl"));
    let lines: Vec<(usize, Line)> = lines::read_json(&path)?;
    let labels: BTreeSet<String> = lines.iter().map(|(_, line)| line.label.clone()).collect();
    let labels: Vec<String> = labels.into_iter().collect();
    if labels.len() < 2 {
        return Err(DataError::File { path, problem: format!("has {} labels: needs two or more", labels.len()) });
    }

    let (mut train, mut validation, mut test) = (Vec::new(), Vec::new(), Vec::new());
    for (number, line) in lines {
        let label = labels.binary_search(&line.label);
        let label = label.map_err(|_| DataError::line(&path, number, "has a label out of order"))?;
        let example = Example { text: line.text, pair: None, label };
        match line.split {
            Split::Train => train.push(example),
            Split::Validation => validation.push(example),
            Split::Test => test.push(example),
        }
    }
    for (split, examples) in [("train", &train), ("validation", &validation), ("test", &test)] {
        if examples.is_empty() {
            return Err(DataError::File { path, problem: format!("has no examples for {split}") });
        }
    }
    Ok(Labelled { name: name.into(), labels, train, validation, test })
}
