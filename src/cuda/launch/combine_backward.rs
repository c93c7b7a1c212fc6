//! Which kernels find the gradients of null experts, with how many threads (`kernels/combine/combine_backward.cu`).

use crate::cuda::abi;
use crate::cuda::cost::{Contents, Work, element_size};
use crate::cuda::device::workspace::{Carver, Workspace, blocks};
use crate::cuda::device::{Call, Launch, Parameters, Target};
use crate::cuda::launch::vectorized::{are_aligned, are_whole, of_type, wide};
use crate::{DType, Sizes};

const THREADS: usize = 256;
/// Tokens of a block that finds weights' gradients: one a warp.
const WARPS: usize = 8;
/// Fewest tokens that a block adds up for the constants.
const LEAST_CHUNK: usize = 32;
/// Blocks that share the constants' gradients where there are many tokens: enough for the memory, and few partial sums.
const MOST_BLOCKS: usize = 512;

/// Elements of a thread at most.
const WIDEST: usize = 8;

/// Consecutive tokens that one block adds up. Depends on sizes alone, as do therefore the bits.
fn chunk(p: &abi::CombineBackward) -> usize {
    let blocks = p.gradients as usize * shares(p, WIDEST);
    let chunks = (MOST_BLOCKS / blocks.max(1)).max(1);
    (p.tokens as usize).div_ceil(chunks).max(LEAST_CHUNK)
}

/// Blocks that share a row of the constants' gradients, with `vector` elements a thread.
fn shares(p: &abi::CombineBackward, vector: usize) -> usize {
    (p.width as usize).div_ceil(THREADS * vector)
}

/// The workspace of any call of a layer, with `constants` null experts whose constants are learned.
pub fn workspace(target: Target, sizes: &Sizes, constants: usize) -> Workspace {
    let (tokens, width, gradients) = (sizes.tokens as i32, sizes.hidden as i32, constants as i32);
    bind(target, &mut abi::CombineBackward { tokens, width, gradients, ..Default::default() }, 0)
}

/// Points `p` into a workspace at `base`, cuts its tokens into chunks, and says how large the workspace must be.
pub fn bind(_: Target, p: &mut abi::CombineBackward, base: u64) -> Workspace {
    let gradients = p.gradients as usize;
    p.chunk = chunk(p) as i32;
    let mut carver = Carver::new(base);
    p.tickets = carver.take(gradients * shares(p, 1));
    let zeroed = carver.end_header();
    p.parts = carver.take(gradients * blocks(p.tokens as usize, p.chunk as usize) as usize * p.width as usize);
    Workspace { zeroed, bytes: carver.used() }
}

/// Up to two launches: the weights' gradients where there are slots, the constants' where there are any. `storage` is the
/// type of all but the weights.
pub fn calls(_: Target, storage: DType, p: abi::CombineBackward) -> impl Iterator<Item = Call> {
    let is_wide = is_wide(storage, &p);
    let of_weights = (p.tokens > 0 && p.slots > 0).then(|| {
        let kernel = of_type(WEIGHTS, storage, is_wide);
        Launch::linear(kernel, blocks(p.tokens as usize, WARPS), THREADS as u32)
    });
    let of_constants = (p.gradients > 0 && p.width > 0).then(|| {
        let shares = shares(&p, if is_wide { wide(storage) } else { 1 });
        let grid = [blocks(p.tokens as usize, p.chunk as usize), shares as u32, p.gradients as u32];
        Launch { kernel: of_type(CONSTANTS, storage, is_wide), grid, threads: THREADS as u32, shared: 0, cluster: 1 }
    });
    [of_weights, of_constants].into_iter().flatten().map(move |launch| Call::new(launch, p))
}

const WEIGHTS: [[&str; 2]; 3] = [
    ["combine_backward_f32", "combine_backward_f32_wide"],
    ["combine_backward_bf16", "combine_backward_bf16_wide"],
    ["combine_backward_f16", "combine_backward_f16_wide"],
];
const CONSTANTS: [[&str; 2]; 3] = [
    ["combine_constants_f32", "combine_constants_f32_wide"],
    ["combine_constants_bf16", "combine_constants_bf16_wide"],
    ["combine_constants_f16", "combine_constants_f16_wide"],
];

/// Whether every row of every tensor starts and ends at a multiple of 128 bits; in the storage type, so that f32 gradients
/// beside 16-bit rows do too.
fn is_wide(storage: DType, p: &abi::CombineBackward) -> bool {
    are_whole(storage, [i64::from(p.width), p.x_stride, p.constants_stride, p.dy_stride])
        && are_aligned([p.x as usize, p.constants as usize, p.dy as usize, p.d_constants as usize])
}

impl Parameters for abi::CombineBackward {
    fn work(&self, launch: &Launch, _: &Contents) -> Work {
        let slots = f64::from(self.tokens) * f64::from(self.slots);
        // Of null experts when none is chosen: ids in, zeros out.
        let zeros = f64::from(self.gradients) * f64::from(self.width) * element_size(launch.kernel);
        let constants = launch.kernel.starts_with("combine_constants");
        Work::moved(if constants { 4.0 * slots + zeros } else { 8.0 * slots }, launch.blocks())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(tokens: i32, width: i32, gradients: i32) -> abi::CombineBackward {
        let stride = i64::from(width);
        let strides = abi::CombineBackward { x_stride: stride, dy_stride: stride, ..Default::default() };
        let mut p = abi::CombineBackward { tokens, width, gradients, slots: 8, ..strides };
        bind(Target::H100, &mut p, 0);
        p
    }

    fn launches(storage: DType, p: abi::CombineBackward) -> Vec<Launch> {
        calls(Target::H100, storage, p).map(|call| call.launch).collect()
    }

    #[test]
    fn tokens_have_a_warp_and_columns_of_constants_a_thread() {
        let [weights, constants] = launches(DType::Bf16, of(1000, 2048, 3))[..] else { panic!("two launches") };
        assert_eq!((weights.kernel, weights.grid), ("combine_backward_bf16_wide", [125, 1, 1]));
        assert_eq!((constants.kernel, constants.grid), ("combine_constants_bf16_wide", [32, 1, 3]));
        // 512 blocks over 3 rows are 170 chunks of 50 tokens, whatever a thread moves at once.
        let [_, constants] = launches(DType::F32, of(8500, 2047, 3))[..] else { panic!("two launches") };
        assert_eq!((constants.kernel, constants.grid), ("combine_constants_f32", [170, 8, 3]));
        let [_, constants] = launches(DType::F32, of(8500, 2048, 3))[..] else { panic!("two launches") };
        assert_eq!((constants.kernel, constants.grid), ("combine_constants_f32_wide", [170, 2, 3]));
    }

    #[test]
    fn nothing_to_write_is_no_launch() {
        assert_eq!(launches(DType::F16, of(0, 8, 0)), []);
        assert_eq!(launches(DType::F16, of(9, 8, 0)).len(), 1);
        // Without tokens the constants' gradients are zeros, and written.
        let [zeros] = launches(DType::F16, of(0, 8, 2))[..] else { panic!("one launch") };
        assert_eq!((zeros.kernel, zeros.grid), ("combine_constants_f16_wide", [1, 1, 2]));
    }

    #[test]
    fn partial_sums_stay_small_and_tickets_are_zeroed() {
        let workspace = |p: &mut abi::CombineBackward| bind(Target::H100, p, 0);
        assert_eq!(workspace(&mut of(33, 5, 2)), Workspace { zeroed: 128, bytes: Workspace::HEADER + 128 });
        assert_eq!(workspace(&mut of(33, 5, 0)), Workspace { zeroed: 0, bytes: Workspace::HEADER });
        let many = workspace(&mut of(1 << 20, 2048, 4)).bytes;
        assert!(many <= Workspace::HEADER + MOST_BLOCKS * THREADS * WIDEST * 4, "{many} bytes");
    }
}
