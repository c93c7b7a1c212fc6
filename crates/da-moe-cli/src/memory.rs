//! Memory figures of this process and machine, where the system tells them (Linux); absent elsewhere.

use crate::{Error, Result};
use std::fs;

const MEBIBYTE: u64 = 1 << 20;

/// Refuses work that needs more memory than there is, before an allocation aborts the process.
pub(crate) fn expect_room(what: &'static str, bytes: usize) -> Result<()> {
    let bytes = bytes as u64;
    match field("/proc/meminfo", "MemAvailable") {
        Some(available) if bytes > available => {
            Err(Error::Memory { what, needed: bytes / MEBIBYTE, available: available / MEBIBYTE })
        }
        _ => Ok(()),
    }
}

/// Bytes of memory that this process occupies now.
pub(crate) fn resident() -> Option<u64> {
    field("/proc/self/status", "VmRSS")
}

/// The most that this process ever occupied, or has since [`forget_peak`].
pub(crate) fn peak() -> Option<u64> {
    field("/proc/self/status", "VmHWM")
}

/// Starts [`peak`] anew. Where the system refuses, the peak stays that of the whole process: an upper bound.
pub(crate) fn forget_peak() {
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// A line `name: 123 kB` of a file under /proc, in bytes.
fn field(path: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}
