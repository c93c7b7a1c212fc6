//! Memory that is kept for later instead of being given back to the driver, which is slow at both.

use crate::Result;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Where memory comes from.
pub(super) trait Source {
    /// The address of new memory; `None` when there is none left.
    fn take(&self, bytes: usize) -> Result<Option<u64>>;
    /// Gives memory back for good.
    fn give(&self, address: u64);
    /// Waits until nothing that was started before uses any memory; false where that cannot be known.
    fn wait(&self) -> Result<bool>;
}

/// Memory by state. What is given back may still be in use by work in some stream, so it is handed out again only after
/// the pool has waited once for everything; whoever allocates in the middle of a step pays for that, layer calls never do.
/// Nobody waits, and the driver is asked for nothing, under the lock: who records may give memory back at any time.
#[derive(Default)]
pub(super) struct Pool(Mutex<Blocks>);

#[derive(Default)]
struct Blocks {
    /// Size of each block that somebody has.
    live: HashMap<u64, usize>,
    /// Blocks given back that may still be in use, in the order in which they came.
    pending: VecDeque<Pending>,
    /// How many blocks were ever given back.
    returned: u64,
    /// Blocks that nothing uses, by size.
    idle: BTreeMap<usize, Vec<u64>>,
}

struct Pending {
    /// How many were given back before it.
    number: u64,
    size: usize,
    address: u64,
}

impl Pool {
    // Every change under the lock is complete, so a panicking thread leaves nothing half-done.
    fn lock(&self) -> MutexGuard<'_, Blocks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The address of at least `bytes` bytes; `None` when there are none left.
    pub(super) fn alloc(&self, source: &impl Source, bytes: usize) -> Result<Option<u64>> {
        let size = rounded(bytes);
        let found = match self.reuse(source, size)? {
            Some(address) => return Ok(Some(address)),
            None => source.take(size)?,
        };
        let found = match found {
            Some(address) => Some(address),
            None => {
                // What is kept for others may be in the way.
                self.trim(source)?;
                source.take(size)?
            }
        };
        self.lock().live.extend(found.map(|address| (address, size)));
        Ok(found)
    }

    /// A block that is kept, perhaps after waiting for one.
    fn reuse(&self, source: &impl Source, size: usize) -> Result<Option<u64>> {
        let is_pending = {
            let mut blocks = self.lock();
            if let Some(address) = blocks.reuse(size) {
                return Ok(Some(address));
            }
            blocks.pending.iter().any(|pending| fits(pending.size, size))
        };
        if !is_pending {
            return Ok(None);
        }
        self.settle(source)?;
        Ok(self.lock().reuse(size))
    }

    /// Waits, and so learns that what was given back before is in use no more.
    fn settle(&self, source: &impl Source) -> Result<()> {
        let before = self.lock().returned;
        if source.wait()? {
            self.lock().settle(before);
        }
        Ok(())
    }

    /// Takes back what [`Pool::alloc`] gave; anything else is left alone.
    pub(super) fn free(&self, address: u64) {
        let mut blocks = self.lock();
        if let Some(size) = blocks.live.remove(&address) {
            blocks.put(size, address);
        }
    }

    /// Keeps memory of the source that may be in use until it can be given back.
    pub(super) fn keep(&self, address: u64) {
        self.lock().put(0, address);
    }

    /// Gives everything back that nobody has and nothing uses.
    pub(super) fn trim(&self, source: &impl Source) -> Result<()> {
        self.settle(source)?;
        let idle = std::mem::take(&mut self.lock().idle);
        idle.into_values().flatten().for_each(|address| source.give(address));
        Ok(())
    }

    /// Gives everything back, whoever has it. Nothing must be in use any more.
    pub(super) fn release(&self, source: &impl Source) {
        let Blocks { live, pending, idle, .. } = std::mem::take(&mut *self.lock());
        let pending = pending.into_iter().map(|pending| pending.address);
        live.into_keys().chain(pending).chain(idle.into_values().flatten()).for_each(|address| source.give(address));
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

    fn put(&mut self, size: usize, address: u64) {
        self.pending.push_back(Pending { number: self.returned, size, address });
        self.returned += 1;
    }

    /// The first `before` blocks that were given back are in use no more.
    fn settle(&mut self, before: u64) {
        while let Some(pending) = self.pending.pop_front_if(|pending| pending.number < before) {
            self.idle.entry(pending.size).or_default().push(pending.address);
        }
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
    struct Fake<'p> {
        left: Cell<usize>,
        /// Whether nothing can be known of what is in use.
        recording: Cell<bool>,
        /// What another thread gives back during the next wait.
        meanwhile: Cell<Option<(&'p Pool, u64)>>,
        next: Cell<u64>,
        sizes: RefCell<HashMap<u64, usize>>,
        waits: Cell<usize>,
    }

    impl Fake<'_> {
        fn new(bytes: usize) -> Self {
            Self {
                left: bytes.into(),
                recording: false.into(),
                meanwhile: Cell::default(),
                next: 0x1000.into(),
                sizes: RefCell::default(),
                waits: 0.into(),
            }
        }
    }

    impl Source for Fake<'_> {
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

        fn wait(&self) -> Result<bool> {
            self.waits.set(self.waits.get() + 1);
            // What is given back while somebody waits is not among what was waited for.
            if let Some((pool, address)) = self.meanwhile.take() {
                pool.free(address);
            }
            Ok(!self.recording.get())
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
    fn what_may_be_in_use_is_not_handed_out() {
        let pool = Pool::default();
        let fake = Fake::new(1 << 20);
        let alloc = || pool.alloc(&fake, 1000).unwrap().unwrap();
        let [a, b] = [alloc(), alloc()];
        pool.free(a);
        fake.recording.set(true);
        let c = alloc();
        assert!(c != a && c != b, "nobody knows whether the first is in use: new memory");
        fake.recording.set(false);
        fake.meanwhile.set(Some((&pool, b)));
        assert_eq!(alloc(), a);
        let waits = fake.waits.get();
        assert_eq!((alloc(), fake.waits.get()), (b, waits + 1), "given back during the wait, so waited for again");
        pool.keep(77);
        fake.recording.set(true);
        fake.sizes.borrow_mut().insert(77, 5);
        pool.trim(&fake).unwrap();
        assert!(fake.sizes.borrow().contains_key(&77), "kept while it may be in use");
        fake.recording.set(false);
        pool.trim(&fake).unwrap();
        assert!(!fake.sizes.borrow().contains_key(&77));
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
