//! Files named by a hash of everything they are made from.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Error;

/// A 128-bit FNV-1a hash: enough to name files by, and the same on every machine.
#[derive(Clone, Copy)]
pub(crate) struct Hash(u128);

impl Hash {
    pub(crate) fn new() -> Self {
        Self(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }

    /// Adds bytes, and where they end.
    pub(crate) fn add(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        for byte in bytes.iter().copied().chain((bytes.len() as u64).to_le_bytes()) {
            self.0 = (self.0 ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
    }

    pub(crate) fn name(self) -> String {
        format!("{:032x}", self.0)
    }
}

/// The path of `name` below `directory`, made by `make` if it is not there yet.
///
/// `make` writes to a path of its own, which is then renamed, so nobody sees half a file. A lock keeps others, be they
/// threads or processes, from doing the same work meanwhile.
pub(crate) fn entry(
    directory: &Path,
    name: &str,
    make: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<PathBuf, Error> {
    let path = directory.join(name);
    if path.exists() {
        return Ok(path);
    }
    create_directory(directory)?;
    let lock_path = directory.join(format!("{name}.lock"));
    let lock = File::create(&lock_path).map_err(|source| Error::File { path: lock_path.clone(), source })?;
    lock.lock().map_err(|source| Error::File { path: lock_path, source })?;
    if path.exists() {
        return Ok(path);
    }
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let unique = COUNT.fetch_add(1, Ordering::Relaxed);
    let temporary = directory.join(format!("{}-{unique}-{name}", std::process::id()));
    make(&temporary)?;
    fs::rename(&temporary, &path).map_err(|source| Error::File { path: temporary, source })?;
    Ok(path)
}

pub(crate) fn create_directory(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(|source| Error::File { path: path.into(), source })
}

pub(crate) fn write(path: &Path, contents: &str) -> Result<(), Error> {
    if let Some(parent) = path.parent() {
        create_directory(parent)?;
    }
    fs::write(path, contents).map_err(|source| Error::File { path: path.into(), source })
}
