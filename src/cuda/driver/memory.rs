//! Memory taken from a GPU. Every copy is held against the list of allocations first: an address of the host, or of memory
//! that was given back, would otherwise be written by the driver without complaint.

use super::refused;
use crate::{Error, Result};
use cudarc::driver::result;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Length of each allocation by its address.
#[derive(Default)]
pub(super) struct Memory(Mutex<BTreeMap<u64, usize>>);

impl Memory {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn alloc(&self, bytes: usize) -> Result<u64> {
        // SAFETY: a context is current; the memory is not read before it is written. The driver gives no empty memory.
        let address = unsafe { result::malloc_sync(bytes.max(1)) };
        let address = address.map_err(|error| refused("cuMemAlloc", error, &format!("{bytes} bytes")))?;
        self.lock().insert(address, bytes);
        Ok(address)
    }

    pub(super) fn free(&self, address: u64) -> Result<()> {
        if self.lock().remove(&address).is_none() {
            return Err(foreign("cuMemFree", address, 0));
        }
        // SAFETY: it was in the list, and is no longer, so it is freed once.
        unsafe { result::free_sync(address) }.map_err(|error| refused("cuMemFree", error, &format!("{address:#x}")))
    }

    pub(super) fn upload(&self, address: u64, bytes: &[u8]) -> Result<()> {
        // Held until the copy is done, so that nobody frees the memory meanwhile.
        let allocations = self.lock();
        check(&allocations, "cuMemcpyHtoD", address, bytes.len())?;
        // SAFETY: the range is inside one live allocation; the source is a slice, and read before this returns.
        let done = unsafe { result::memcpy_htod_sync(address, bytes) };
        done.map_err(|error| refused("cuMemcpyHtoD", error, &range(address, bytes.len())))
    }

    pub(super) fn download(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        let (allocations, length) = (self.lock(), bytes.len());
        check(&allocations, "cuMemcpyDtoH", address, length)?;
        // SAFETY: the range is inside one live allocation; the destination is a slice, written before this returns.
        let done = unsafe { result::memcpy_dtoh_sync(bytes, address) };
        done.map_err(|error| refused("cuMemcpyDtoH", error, &range(address, length)))
    }

    pub(super) fn set(&self, address: u64, value: u8, length: usize) -> Result<()> {
        let allocations = self.lock();
        check(&allocations, "cuMemsetD8", address, length)?;
        // SAFETY: the range is inside one live allocation; frees come after it in the null stream.
        let done = unsafe { result::memset_d8_sync(address, value, length) };
        done.map_err(|error| refused("cuMemsetD8", error, &range(address, length)))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        for &address in self.lock().keys() {
            // SAFETY: in the list, so not freed yet; the context is still held. A refusal would change nothing.
            let _ = unsafe { result::free_sync(address) };
        }
    }
}

/// Whether a range is inside one allocation.
fn check(allocations: &BTreeMap<u64, usize>, call: &'static str, address: u64, length: usize) -> Result<()> {
    let before = allocations.range(..=address).next_back();
    let room = before.and_then(|(start, bytes)| bytes.checked_sub(usize::try_from(address - start).ok()?));
    if room.is_some_and(|room| length <= room) { Ok(()) } else { Err(foreign(call, address, length)) }
}

fn foreign(call: &'static str, address: u64, length: usize) -> Error {
    Error::Cuda { call, problem: format!("{} are not inside an allocation of this GPU", range(address, length)) }
}

fn range(address: u64, length: usize) -> String {
    format!("{length} bytes at {address:#x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_outside_are_refused() {
        let allocations = BTreeMap::from([(0x1000, 16), (0x2000, 0)]);
        let allowed = |address, length| check(&allocations, "cuMemcpyHtoD", address, length).is_ok();
        assert!(allowed(0x1000, 16) && allowed(0x100f, 1) && allowed(0x1010, 0) && allowed(0x2000, 0));
        assert!(!allowed(0x1000, 17) && !allowed(0x1011, 0) && !allowed(0xfff, 1) && !allowed(0x2000, 1));
        let error = check(&allocations, "cuMemcpyHtoD", 0x1008, 9).expect_err("past the end");
        assert_eq!(error.to_string(), "cuMemcpyHtoD: 9 bytes at 0x1008 are not inside an allocation of this GPU");
    }
}
