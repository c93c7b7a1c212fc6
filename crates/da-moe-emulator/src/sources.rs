//! The sources of a kernel: a file, the headers it reaches, and what is replaced in them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::Error;
use crate::cache::{self, Hash};

/// A text to replace in the file whose path ends in `file`.
#[derive(Clone, Debug)]
pub(crate) struct Replacement {
    pub(crate) file: String,
    pub(crate) from: String,
    pub(crate) to: String,
}

/// A `.cu` file and all headers that it includes, directly or not, except the system's and the emulator's.
pub(crate) struct Sources {
    main: PathBuf,
    texts: BTreeMap<PathBuf, String>,
    replaced: bool,
}

impl Sources {
    pub(crate) fn read(main: &Path, includes: &[PathBuf]) -> Result<Self, Error> {
        let main = absolute(main)?;
        let mut texts = BTreeMap::new();
        let mut open = vec![main.clone()];
        while let Some(path) = open.pop() {
            let text = fs::read_to_string(&path).map_err(|source| Error::File { path: path.clone(), source })?;
            for name in included(&text) {
                let own = path.parent().expect("a file has a directory");
                let candidates = std::iter::once(own).chain(includes.iter().map(PathBuf::as_path));
                for candidate in candidates.map(|directory| normalised(&directory.join(name))) {
                    if candidate.is_file() && !texts.contains_key(&candidate) {
                        open.push(candidate);
                    }
                }
            }
            texts.insert(path, text);
        }
        Ok(Self { main, texts, replaced: false })
    }

    /// Replaces the text where this file or one of its headers is meant; says whether it was.
    pub(crate) fn replace(&mut self, replacement: &Replacement) -> Result<bool, Error> {
        let Replacement { file, from, to } = replacement;
        let wrong = |why: String| Error::Replace { file: file.clone(), from: from.clone(), why };
        let mut meant = self.texts.iter_mut().filter(|(path, _)| path.ends_with(file));
        let Some((_, text)) = meant.next() else { return Ok(false) };
        if let Some((other, _)) = meant.next() {
            return Err(wrong(format!("the name also fits {}", other.display())));
        }
        match text.matches(from.as_str()).count() {
            1 => *text = text.replacen(from.as_str(), to, 1),
            0 => return Err(wrong("the file does not contain the text".into())),
            n => return Err(wrong(format!("the file contains the text {n} times, not once"))),
        }
        self.replaced = true;
        Ok(true)
    }

    pub(crate) fn is_replaced(&self) -> bool {
        self.replaced
    }

    pub(crate) fn add_to(&self, hash: &mut Hash) {
        for (path, text) in &self.texts {
            hash.add(path.as_os_str().as_encoded_bytes());
            hash.add(text);
        }
    }

    /// The file to compile, and the directories to look for headers in.
    ///
    /// With replacements, all files are written below `directory`, at their own paths, so that includes mean what they
    /// meant. `#line` keeps the original name for reports.
    pub(crate) fn write_below(&self, directory: &Path, includes: &[PathBuf]) -> Result<(PathBuf, Vec<PathBuf>), Error> {
        if !self.replaced {
            return Ok((self.main.clone(), includes.to_vec()));
        }
        let below = |path: &Path| directory.join(path.strip_prefix("/").unwrap_or(path));
        for (path, text) in &self.texts {
            let name = path.display().to_string().replace('\\', "\\\\").replace('"', "\\\"");
            cache::write(&below(path), &format!("#line 1 \"{name}\"\n{text}"))?;
        }
        Ok((below(&self.main), includes.iter().map(|include| below(include)).collect()))
    }

    pub(crate) fn name(&self) -> String {
        self.main.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

/// The names in `#include` directives. Those under a condition that does not hold are among them, which does no harm.
fn included(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let directive = line.trim_start().strip_prefix('#')?.trim_start().strip_prefix("include")?.trim_start();
        let end = match directive.chars().next()? {
            '"' => '"',
            '<' => '>',
            _ => return None,
        };
        let name = &directive[1..];
        Some(&name[..name.find(end)?])
    })
}

/// The path from the root, without `.` and `..`.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, Error> {
    let path = std::path::absolute(path).map_err(|source| Error::File { path: path.into(), source })?;
    Ok(normalised(&path))
}

fn normalised(path: &Path) -> PathBuf {
    let mut result = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                result.pop();
            }
            other => result.push(other),
        }
    }
    result
}
