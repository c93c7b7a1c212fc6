//! How the accesses of warps lie in memory.

/// What launches have moved while [`Device::count_traffic`](crate::Device::count_traffic) was on.
///
/// Loads and stores of a warp's lanes are put together to the accesses of the warp that the hardware makes. Code is taken
/// as it is written: neighbouring loads that nvcc joins to one are several here, and what the host compiler keeps in a
/// register is none. Where lanes diverge within a loop, accesses may count as one that are several. Shared memory that
/// atomics, the tensor memory accelerator and `wgmma` touch has no wavefronts here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Traffic {
    /// Bytes of global memory that lanes have asked for by loads and atomics. A word that all lanes read counts for each.
    pub global_read_bytes: u64,
    /// Bytes of global memory that stores and atomics have written.
    pub global_written_bytes: u64,
    /// Bytes of global memory that `cp.async` and the tensor memory accelerator have read, and that the latter has
    /// written. Zeros that they fill up with come from nowhere, and are not among them.
    pub background_bytes: u64,
    /// Sectors of 32 bytes in the loads, stores and atomics of warps on global memory: a sector that several lanes want at
    /// once counts once. What they bring from L2, unless L1 has it.
    pub global_sectors: u64,
    /// Cycles that shared memory needs for loads, stores, `ldmatrix`, `stmatrix` and the writes of `cp.async`. In one it
    /// gives each of its 32 banks of 4 bytes one word, to any number of lanes. Accesses of 8 bytes a lane go by half
    /// warps, of 16 bytes by quarters of a warp, each for itself.
    pub wavefronts: u64,
    /// How many these would have been without a bank conflict: one for each warp, half or quarter.
    pub ideal_wavefronts: u64,
}

impl Traffic {
    /// Bytes that come from L2 or go there, if L1 keeps nothing.
    pub fn l2_bytes(&self) -> u64 {
        self.background_bytes + 32 * self.global_sectors
    }
}

/// How a place in the code uses the banks of shared memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedPlace {
    /// File and line, and where that was inlined into.
    pub place: String,
    /// Accesses by a warp.
    pub accesses: u64,
    /// As in [`Traffic`].
    pub wavefronts: u64,
    /// As in [`Traffic`].
    pub ideal_wavefronts: u64,
}
