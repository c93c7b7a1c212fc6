//! Text files line by line, so that errors can name the line.

use super::DataError;
use crate::pointer;
use std::io;
use std::path::Path;

/// The lines of a UTF-8 file without their ends. A byte-order mark at the start is not part of the first.
pub(super) fn read(path: &Path) -> Result<Vec<String>, DataError> {
    let bytes = pointer::read(path).map_err(|source| DataError::Read { path: path.into(), source })?;
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&bytes);
    let mut lines: Vec<&[u8]> = bytes.split(|&byte| byte == b'\n').collect();
    // What follows the last line's end is no line.
    lines.pop_if(|last| last.is_empty());
    let numbered = lines.into_iter().zip(1..);
    numbered
        .map(|(line, number)| match std::str::from_utf8(line.strip_suffix(b"\r").unwrap_or(line)) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => Err(DataError::line(path, number, format!("is not UTF-8: {error}"))),
        })
        .collect()
}

/// The objects of a file of one JSON object per line, with the number of each line.
pub(super) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Vec<(usize, T)>, DataError> {
    let lines = match read(path) {
        Err(DataError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Err(DataError::Missing { path: path.into() });
        }
        lines => lines?,
    };
    let parse = |(number, line): (usize, String)| match serde_json::from_str(&line) {
        Ok(object) => Ok((number, object)),
        Err(error) => Err(DataError::line(path, number, error.to_string())),
    };
    (1..).zip(lines).map(parse).collect()
}
