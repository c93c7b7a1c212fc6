//! Device memory that a stage needs while it runs: the caller's, one block a stage, cut up here.

/// How much a stage needs. The first [`Workspace::HEADER`] bytes are a header that must be zero before the first launch and
/// that the kernels leave zero, so all stages and layers of one stream can share one block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Workspace {
    /// Bytes of the header that the stage uses.
    pub zeroed: usize,
    /// Bytes in all, with the whole header.
    pub bytes: usize,
}

impl Workspace {
    /// Bytes that are zero between launches.
    pub const HEADER: usize = 16 << 10;

    /// Room for `bytes` bytes behind the header.
    pub(in crate::cuda) fn scratch(bytes: usize) -> Self {
        Self { zeroed: 0, bytes: bytes.saturating_add(Self::HEADER) }
    }
}

/// Cuts a block of device memory into arrays, each aligned to [`Carver::ALIGN`].
pub(in crate::cuda) struct Carver {
    base: u64,
    used: usize,
}

impl Carver {
    /// Enough for any access of a kernel, and a cache line.
    const ALIGN: usize = 128;

    pub fn new(base: u64) -> Self {
        Self { base, used: 0 }
    }

    /// Room for `count` elements. Sizes saturate: what no memory can have must not wrap around to something small.
    pub fn take<T>(&mut self, count: usize) -> *mut T {
        let at = self.base.wrapping_add(self.used as u64);
        let bytes = count.saturating_mul(size_of::<T>()).div_ceil(Self::ALIGN).saturating_mul(Self::ALIGN);
        self.used = self.used.saturating_add(bytes);
        at as *mut T
    }

    /// Ends what has to be zero; what is taken from here on need not be.
    pub fn end_header(&mut self) -> usize {
        let zeroed = self.used;
        self.used = zeroed.max(Workspace::HEADER);
        zeroed
    }

    pub fn used(&self) -> usize {
        self.used
    }
}

/// Blocks of `size` that cover `count`; at least one, so that totals are written for nothing too.
pub(in crate::cuda) fn blocks(count: usize, size: usize) -> u32 {
    // Counts are row indices, which fit i32 (SPEC §7).
    count.div_ceil(size).max(1) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_are_aligned_and_do_not_overlap() {
        let mut carver = Carver::new(256);
        let (bytes, doubles, more) = (carver.take::<u8>(3), carver.take::<f64>(17), carver.take::<i32>(0));
        assert_eq!((bytes as u64, doubles as u64, more as u64), (256, 384, 640));
        assert_eq!(carver.used(), 384);
        assert_eq!((carver.end_header(), carver.used()), (384, Workspace::HEADER));
        carver.take::<u64>(usize::MAX);
        assert!(carver.used() > usize::MAX / 2);
    }

    #[test]
    fn nothing_still_takes_one_block() {
        assert_eq!((blocks(0, 8), blocks(8, 8), blocks(9, 8)), (1, 1, 2));
    }
}
