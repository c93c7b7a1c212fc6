//! How long a machine of known rates needs at least for what a launch does (see [`cost`](super::cost)).

use crate::cuda::cost::{Unit, Work};

/// Rates of a machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine {
    /// What it is, for people.
    pub name: &'static str,
    /// Bytes of memory moved in a second.
    pub bandwidth: f64,
    /// Bytes that its L2 gives and takes in a second.
    pub l2: f64,
    /// Operations a second that its fastest matrix product does in 16-bit types.
    pub tensor: f64,
    /// The part of that rate that `mma.sync` can reach.
    pub mma_sync: f64,
    /// Operations a second in f32 on the ordinary units.
    pub scalar: f64,
    /// Seconds that a launch takes at least.
    pub launch: f64,
    /// For the number of blocks that stay.
    pub multiprocessors: usize,
}

/// What a launch's time is spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// On being launched.
    Launch,
    /// On memory.
    Bytes,
    /// On L2.
    L2,
    /// On shared memory.
    Shared,
    /// On instructions.
    Issue,
    /// On arithmetic.
    Operations,
}

impl Machine {
    /// What large copies and products are commonly measured to reach on this GPU. Hopper's tensor cores give their full
    /// rate to `wgmma` alone; microbenchmarks see 62 of 100 with `mma.sync`, which is what these kernels use. L2's rate is
    /// what was measured on the card with 114 multiprocessors, at the limit of its power.
    pub const H100: Self = Self {
        name: "H100",
        bandwidth: 3.0e12,
        l2: 5.5e12,
        tensor: 800e12,
        mma_sync: 0.62,
        scalar: 60e12,
        launch: 3e-6,
        multiprocessors: 132,
    };

    /// Operations a second of one unit. TF32 has half the rate of 16-bit types (an H100 is said to have 495 and 989 TFLOP/s), and
    /// `mma.sync` is taken to reach the same part of it.
    pub fn rate(&self, unit: Unit) -> f64 {
        match unit {
            Unit::Wgmma16 => self.tensor,
            Unit::Tensor16 => self.tensor * self.mma_sync,
            Unit::Tensor32 => self.tensor * self.mma_sync / 2.0,
            Unit::Scalar => self.scalar,
        }
    }

    /// Clocks of a multiprocessor in a second while a unit multiplies at its full rate: 4096 operations each on tensor cores,
    /// 256 on the ordinary units.
    fn clock(&self, unit: Unit) -> f64 {
        let (rate, operations) = if unit == Unit::Scalar { (self.scalar, 256.0) } else { (self.tensor, 4096.0) };
        rate / (self.multiprocessors as f64 * operations)
    }

    /// Seconds that each part of the machine needs at least. Shared memory has a wavefront a clock, and each of a
    /// multiprocessor's four schedulers issues an instruction.
    pub fn floors(&self, work: &Work) -> [(Bound, f64); 5] {
        let clocks = self.multiprocessors as f64 * self.clock(work.unit);
        [
            (Bound::Bytes, work.bytes / self.bandwidth),
            (Bound::L2, work.l2_bytes / self.l2),
            (Bound::Shared, work.wavefronts / clocks),
            (Bound::Issue, work.instructions / (4.0 * clocks)),
            (Bound::Operations, work.operations / self.rate(work.unit)),
        ]
    }

    /// Seconds of a launch, and what most of them go to: all parts at once, the slowest counts.
    pub fn time(&self, work: &Work) -> (f64, Bound) {
        let slower = |a: (Bound, f64), b: (Bound, f64)| if b.1 > a.1 { b } else { a };
        let (bound, seconds) = self.floors(work).into_iter().fold((Bound::Bytes, 0.0), slower);
        (self.launch + seconds, if seconds < self.launch { Bound::Launch } else { bound })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_part_counts() {
        let work = |bytes, operations| Work {
            bytes,
            operations,
            unit: Unit::Tensor16,
            tiles: 1,
            l2_bytes: bytes,
            wavefronts: 0.0,
            instructions: 0.0,
        };
        let h100 = Machine::H100;
        let of_memory = h100.time(&work(3e9, 1e9));
        assert!((of_memory.0 - 1.003e-3).abs() < 1e-9 && of_memory.1 == Bound::Bytes);
        let of_products = h100.time(&work(3e6, 496e9));
        assert!((of_products.0 - 1.003e-3).abs() < 1e-9 && of_products.1 == Bound::Operations);
        // A wavefront and four instructions a clock.
        let clocks = 132.0 * h100.clock(Unit::Tensor16) * 1e-3;
        let of_banks = h100.time(&Work { wavefronts: clocks, instructions: 3.0 * clocks, ..work(3e6, 400e9) });
        assert!((of_banks.0 - 1.003e-3).abs() < 1e-9 && of_banks.1 == Bound::Shared);
        let of_l2 = h100.time(&Work { l2_bytes: 5.5e9, ..work(3e6, 400e9) });
        assert!((of_l2.0 - 1.003e-3).abs() < 1e-9 && of_l2.1 == Bound::L2);
    }
}
