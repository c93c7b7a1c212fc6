//! How many threads make the dispatch plan, and the memory they need (`kernels/permute/permute.cu`).

use crate::cuda::abi;
use crate::cuda::cost::{Contents, Work};
use crate::cuda::device::workspace::{Carver, Workspace, blocks};
use crate::cuda::device::{Call, Launch, Parameters, Target};
use crate::{Drop, LayerConfig};

/// Entries (slots of tokens) of one block.
const BLOCK_ENTRIES: usize = 2048;
const THREADS: u32 = 256;
/// Threads of the block that applies an expert's capacity.
const DROP_THREADS: u32 = 512;
/// Threads of the block that lists the shared expert's tokens.
const UNMASKED_THREADS: u32 = 1024;

/// Sizes and capacity of a plan over `tokens` tokens; pointers are to be set, strides are dense.
pub fn parameters(config: &LayerConfig, tokens: usize) -> abi::Permute {
    let slots = config.k_max();
    abi::Permute {
        experts_stride: slots as i64,
        weights_stride: slots as i64,
        capacity_factor: config.router.capacity_factor.unwrap_or(-1.0),
        tokens: tokens as i32,
        slots: slots as i32,
        routed: config.num_experts as i32,
        candidates: config.candidates() as i32,
        by_weight: i32::from(config.router.drop == Drop::Weight),
        ..Default::default()
    }
}

fn grid(p: &abi::Permute) -> u32 {
    blocks(p.tokens as usize * p.slots as usize, BLOCK_ENTRIES)
}

/// Points `p` into a workspace at `base`, and says how large that must be.
pub fn bind(_: Target, p: &mut abi::Permute, base: u64) -> Workspace {
    let mut carver = Carver::new(base);
    p.ticket = carver.take(1);
    let zeroed = carver.end_header();
    p.block_counts = carver.take(grid(p) as usize * p.candidates as usize);
    if p.capacity_factor >= 0.0 {
        let rows = p.tokens as usize * p.slots as usize;
        p.sorted_offsets = carver.take(p.routed as usize + 1);
        p.sorted_entry = carver.take(rows);
        p.sorted_weight = carver.take(rows);
    }
    Workspace { zeroed, bytes: carver.used() }
}

/// Two launches, or three with a capacity.
pub fn calls(_: Target, p: abi::Permute) -> impl Iterator<Item = Call> {
    let drops = (p.capacity_factor >= 0.0).then(|| Launch::linear("permute_drop", p.routed as u32, DROP_THREADS));
    ["permute_count", "permute_scatter"]
        .into_iter()
        .map(move |kernel| Launch::linear(kernel, grid(&p), THREADS))
        .chain(drops)
        .map(move |launch| Call::new(launch, p))
}

/// The one launch that lists the unmasked tokens; pointers are to be set.
pub fn unmasked_call(_: Target, p: abi::PermuteUnmasked) -> Call {
    Call::new(Launch::linear("permute_unmasked", 1, UNMASKED_THREADS), p)
}

impl Parameters for abi::Permute {
    fn work(&self, launch: &Launch, _: &Contents) -> Work {
        let of_entry = if launch.kernel == "permute_count" { 4.0 } else { 20.0 };
        Work::moved(of_entry * f64::from(self.tokens) * f64::from(self.slots), launch.blocks())
    }
}

impl Parameters for abi::PermuteUnmasked {
    fn work(&self, launch: &Launch, _: &Contents) -> Work {
        Work::moved(9.0 * f64::from(self.tokens), launch.blocks())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_takes_two_launches_and_capacity_a_third() {
        let mut config = LayerConfig::da_moe(64, 64, 8, 4);
        let kernels = |config: &LayerConfig| -> Vec<_> {
            calls(Target::H100, parameters(config, 3000))
                .map(|call| (call.launch.kernel, call.launch.grid[0]))
                .collect()
        };
        assert_eq!(kernels(&config), [("permute_count", 6), ("permute_scatter", 6)]);
        config.router.capacity_factor = Some(1.25);
        assert_eq!(kernels(&config)[2], ("permute_drop", 8));
    }

    #[test]
    fn workspace_grows_with_blocks_and_only_a_capacity_needs_rows() {
        let mut config = LayerConfig::da_moe(64, 64, 8, 4);
        let bytes = |config: &LayerConfig, tokens| {
            bind(Target::H100, &mut parameters(config, tokens), 0).bytes - Workspace::HEADER
        };
        assert_eq!(bytes(&config, 512), 128);
        assert_eq!(bytes(&config, 1024), 128);
        assert_eq!(bytes(&config, 2560), 256);
        config.router.capacity_factor = Some(1.0);
        assert_eq!(bytes(&config, 512), 128 + 128 + 2 * 512 * 4 * 4);
    }
}
