//! Who writes into a folder: one process at a time, by a lock that ends with its process however that ends.

use crate::error::{Result, TrainError};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

/// Stays where it is when its owner has gone: removed, it could be locked by one process and made anew by the next.
const LOCK: &str = ".da-moe.lock";
/// Bytes of a command that are told.
const SHOWN: usize = 120;

/// The right to write into a folder, until it is dropped or its process ends.
#[derive(Debug)]
pub struct Owner {
    lock: File,
}

impl Owner {
    /// Takes possession of a folder, which is made where there is none.
    ///
    /// # Errors
    /// [`TrainError::Owned`] while another holds it, or a folder that cannot be made or locked.
    pub fn of(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).map_err(TrainError::file(folder))?;
        let refused = |source| TrainError::Lock { folder: folder.into(), source };
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(folder.join(LOCK));
        let mut lock = open.map_err(refused)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(TrainError::Owned { folder: folder.into(), holder: holder(&mut lock) });
            }
            Err(TryLockError::Error(source)) => return Err(refused(source)),
        }
        // What the lock says is for people; without it the folder is owned all the same.
        let _ = lock.set_len(0).and_then(|()| lock.write_all(introduction().as_bytes()));
        Ok(Self { lock })
    }

    /// Takes possession of several folders, of which some may be the same.
    ///
    /// # Errors
    /// As [`Owner::of`].
    pub(crate) fn of_all(folders: &[&Path]) -> Result<Vec<Self>> {
        let mut seen: Vec<PathBuf> = Vec::new();
        let mut owners = Vec::new();
        for folder in folders {
            fs::create_dir_all(folder).map_err(TrainError::file(folder))?;
            let place = fs::canonicalize(folder).map_err(TrainError::file(folder))?;
            if !seen.contains(&place) {
                owners.push(Self::of(folder)?);
                seen.push(place);
            }
        }
        Ok(owners)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // The next one should not find this one's name between its taking the lock and its writing into it.
        let _ = self.lock.set_len(0);
        // A process that another thread is starting has the file open too for a moment, and the lock ends with the last of them.
        let _ = self.lock.unlock();
    }
}

/// This process, as others are told of it.
fn introduction() -> String {
    let command = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ");
    let mut command: String = command.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if command.len() > SHOWN {
        command.truncate(command.floor_char_boundary(SHOWN));
        command.push('…');
    }
    format!("process {} (`{command}`)", std::process::id())
}

/// What the lock's owner has written into it, and since when it has it.
fn holder(lock: &mut File) -> String {
    let mut name = String::new();
    // Where a lock keeps others from reading too, nothing more is known.
    let read = lock.rewind().and_then(|()| lock.read_to_string(&mut name));
    if read.is_err() || name.trim().is_empty() {
        return "another process".into();
    }
    let since = lock.metadata().and_then(|metadata| metadata.modified()).ok().and_then(|time| time.elapsed().ok());
    match since {
        Some(since) => format!("{}, which began {} s ago", name.trim(), since.as_secs()),
        None => name.trim().into(),
    }
}
