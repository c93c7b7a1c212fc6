//! What is written at the end is looked at in the beginning: nothing is lost by it, neither hours nor what is read.

use crate::run::output::followed;
use crate::{Error, Result};
use std::fs;
use std::io;
use std::path::Path;

/// Refuses a file that could not be written, by the name of its option.
pub(crate) fn can_write(option: &str, path: &Path) -> Result<()> {
    let target = followed(path).map_err(|source| refused(option, path, &format!("cannot be written: {source}")))?;
    match fs::metadata(&target) {
        Ok(metadata) if metadata.is_dir() => return Err(refused(option, path, "is a folder, not a file")),
        // A device or a pipe is written to, not replaced.
        Ok(metadata) if !metadata.is_file() => return Ok(()),
        _ => {}
    }
    if target.file_name().is_none() || path.as_os_str().to_string_lossy().ends_with(std::path::is_separator) {
        return Err(refused(option, path, "names no file"));
    }
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return Err(refused(option, path, &format!("cannot be written: there is no folder `{}`", folder.display())));
    }
    let tried = tempfile::Builder::new().prefix(".da-moe-").tempfile_in(folder);
    tried.map(drop).map_err(|source: io::Error| refused(option, path, &format!("cannot be written: {source}")))
}

/// Refuses to write over what is read.
pub(crate) fn is_another(option: &str, path: &Path, read: Option<&Path>) -> Result<()> {
    // A terminal is read and written.
    let place = |path: &Path| fs::canonicalize(path).ok().filter(|place| place.is_file());
    match read {
        Some(read) if place(read).is_some() && place(read) == place(path) => {
            Err(refused(option, path, "is what is read: it would be written over"))
        }
        _ => Ok(()),
    }
}

pub(crate) fn refused(option: &str, path: &Path, problem: &str) -> Error {
    Error::Usage(format!("{option} `{}` {problem}", path.display()))
}
