//! The tasks of GLUE (Wang et al. 2019) from the files as published: one folder of tab-separated files for each task.
//!
//! In these files a quotation mark is a character like any other, columns are found by the header's names (CoLA has no
//! header), and test files have no labels. STS-B is refused: it is a regression.

use super::{DataError, Example, Labelled, lines};
use std::path::Path;

/// The tasks that [`load`] knows, as their folders are called.
pub const TASKS: [&str; 8] = ["CoLA", "SST-2", "MRPC", "QQP", "MNLI", "QNLI", "RTE", "WNLI"];

/// Where a column is: by number, or by the header's name.
#[derive(Clone, Copy)]
enum Columns {
    /// No header; text and label by number from 0.
    Numbered { text: usize, label: usize },
    /// A header with these names.
    Named { text: &'static str, pair: Option<&'static str>, label: &'static str },
}

/// How the files of a task are to be read.
struct Task {
    folder: &'static str,
    columns: Columns,
    /// Each class as the files write it and as it is called.
    labels: &'static [(&'static str, &'static str)],
    /// The development set to choose by, and one to report if there are two.
    validation: &'static str,
    test: Option<&'static str>,
    /// Whether rows that a line break in a text has torn apart are left out.
    torn_rows: bool,
}

const ENTAILMENT: [(&str, &str); 2] = [("entailment", "entailment"), ("not_entailment", "not_entailment")];

const fn named(text: &'static str, pair: Option<&'static str>, label: &'static str) -> Columns {
    Columns::Named { text, pair, label }
}

const fn task(folder: &'static str, columns: Columns, labels: &'static [(&'static str, &'static str)]) -> Task {
    Task { folder, columns, labels, validation: "dev.tsv", test: None, torn_rows: false }
}

const DETAILS: [Task; 8] = [
    task("CoLA", Columns::Numbered { text: 3, label: 1 }, &[("0", "unacceptable"), ("1", "acceptable")]),
    task("SST-2", named("sentence", None, "label"), &[("0", "negative"), ("1", "positive")]),
    task("MRPC", named("#1 String", Some("#2 String"), "Quality"), &[("0", "not_equivalent"), ("1", "equivalent")]),
    Task {
        torn_rows: true,
        ..task(
            "QQP",
            named("question1", Some("question2"), "is_duplicate"),
            &[("0", "not_duplicate"), ("1", "duplicate")],
        )
    },
    Task {
        validation: "dev_matched.tsv",
        test: Some("dev_mismatched.tsv"),
        ..task(
            "MNLI",
            named("sentence1", Some("sentence2"), "gold_label"),
            &[("contradiction", "contradiction"), ("entailment", "entailment"), ("neutral", "neutral")],
        )
    },
    task("QNLI", named("question", Some("sentence"), "label"), &ENTAILMENT),
    task("RTE", named("sentence1", Some("sentence2"), "label"), &ENTAILMENT),
    task("WNLI", named("sentence1", Some("sentence2"), "label"), &[("0", "not_entailment"), ("1", "entailment")]),
];

/// The task `name`, one of [`TASKS`] in any case, from its folder below `folder` (`CoLA/train.tsv` and so on).
///
/// The published development set is [`Labelled::validation`]. [`Labelled::test`] is empty, because the labels of the
/// test sets are not published; MNLI has two development sets, and the mismatched one is its test. Rows of QQP that
/// have too few columns are left out: the published file has questions with line breaks.
///
/// # Errors
///
/// If there is no such task or it has no classes, a file cannot be read or has no header with the columns needed, or a
/// row has too few columns or an unknown label.
pub fn load(folder: &Path, name: &str) -> Result<Labelled, DataError> {
    let refused = |problem: String| DataError::Task { name: name.into(), problem };
    if name.eq_ignore_ascii_case("STS-B") {
        return Err(refused("is a regression, and has no classes".into()));
    }
    let task = DETAILS.iter().find(|task| task.folder.eq_ignore_ascii_case(name));
    let task = task.ok_or_else(|| refused(format!("known are {}", TASKS.join(", "))))?;
    let read = |file: &str| task.examples(&folder.join(task.folder).join(file));
    Ok(Labelled {
        name: task.folder.into(),
        labels: task.labels.iter().map(|(_, label)| (*label).into()).collect(),
        train: read("train.tsv")?,
        validation: read(task.validation)?,
        test: task.test.map_or_else(|| Ok(Vec::new()), read)?,
    })
}

/// Which columns of a file are read, by number.
struct Numbers {
    text: usize,
    pair: Option<usize>,
    label: usize,
    /// How many columns the header has; without a header, how many are needed.
    count: usize,
}

impl Task {
    fn examples(&self, path: &Path) -> Result<Vec<Example>, DataError> {
        let lines = lines::read(path)?;
        let numbers = self.numbers(path, lines.first().map_or("", String::as_str))?;
        let header = usize::from(matches!(self.columns, Columns::Named { .. }));
        let mut examples = Vec::new();
        for (line, number) in lines.iter().zip(1..).skip(header) {
            let fields: Vec<&str> = line.split('\t').collect();
            if fields.len() < numbers.count {
                if self.torn_rows {
                    continue;
                }
                let problem = format!("has {} columns, {} are needed", fields.len(), numbers.count);
                return Err(DataError::line(path, number, problem));
            }
            let field = |number: usize| fields.get(number).map_or("", |field| field.trim());
            let label = field(numbers.label);
            let Some(label) = self.labels.iter().position(|(written, _)| *written == label) else {
                let known: Vec<&str> = self.labels.iter().map(|(written, _)| *written).collect();
                let problem = format!("has the label `{label}`, known are {}", known.join(", "));
                return Err(DataError::line(path, number, problem));
            };
            let pair = numbers.pair.map(|number| field(number).into());
            examples.push(Example { text: field(numbers.text).into(), pair, label });
        }
        if examples.is_empty() {
            return Err(DataError::File { path: path.into(), problem: "has no examples".into() });
        }
        Ok(examples)
    }

    fn numbers(&self, path: &Path, header: &str) -> Result<Numbers, DataError> {
        let (text, pair, label) = match self.columns {
            Columns::Numbered { text, label } => {
                return Ok(Numbers { text, pair: None, label, count: text.max(label) + 1 });
            }
            Columns::Named { text, pair, label } => (text, pair, label),
        };
        let names: Vec<&str> = header.split('\t').map(str::trim).collect();
        let number = |wanted: &str| {
            let problem = || format!("is a header without the column `{wanted}`");
            let number = names.iter().position(|name| *name == wanted);
            number.ok_or_else(|| DataError::line(path, 1, problem()))
        };
        Ok(Numbers {
            text: number(text)?,
            pair: pair.map(number).transpose()?,
            label: number(label)?,
            count: names.len(),
        })
    }
}
