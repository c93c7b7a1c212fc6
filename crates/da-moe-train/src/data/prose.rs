//! Prose for pre-training, split into documents to learn from and documents held out.

use super::{DataError, lines};
use crate::random;
use serde::Deserialize;
use std::collections::HashSet;
use std::path::Path;

/// The sets that [`prose()`] reads, in its order.
pub const PROSE_SETS: [&str; 3] = ["brown", "wordnet", "austen"];

const DOCUMENTATION: [&str; 8] = [
    include_str!("documentation/README.md"),
    include_str!("documentation/SPEC.md"),
    include_str!("documentation/ARCHITECTURE.md"),
    include_str!("documentation/INTERFACES.md"),
    include_str!("documentation/ENGINES.md"),
    include_str!("documentation/KERNELS.md"),
    include_str!("documentation/MEMORY.md"),
    include_str!("documentation/DATA.md"),
];

/// Documents, those for training apart from those for measuring.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prose {
    /// Documents to train on; a tokenizer may see these alone.
    pub train: Vec<String>,
    /// Documents that nothing is trained on.
    pub held_out: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    text: String,
}

/// All of [`PROSE_SETS`] below `folder`, as `cargo xtask data` writes them (`prose/brown.jsonl` and so on), one after
/// another. A twentieth of each set's documents is held out, chosen by a hash of the document.
///
/// # Errors
///
/// If a file is missing, has no documents, or a line of it is not an object with a `text` alone.
pub fn prose(folder: &Path) -> Result<Prose, DataError> {
    let mut all = Prose::default();
    for name in PROSE_SETS {
        let path = folder.join("prose").join(format!("{name}.jsonl"));
        let documents: Vec<(usize, Document)> = lines::read_json(&path)?;
        if documents.is_empty() {
            return Err(DataError::File { path, problem: "has no documents".into() });
        }
        let set = split(documents.into_iter().map(|(_, document)| document.text));
        all.train.extend(set.train);
        all.held_out.extend(set.held_out);
    }
    Ok(all)
}

/// Any text; its paragraphs, which blank lines part, are the documents. Of two or more different ones at least one is
/// held out, a twentieth of many. A longer text of few paragraphs is cut into parts of about one length instead, between words:
/// a twentieth could not be held out of it, or be a title.
pub fn prose_from_text(text: &str) -> Prose {
    // Lines may end as they do on any system.
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let documents = paragraphs(&text);
    let bytes = documents.iter().map(String::len).sum::<usize>();
    if documents.len() < FEW && bytes >= 2 * SHORTEST_PART {
        let length = (bytes / 4).clamp(SHORTEST_PART, 2 * SHORTEST_PART).max(bytes / (2 * FEW));
        return hold_out_places(parts(&documents.join("\n\n"), length));
    }
    split(documents)
}

/// Documents of which a twentieth is not even one.
const FEW: usize = 20;
/// Bytes of a part of a text that is cut, at least: enough to fill a block. Twice as many where there is room: words that
/// come again and again are one token each.
const SHORTEST_PART: usize = 400;

/// A text in parts of at least `length` bytes, the last one too, which end with a word if words end.
fn parts(text: &str, length: usize) -> Vec<String> {
    let mut parts = Vec::new();
    let mut rest = text;
    while rest.len() >= 2 * length {
        let ahead = &rest[rest.ceil_char_boundary(length)..];
        // A text without spaces is cut anywhere.
        let word = ahead.find(char::is_whitespace).filter(|&end| end < length).unwrap_or(0);
        let (part, behind) = rest.split_at(rest.len() - ahead.len() + word);
        parts.push(part.trim().to_string());
        rest = behind;
    }
    parts.push(rest.trim().to_string());
    parts.retain(|part| !part.is_empty());
    parts
}

/// This project's documentation: text to train on where nothing was downloaded.
pub fn own_documentation() -> Prose {
    split(DOCUMENTATION.into_iter().flat_map(paragraphs))
}

fn paragraphs(text: &str) -> Vec<String> {
    let mut paragraphs = vec![String::new()];
    for line in text.lines() {
        match (line.trim().is_empty(), paragraphs.last_mut()) {
            (false, Some(paragraph)) => {
                if !paragraph.is_empty() {
                    paragraph.push('\n');
                }
                paragraph.push_str(line.trim_end());
            }
            _ => paragraphs.push(String::new()),
        }
    }
    paragraphs.retain(|paragraph| !paragraph.is_empty());
    paragraphs
}

/// Holds out one of twenty by its place, at least one. A text that says the same again and again is one that somebody wants to
/// train on: by their letters all of its parts would be on one side.
fn hold_out_places(parts: Vec<String>) -> Prose {
    let first = (FEW / 2).min(parts.len() / 2);
    let (held_out, train): (Vec<_>, Vec<_>) =
        parts.into_iter().enumerate().partition(|(place, _)| place % FEW == first);
    let texts = |parts: Vec<(usize, String)>| parts.into_iter().map(|(_, text)| text).collect();
    Prose { train: texts(train), held_out: texts(held_out) }
}

/// Holds out the twentieth with the least hashes, at least one of several. Documents of the same letters are one: only
/// the first stays.
fn split(documents: impl IntoIterator<Item = String>) -> Prose {
    let mut seen = HashSet::new();
    let hashed = documents.into_iter().map(|document| (hash(&document), document));
    let documents: Vec<(u64, String)> = hashed.filter(|(hash, _)| seen.insert(*hash)).collect();
    let mut hashes: Vec<u64> = seen.into_iter().collect();
    hashes.sort_unstable();
    let held = if hashes.len() < 2 { 0 } else { hashes.len().div_ceil(20) };
    let bound = hashes.get(held).copied().unwrap_or(0);

    let (held_out, train): (Vec<_>, Vec<_>) = documents.into_iter().partition(|(hash, _)| *hash < bound);
    let texts = |documents: Vec<(u64, String)>| documents.into_iter().map(|(_, text)| text).collect();
    Prose { train: texts(train), held_out: texts(held_out) }
}

/// Of the letters alone, in lower case: documents that differ in punctuation or numbers stay on one side.
fn hash(document: &str) -> u64 {
    let letters = document.chars().filter(|character| character.is_alphabetic());
    let letters: String = letters.flat_map(char::to_lowercase).collect();
    if letters.is_empty() { random::name(document) } else { random::name(&letters) }
}
