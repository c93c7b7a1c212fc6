//! Files of one JSON object a line that are only added to, by writers that may be stopped anywhere: by a disk without room, by a
//! signal, by the current.
//!
//! What a writer that was stopped leaves is a part of a line, or a line without its end. The part is passed over and told of; the
//! line is kept. Anything else that is no object of its kind is an error.

use crate::error::{Result, TrainError};
use crate::pointer;
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// What was read.
pub(crate) struct Lines<T> {
    /// Objects in their order, with the number of each one's line, from 1.
    pub objects: Vec<(usize, T)>,
    /// What was passed over, a sentence for each line.
    pub notes: Vec<String>,
    /// Bytes at the start that are whole lines.
    whole: u64,
    /// Bytes after these that are to be kept: objects whose line has no end.
    kept: u64,
    /// Bytes of the file.
    length: u64,
}

/// Reads a file; where there is none, nothing.
///
/// # Errors
/// What cannot be read, is no file, is not UTF-8, or has a line that is something else.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Lines<T>> {
    let mut lines = Lines { objects: Vec::new(), notes: Vec::new(), whole: 0, kept: 0, length: 0 };
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(lines),
        // A device or a pipe may never end.
        Ok(metadata) if !metadata.is_file() => return Err(TrainError::contents(path, "is not a file")),
        _ => {}
    }
    let bytes = pointer::read(path).map_err(TrainError::file(path))?;
    lines.length = bytes.len() as u64;
    for (line, number) in bytes.split_inclusive(|&byte| byte == b'\n').zip(1..) {
        let found = Found::in_line(line, number, path)?;
        if line.ends_with(b"\n") {
            lines.whole += line.len() as u64;
        } else {
            lines.kept = found.end as u64;
        }
        if found.torn {
            let kept = match found.objects.len() {
                0 => String::new(),
                count => format!(", {count} whole beside it kept"),
            };
            lines
                .notes
                .push(format!("{}: line {number} is only a part of one and is passed over{kept}", path.display()));
        }
        lines.objects.extend(found.objects.into_iter().map(|object| (number, object)));
    }
    Ok(lines)
}

/// What is in a line.
struct Found<T> {
    objects: Vec<T>,
    /// Whether a part of an object is there too.
    torn: bool,
    /// Where the last object ends.
    end: usize,
}

/// Braces in a part of an object, at most; whole ones that are written have some dozens.
const MOST_BRACES: usize = 256;

impl<T: DeserializeOwned> Found<T> {
    fn in_line(line: &[u8], number: usize, path: &Path) -> Result<Self> {
        // What a file system that lost its last writes may have instead of them.
        let is_nothing = |byte: &u8| *byte == 0 || byte.is_ascii_whitespace();
        let Some(first) = line.iter().position(|byte| !is_nothing(byte)) else {
            return Ok(Self { objects: Vec::new(), torn: line.contains(&0), end: 0 });
        };
        let wrong = |problem: String| TrainError::contents(path, format!("line {number}: {problem}"));
        check_text(&line[first..]).map_err(|at| wrong(format!("byte {} is not UTF-8", first + at + 1)))?;
        let text = line.trim_ascii_end();
        let text = &text[first..];
        match serde_json::from_slice(text) {
            Ok(object) => {
                return Ok(Self {
                    objects: vec![object],
                    torn: first > 0 && line[..first].contains(&0),
                    end: first + text.len(),
                });
            }
            // Whole, but something else; or nothing that a writer of objects can have begun.
            Err(error) if text[0] != b'{' || serde_json::from_slice::<IgnoredAny>(text).is_ok() => {
                return Err(wrong(error.to_string()));
            }
            Err(_) => {}
        }
        let mut found = Self { objects: Vec::new(), torn: false, end: 0 };
        // Each brace is read from to where it makes no sense any more, which may be the line's end.
        let (mut at, mut tried) = (0, 0);
        while at < text.len() {
            let mut values = serde_json::Deserializer::from_slice(&text[at..]).into_iter::<T>();
            if text[at] == b'{'
                && let Some(Ok(object)) = values.next()
            {
                at += values.byte_offset();
                found.objects.push(object);
                found.end = first + at;
                tried = 0;
            } else {
                found.torn |= !is_nothing(&text[at]);
                tried += usize::from(text[at] == b'{');
                if tried > MOST_BRACES {
                    return Err(wrong(format!(
                        "more than {MOST_BRACES} braces are of no object that was written here"
                    )));
                }
                at += 1;
            }
        }
        Ok(found)
    }
}

/// Whether this is UTF-8, but for characters that were cut where writing stopped; else the place of the first byte that is not.
fn check_text(mut bytes: &[u8]) -> Result<(), usize> {
    let mut passed = 0;
    while let Err(error) = std::str::from_utf8(bytes) {
        let (at, cut) = (error.valid_up_to(), error.error_len());
        let end = cut.map_or(bytes.len(), |length| at + length);
        let begins = matches!(bytes[at], 0xC2..=0xF4);
        // The next writer's first byte, or the end of the file or line.
        let stopped = bytes.get(end).is_none_or(|next| matches!(next, b'{' | b'\n' | b'\r' | 0));
        if !(begins && stopped) {
            return Err(passed + at);
        }
        passed += end;
        bytes = &bytes[end..];
    }
    Ok(())
}

/// A file that this process adds to. Its folder should be owned.
pub(crate) struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// Opens a file, or makes it, with what it has; and cuts off what a writer that was stopped left at its end.
    ///
    /// # Errors
    /// As [`read`], or a file that cannot be written.
    pub fn open<T: DeserializeOwned>(path: &Path) -> Result<(Self, Lines<T>)> {
        let lines = read(path)?;
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut journal = Self { file: open.map_err(TrainError::file(path))?, path: path.into() };
        if lines.length > lines.whole {
            journal.file.set_len(lines.whole + lines.kept).map_err(TrainError::file(path))?;
            if lines.kept > 0 {
                journal.add(b"\n")?;
            }
        }
        Ok((journal, lines))
    }

    /// Adds a line: the whole of it, or nothing.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn append(&mut self, object: &impl Serialize) -> Result<()> {
        let line = serde_json::to_string(object).map_err(|error| TrainError::contents(&self.path, error))? + "\n";
        self.add(line.as_bytes())
    }

    fn add(&mut self, bytes: &[u8]) -> Result<()> {
        let end = self.file.seek(SeekFrom::End(0)).map_err(TrainError::file(&self.path))?;
        let attempt = self.file.write_all(bytes).and_then(|()| self.file.sync_data());
        attempt.map_err(|source| {
            // If that fails too, whoever opens the file next cuts off what is there.
            let _ = self.file.set_len(end);
            TrainError::file(&self.path)(source)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;

    /// Like an outcome: fields of its own, and an object inside that is none.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    struct Object {
        name: String,
        inside: Inside,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inside {
        number: f64,
    }

    fn object(number: usize) -> Object {
        Object { name: format!("“é{{{number}”"), inside: Inside { number: number as f64 } }
    }

    fn line(number: usize) -> Vec<u8> {
        serde_json::to_vec(&object(number)).unwrap()
    }

    fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.jsonl");
        fs::write(&path, bytes).unwrap();
        (folder, path)
    }

    fn objects(path: &Path) -> Result<(Vec<Object>, usize)> {
        let lines = read::<Object>(path)?;
        Ok((lines.objects.into_iter().map(|(_, object)| object).collect(), lines.notes.len()))
    }

    #[test]
    fn what_is_whole_is_read_and_parts_are_told_of() {
        let (one, two) = (line(1), line(2));
        let half = |length: usize| &one[..length];
        let joined = |parts: &[&[u8]]| parts.concat();
        let both = vec![object(1), object(2)];
        let cases: Vec<(&str, Vec<u8>, Vec<Object>, usize)> = vec![
            ("nothing", vec![], vec![], 0),
            ("whole", joined(&[&one, b"\n", &two, b"\n"]), both.clone(), 0),
            ("other ends of lines", joined(&[&one, b"\r\n\r\n", &two, b"\r\n"]), both.clone(), 0),
            ("no last end", joined(&[&one, b"\n", &two]), both.clone(), 0),
            ("no end between", joined(&[&one, &two, b"\n"]), both.clone(), 0),
            ("half at the end", joined(&[&two, b"\n", half(20)]), vec![object(2)], 1),
            ("half and its end", joined(&[half(20), b"\n", &two, b"\n"]), vec![object(2)], 1),
            ("half before another", joined(&[half(20), &two, b"\n"]), vec![object(2)], 1),
            ("half at an object before another", joined(&[half(one.len() - 14), &two, b"\n"]), vec![object(2)], 1),
            ("half of a character", joined(&[half(10), &two, b"\n"]), vec![object(2)], 1),
            ("half behind another", joined(&[&two, half(10)]), vec![object(2)], 1),
            ("two halves", joined(&[half(12), half(20), b"\n", &two]), vec![object(2)], 1),
            ("never written", joined(&[&two, b"\n", &[0; 50]]), vec![object(2)], 1),
            ("never written before another", joined(&[&[0; 50], &two, b"\n"]), vec![object(2)], 1),
        ];
        for (name, bytes, expected, notes) in cases {
            let (_folder, path) = file(&bytes);
            assert_eq!(objects(&path).unwrap(), (expected.clone(), notes), "{name}");
            let (mut journal, _) = Journal::open::<Object>(&path).unwrap();
            journal.append(&object(3)).unwrap();
            let (found, _) = objects(&path).unwrap();
            assert_eq!(found, [expected, vec![object(3)]].concat(), "{name}: with another");
        }
    }

    #[test]
    fn a_line_of_braces_is_an_error_and_costs_no_time() {
        for part in ["{\"a\":", "{", "{\"number\":1,\"a\":"] {
            let (_folder, path) = file(part.repeat(50_000).as_bytes());
            let start = std::time::Instant::now();
            assert!(objects(&path).is_err_and(|error| error.to_string().contains("line 1: more than 256 braces")));
            // To each brace's end from every one before would take minutes.
            assert!(start.elapsed().as_secs() < 20, "{part}");
        }
    }

    #[test]
    fn what_is_something_else_is_an_error() {
        let cases: [(&str, &[u8]); 6] = [
            ("line 1: byte 1 is not UTF-8", b"\xff\xfe{\0\"\0"),
            ("line 2: byte 10 is not UTF-8", b"\n{\"name\":\"\xff\"}\n"),
            ("line 1: byte 10 is not UTF-8", b"{\"name\":\"\xc3x\"}\n"),
            ("line 1: missing field `inside`", b"{\"name\":\"a\"}\n"),
            ("line 1: unknown field `more`", b"{\"name\":\"a\",\"inside\":{\"number\":1,\"more\":2}}"),
            ("line 1: expected", b"nonsense\n"),
        ];
        for (says, bytes) in cases {
            let (_folder, path) = file(bytes);
            let refusal = objects(&path).unwrap_err().to_string();
            assert!(refusal.contains(says) && refusal.contains("file.jsonl"), "`{says}` is not in `{refusal}`");
            assert!(Journal::open::<Object>(&path).is_err());
            assert_eq!(fs::read(&path).unwrap(), bytes, "nothing is changed");
        }
        let (folder, _path) = file(b"");
        assert!(objects(folder.path()).unwrap_err().to_string().contains("is not a file"));
        assert_eq!(objects(&folder.path().join("absent")).unwrap(), (vec![], 0));
    }

    proptest! {
        // Every one waits for the disk.
        #![proptest_config(ProptestConfig::with_cases(50))]
        /// A writer that was stopped anywhere costs what it was writing, and nothing else.
        #[test]
        fn at_most_one_object_is_lost(count in 1..5_usize, cut in 0..1000_usize) {
            let whole: Vec<u8> = (0..count).flat_map(|number| [line(number), b"\n".to_vec()].concat()).collect();
            let cut = cut % (whole.len() + 1);
            let (_folder, path) = file(&whole[..cut]);
            let ended = whole[..cut].iter().filter(|&&byte| byte == b'\n').count();
            let (mut journal, lines) = Journal::open::<Object>(&path).unwrap();
            prop_assert!(lines.objects.len() >= ended);
            for number in lines.objects.len()..count {
                journal.append(&object(number)).unwrap();
            }
            prop_assert_eq!(fs::read(&path).unwrap(), whole);
        }
    }
}
