//! Runs the kernels of `kernels/conformance/`, each of which is one instruction or function of the hardware, on any device that
//! has it: for the tests that hold the emulator against a GPU.

#![allow(unsafe_code, reason = "a launch on device memory; the block names what it relies on")]

use crate::cuda::device::{Architecture, Device, Elements, Launch, TensorBoxes};
use crate::cuda::stage::binder::Binder;
use crate::{Error, Result};
use std::ffi::c_void;
use std::sync::Arc;

/// One kernel and the sizes that it was written for.
#[derive(Clone, Copy, Debug)]
pub struct MicroKernel {
    name: &'static str,
    architecture: Architecture,
    blocks: u32,
    threads: u32,
    shared: u32,
    cluster: u32,
    input_words: usize,
    output_words: usize,
    map: Option<Map>,
}

/// The tensor of a kernel that takes a tensor map, at a number of bytes from where its input or output begins.
#[derive(Clone, Copy, Debug)]
enum Map {
    In(TensorBoxes),
    Out(TensorBoxes),
}

impl MicroKernel {
    /// A number of words for each thread.
    const fn new(name: &'static str, [blocks, threads]: [u32; 2], [input, output]: [usize; 2]) -> Self {
        let all = blocks as usize * threads as usize;
        Self::of_words(name, [blocks, threads], [all * input, all * output])
    }

    const fn of_words(
        name: &'static str,
        [blocks, threads]: [u32; 2],
        [input_words, output_words]: [usize; 2],
    ) -> Self {
        let architecture = Architecture::Portable;
        Self { name, architecture, blocks, threads, shared: 0, cluster: 1, input_words, output_words, map: None }
    }

    /// Of the file for Hopper, with so much dynamic shared memory.
    const fn hopper(self, shared: u32) -> Self {
        Self { architecture: Architecture::Hopper, shared, ..self }
    }

    const fn in_pairs(self) -> Self {
        Self { cluster: 2, ..self }
    }

    const fn map(self, map: Map) -> Self {
        Self { map: Some(map), ..self }
    }

    /// As in its file.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What runs it.
    pub fn architecture(&self) -> Architecture {
        self.architecture
    }

    /// 32-bit words that it reads.
    pub fn input_words(&self) -> usize {
        self.input_words
    }

    /// 32-bit words that it writes.
    pub fn output_words(&self) -> usize {
        self.output_words
    }
}

/// What bytes are before a kernel writes a tensor among them, which it may leave as they are.
pub const BEFORE: u8 = 0xa5;

const WARP: u32 = 32;
/// Threads of a block, and blocks, of kernels that are about single values.
const VALUES: [u32; 2] = [4, 256];

/// Rows of 128 bytes that one copy moves to or from shared memory, and their bytes with an mbarrier behind them.
const PLANE_BYTES: u32 = 64 * 128;
const MBARRIER: u32 = 8;
/// Both operands of a `wgmma`, 64 elements deep.
const OPERANDS: u32 = 5 * PLANE_BYTES;

/// A tensor of two dimensions whose rows are further apart than they are long.
const fn rows(elements: Elements, [columns, rows]: [u64; 2], stride: u64) -> TensorBoxes {
    let (extents, strides, heights) = ([columns, rows, 1, 1], [stride, 0, 0], [64, 1, 1]);
    // No multiple of more than TMA asks for.
    TensorBoxes { address: 16, elements, rank: 2, extents, strides, heights }
}

/// Rows of two halves, of which each is longer than a box.
const HALVES: TensorBoxes = TensorBoxes {
    address: 16,
    elements: Elements::Half,
    rank: 3,
    extents: [77, 2, 70, 1],
    strides: [160, 480, 0],
    heights: [1, 64, 1],
};

/// Every kernel, a file after the other.
pub const KERNELS: &[MicroKernel] = &[
    MicroKernel::new("conformance_cp_async", [1, WARP], [4, 8]),
    MicroKernel::new("conformance_cp_async_if", [1, WARP], [4, 4]),
    MicroKernel::new("conformance_ldmatrix", [1, WARP], [4, 4]),
    MicroKernel::new("conformance_ldmatrix_trans", [1, WARP], [4, 4]),
    MicroKernel::new("conformance_mma_bf16", [16, WARP], [10, 4]),
    MicroKernel::new("conformance_mma_f16", [16, WARP], [10, 4]),
    MicroKernel::new("conformance_mma_tf32", [16, WARP], [10, 4]),
    MicroKernel::new("conformance_round_tf32", VALUES, [1, 1]),
    MicroKernel::new("conformance_ex2", VALUES, [1, 1]),
    MicroKernel::new("conformance_reduce", [8, WARP], [1, 3]),
    MicroKernel::new("conformance_match_any", [8, WARP], [1, 1]),
    MicroKernel::new("conformance_vote", [8, WARP], [1, 3]),
    MicroKernel::new("conformance_shuffle", [4, WARP], [2, 11]),
    // A start and a limit for each block; out, the counter and 16 counts.
    MicroKernel::of_words("conformance_atomic_inc", [8, 128], [8 * 2, 8 * 17]),
    MicroKernel::new("conformance_from_float", VALUES, [1, 1]),
    MicroKernel::new("conformance_to_float", VALUES, [1, 2]),
    MicroKernel::new("conformance_extremes", VALUES, [2, 2]),
    MicroKernel::new("conformance_exp_log", VALUES, [2, 4]),
    MicroKernel::new("conformance_wgmma_bf16", [1, 128], [80, 128]).hopper(OPERANDS),
    MicroKernel::new("conformance_wgmma_f16", [1, 128], [80, 128]).hopper(OPERANDS),
    MicroKernel::new("conformance_wgmma_b_across", [1, 128], [80, 128]).hopper(OPERANDS),
    MicroKernel::new("conformance_wgmma_both_across", [1, 128], [80, 128]).hopper(OPERANDS),
    MicroKernel::new("conformance_wgmma_of_copies", [1, 128], [80, 128]).hopper(OPERANDS + MBARRIER),
    MicroKernel::of_words("conformance_tma_load_2d", [1, 128], [4400, 4 * 2048])
        .hopper(4 * PLANE_BYTES + MBARRIER)
        .map(Map::In(rows(Elements::Half, [101, 77], 224))),
    MicroKernel::of_words("conformance_tma_load_2d_f32", [1, 128], [4400, 4 * 2048])
        .hopper(4 * PLANE_BYTES + MBARRIER)
        .map(Map::In(rows(Elements::Float, [45, 77], 208))),
    MicroKernel::of_words("conformance_tma_load_3d", [1, 128], [8420, 2 * 2048])
        .hopper(2 * PLANE_BYTES + MBARRIER)
        .map(Map::In(HALVES)),
    MicroKernel::of_words("conformance_tma_load_4d", [1, 128], [12_004, 2 * 2048])
        .hopper(2 * PLANE_BYTES + MBARRIER)
        .map(Map::In(TensorBoxes {
            address: 16,
            elements: Elements::Half,
            rank: 4,
            extents: [72, 75, 2, 2],
            strides: [160, 160 * 75, 2 * 160 * 75],
            heights: [64, 1, 1],
        })),
    MicroKernel::of_words("conformance_tma_multicast", [2, 128], [24_004, 2 * 3 * 4096])
        .hopper(6 * PLANE_BYTES + MBARRIER)
        .in_pairs()
        .map(Map::In(TensorBoxes {
            address: 16,
            elements: Elements::Half,
            rank: 4,
            extents: [72, 150, 2, 2],
            strides: [160, 160 * 150, 2 * 160 * 150],
            heights: [128, 1, 1],
        })),
    MicroKernel::of_words("conformance_tma_store_2d_f32", [1, 128], [2 * 2048, 3400])
        .hopper(2 * PLANE_BYTES)
        .map(Map::Out(rows(Elements::Float, [45, 70], 192))),
    MicroKernel::of_words("conformance_tma_store_3d", [1, 128], [2 * 2048, 8420])
        .hopper(2 * PLANE_BYTES)
        .map(Map::Out(HALVES)),
    MicroKernel::of_words("conformance_tma_add_3d", [1, 128], [2048, 6724]).hopper(PLANE_BYTES).map(Map::Out(
        TensorBoxes {
            address: 16,
            elements: Elements::Float,
            rank: 3,
            extents: [45, 70, 2, 1],
            strides: [192, 192 * 70, 0],
            heights: [64, 1, 1],
        },
    )),
    MicroKernel::of_words("conformance_bulk_wait_read", [1, 128], [6 * 2048, 6 * 2048 + 4])
        .hopper(2 * PLANE_BYTES)
        .map(Map::Out(rows(Elements::Half, [64, 6 * 64], 128))),
    MicroKernel::new("conformance_stmatrix", [1, WARP], [4, 4]).hopper(0),
    MicroKernel::new("conformance_stmatrix_trans", [1, WARP], [4, 4]).hopper(0),
    MicroKernel::new("conformance_barrier_arrive", [1, 64], [1, 1]).hopper(0),
    MicroKernel::new("conformance_elect", [2, 128], [1, 1]).hopper(0),
    MicroKernel::new("conformance_cluster_barrier", [4, WARP], [1, 2]).hopper(0).in_pairs(),
    MicroKernel::new("conformance_remote_arrive", [4, WARP], [1, 1]).hopper(0).in_pairs(),
    // 180 words of each thread of two warpgroups, the third's among them.
    MicroKernel::of_words("conformance_registers", [1, 384], [180 * 256 + 128, 384]).hopper(0),
    MicroKernel::new("conformance_pack", VALUES, [2, 2]).hopper(0),
    MicroKernel::new("conformance_rcp", VALUES, [1, 1]).hopper(0),
];

/// What a kernel makes of these words.
///
/// # Errors
/// [`Error::Kernel`] for another number of words than it reads, and where it leaves output unwritten; the device's.
pub fn run<D: Device>(device: &Arc<D>, kernel: &MicroKernel, input: &[u32]) -> Result<Vec<u32>> {
    let failed = |problem| Error::Kernel { kernel: kernel.name.into(), problem };
    if input.len() != kernel.input_words {
        return Err(failed(format!("reads {} words and was given {}", kernel.input_words, input.len())));
    }
    let words = input.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>();
    let mut bytes = vec![0; kernel.output_words * size_of::<u32>()];
    let mut binder = Binder::host(device, device.target(), kernel.name);
    let (from, to) = (binder.scratch("in", words.len())?, binder.scratch("out", bytes.len())?);
    let map = match kernel.map {
        None => None,
        Some(Map::In(boxes)) => Some(TensorBoxes { address: from + boxes.address, ..boxes }),
        Some(Map::Out(boxes)) => Some(TensorBoxes { address: to + boxes.address, ..boxes }),
    };
    let mut map = map.map(|boxes| device.tensor_map(&boxes)).transpose()?;
    let address = |value: &u64| std::ptr::from_ref(value).cast_mut().cast::<c_void>();
    let mut parameters = vec![address(&from), address(&to)];
    parameters.extend(map.as_mut().map(|map| std::ptr::from_mut(map).cast()));
    // SAFETY: two addresses and the map, as every kernel takes them, of allocations as large as this kernel's entry in
    // `KERNELS` says; nobody outside this file can make an entry, and the emulator holds each against its kernel.
    let unwritten = unsafe {
        device.upload(device.own_stream(), from, &words)?;
        device.read_only(from)?;
        if let Some(Map::Out(_)) = kernel.map {
            device.fill(device.own_stream(), to, BEFORE, bytes.len())?;
        }
        let launch = Launch {
            shared: kernel.shared,
            cluster: kernel.cluster,
            ..Launch::linear(kernel.name, kernel.blocks, kernel.threads)
        };
        device.launch(device.own_stream(), &launch, &parameters)?;
        device.unwritten(to)?
    };
    if unwritten > 0 {
        return Err(failed(format!("{unwritten} bytes of its output were not written")));
    }
    // SAFETY: as above.
    unsafe { device.download(device.own_stream(), to, &mut bytes) }?;
    let (words, _) = bytes.as_chunks();
    Ok(words.iter().copied().map(u32::from_ne_bytes).collect())
}
