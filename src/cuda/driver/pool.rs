//! Memory that is kept for later instead of being given back to the driver, which is slow at both.

use crate::Result;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Where memory comes from.
pub(super) trait Source {
    /// The address of new memory; `None` when there is none left.
    fn take(&self, bytes: usize) -> Result<Option<u64>>;
    /// Gives memory back for good.
    fn give(&self, address: u64);
    /// Waits until nothing that was started uses any memory.
    fn wait(&self) -> Result<()>;
}

/// Memory by state. What is given back may still be in use by work in some stream, so it is handed out again only after
/// the pool has waited once for everything; whoever allocates in the middle of a step pays for that, layer calls never do.
#[derive(Default)]
pub(super) struct Pool(Mutex<Blocks>);

#[derive(Default)]
struct Blocks {
    /// Size of each block that somebody has.
    live: HashMap<u64, usize>,
    /// Blocks given back since the last wait.
    pending: Vec<(usize, u64)>,
    /// Blocks that nothing uses, by size.
    idle: BTreeMap<usize, Vec<u64>>,
}

impl Pool {
    // Every change under the lock is complete, so a panicking thread leaves nothing half-done.
    fn lock(&self) -> MutexGuard<'_, Blocks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The address of at least `bytes` bytes; `None` when there are none left.
    pub(super) fn alloc(&self, source: &impl Source, bytes: usize) -> Result<Option<u64>> {
        let size = rounded(bytes);
        let mut blocks = self.lock();
        if let Some(address) = blocks.reuse(size) {
            return Ok(Some(address));
        }
        if blocks.pending.iter().any(|&(pending, _)| fits(pending, size)) {
            source.wait()?;
            blocks.settle();
            if let Some(address) = blocks.reuse(size) {
                return Ok(Some(address));
            }
        }
        let mut found = source.take(size)?;
        if found.is_none() {
            // What is kept for others may be in the way.
            source.wait()?;
            blocks.settle();
            blocks.empty(source);
            found = source.take(size)?;
        }
        blocks.live.extend(found.map(|address| (address, size)));
        Ok(found)
    }

    /// Takes back what [`Pool::alloc`] gave; anything else is left alone.
    pub(super) fn free(&self, address: u64) {
        let mut blocks = self.lock();
        if let Some(size) = blocks.live.remove(&address) {
            blocks.pending.push((size, address));
        }
    }

    /// Gives everything back that nobody has.
    pub(super) fn trim(&self, source: &impl Source) -> Result<()> {
        source.wait()?;
        let mut blocks = self.lock();
        blocks.settle();
        blocks.empty(source);
        Ok(())
    }

    /// Gives everything back, whoever has it. Nothing must be in use any more.
    pub(super) fn release(&self, source: &impl Source) {
        let mut blocks = self.lock();
        blocks.settle();
        blocks.empty(source);
        blocks.live.drain().for_each(|(address, _)| source.give(address));
    }
}

impl Blocks {
    fn reuse(&mut self, size: usize) -> Option<u64> {
        let (&found, addresses) = self.idle.range_mut(size..).next().filter(|(found, _)| fits(**found, size))?;
        let address = addresses.pop()?;
        if addresses.is_empty() {
            self.idle.remove(&found);
        }
        self.live.insert(address, found);
        Some(address)
    }

    fn settle(&mut self) {
        for (size, address) in self.pending.drain(..) {
            self.idle.entry(size).or_default().push(address);
        }
    }

    fn empty(&mut self, source: &impl Source) {
        std::mem::take(&mut self.idle).into_values().flatten().for_each(|address| source.give(address));
    }
}

/// Sizes that blocks come in: few enough that they are found again, never an eighth larger than asked for above 4 KiB.
fn rounded(bytes: usize) -> usize {
    let step = (bytes / 8).max(1).checked_next_power_of_two().map_or(1 << 60, |step| step / 2).max(512);
    bytes.max(1).div_ceil(step).saturating_mul(step)
}

/// Whether a block may serve a request without wasting more than a quarter of it.
fn fits(block: usize, size: usize) -> bool {
    block >= size && block - size <= size / 4
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};

    /// So many bytes, and a list of what happened.
    struct Fake {
        left: Cell<usize>,
        next: Cell<u64>,
        sizes: RefCell<HashMap<u64, usize>>,
        waits: Cell<usize>,
    }

    impl Fake {
        fn new(bytes: usize) -> Self {
            Self { left: bytes.into(), next: 0x1000.into(), sizes: RefCell::default(), waits: 0.into() }
        }
    }

    impl Source for Fake {
        fn take(&self, bytes: usize) -> Result<Option<u64>> {
            if bytes > self.left.get() {
                return Ok(None);
            }
            self.left.set(self.left.get() - bytes);
            self.next.set(self.next.get() + 0x10_0000);
            self.sizes.borrow_mut().insert(self.next.get(), bytes);
            Ok(Some(self.next.get()))
        }

        fn give(&self, address: u64) {
            let bytes = self.sizes.borrow_mut().remove(&address).expect("given back once");
            self.left.set(self.left.get() + bytes);
        }

        fn wait(&self) -> Result<()> {
            self.waits.set(self.waits.get() + 1);
            Ok(())
        }
    }

    #[test]
    fn blocks_come_back_after_one_wait() {
        let (fake, pool) = (Fake::new(1 << 20), Pool::default());
        let [a, b] = [1000, 5000].map(|bytes| pool.alloc(&fake, bytes).unwrap().unwrap());
        assert_ne!(a, b);
        pool.free(a);
        pool.free(b);
        assert_eq!(pool.alloc(&fake, 1000).unwrap(), Some(a));
        assert_eq!(pool.alloc(&fake, 4900).unwrap(), Some(b));
        assert_eq!(fake.waits.get(), 1, "one wait settles all");
        pool.free(77);
        pool.free(a);
        pool.free(a);
        assert_eq!(pool.alloc(&fake, 1).unwrap().map(|address| address == a), Some(false), "far too large");
    }

    #[test]
    fn what_is_kept_gives_way_to_what_is_needed() {
        let (fake, pool) = (Fake::new(10_000), Pool::default());
        let a = pool.alloc(&fake, 8000).unwrap().unwrap();
        assert_eq!(pool.alloc(&fake, 4000).unwrap(), None);
        pool.free(a);
        let b = pool.alloc(&fake, 4000).unwrap().unwrap();
        pool.free(b);
        pool.trim(&fake).unwrap();
        assert_eq!(fake.left.get(), 10_000);
        pool.alloc(&fake, 100).unwrap().unwrap();
        pool.release(&fake);
        assert_eq!(fake.left.get(), 10_000);
        assert_eq!(pool.alloc(&fake, usize::MAX).unwrap(), None);
    }

    #[test]
    fn sizes_are_few_and_close() {
        for bytes in [0, 1, 511, 512, 4096, 5000, 123_456, 1 << 30] {
            let size = rounded(bytes);
            assert!(size >= bytes.max(1) && size - bytes <= (bytes / 8).max(512), "{bytes}: {size}");
            assert!(size.is_multiple_of(512));
        }
    }
}
