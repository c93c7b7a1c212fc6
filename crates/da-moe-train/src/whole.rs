//! Files that are replaced: whole, or not at all.

use crate::error::{Result, TrainError};
use std::fs;
use std::io::{self, Write};
use std::path::Path;

/// What the names of files that are being written begin with.
const BEGUN: &str = ".da-moe-";

/// Writes beside the file first, under a name of its own, so that an interruption leaves the old one.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let attempt = || -> io::Result<()> {
        let mut begun = beside(path)?;
        begun.write_all(bytes)?;
        // The name must not reach the disk before what it names.
        begun.as_file().sync_all()?;
        begun.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    attempt().map_err(TrainError::file(path))
}

/// A new file with the permissions of an ordinary one: those that the user's mask leaves.
fn beside(path: &Path) -> io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    builder.prefix(BEGUN).suffix(".partial").tempfile_in(folder)
}

/// Removes what processes that were killed had begun. For the folder's owner alone.
pub(crate) fn sweep(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(TrainError::file(folder))? {
        let path = entry.map_err(TrainError::file(folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(BEGUN) && name.ends_with(".partial") {
            fs::remove_file(&path).map_err(TrainError::file(&path))?;
        }
    }
    Ok(())
}
