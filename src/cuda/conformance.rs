//! Runs the kernels of `kernels/conformance/conformance.cu`, each of which is one instruction or function of the hardware, on any
//! device: for the tests that hold the emulator against a GPU.

#![allow(unsafe_code, reason = "a launch on device memory; the block names what it relies on")]

use crate::cuda::device::{Device, Launch};
use crate::cuda::stage::binder::Binder;
use crate::{Error, Result};
use std::ffi::c_void;
use std::sync::Arc;

/// One kernel and the sizes that it was written for.
#[derive(Clone, Copy, Debug)]
pub struct MicroKernel {
    name: &'static str,
    blocks: u32,
    threads: u32,
    input_words: usize,
    output_words: usize,
}

impl MicroKernel {
    /// A number of words for each thread.
    const fn new(name: &'static str, [blocks, threads]: [u32; 2], [input, output]: [usize; 2]) -> Self {
        let all = blocks as usize * threads as usize;
        Self { name, blocks, threads, input_words: all * input, output_words: all * output }
    }

    /// As in `kernels/conformance/conformance.cu`.
    pub fn name(&self) -> &'static str {
        self.name
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

const WARP: u32 = 32;
/// Threads of a block, and blocks, of kernels that are about single values.
const VALUES: [u32; 2] = [4, 256];

/// Every kernel of the file.
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
    MicroKernel {
        input_words: 8 * 2,
        output_words: 8 * 17,
        ..MicroKernel::new("conformance_atomic_inc", [8, 128], [0, 0])
    },
    MicroKernel::new("conformance_from_float", VALUES, [1, 1]),
    MicroKernel::new("conformance_to_float", VALUES, [1, 2]),
    MicroKernel::new("conformance_extremes", VALUES, [2, 2]),
    MicroKernel::new("conformance_exp_log", VALUES, [2, 4]),
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
    let address = |value: &u64| std::ptr::from_ref(value).cast_mut().cast::<c_void>();
    // SAFETY: two addresses, as every kernel of the file takes them, of allocations as large as this kernel's entry in
    // `KERNELS` says; nobody outside this file can make an entry, and the emulator holds each against its kernel.
    let unwritten = unsafe {
        device.upload(device.own_stream(), from, &words)?;
        device.read_only(from)?;
        let launch = Launch::linear(kernel.name, kernel.blocks, kernel.threads);
        device.launch(device.own_stream(), &launch, &[address(&from), address(&to)])?;
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
