//! Launches: what the hardware has room for, and what it has not.

use std::ffi::c_uint;
use std::ptr::null_mut;

use crate::image::{Kernel, kernel, sum};
use crate::library::{Cuda, Handle, LEGACY, PER_THREAD, alone};

const MOST_DYNAMIC_SHARED: i32 = 8;

/// Starts `sum` on nothing.
fn launch(cuda: &Cuda, function: Handle, [x, y, z]: [c_uint; 3], threads: [c_uint; 3], shared: c_uint) -> i32 {
    let mut parameter = [0_u64; 4];
    let mut parameters = [parameter.as_mut_ptr().cast()];
    let [tx, ty, tz] = threads;
    cuda.launch(function, x, y, z, tx, ty, tz, shared, LEGACY, parameters.as_mut_ptr(), null_mut())
}

#[test]
fn kernels_run_on_every_kind_of_stream() {
    let (cuda, _) = Cuda::open();
    let function = cuda.loaded(sum());
    let [a, b] = [cuda.memory(&[1, 2, 3]), cuda.memory(&[10, 20, 30])];
    for stream in [LEGACY, PER_THREAD, cuda.stream(0), cuda.stream(1)] {
        let out = cuda.memory(&[0; 3]);
        assert_eq!(cuda.sum(function, stream, [a, b, out], 3), 0);
        assert_eq!(cuda.wait(stream), 0);
        assert_eq!(cuda.values(out), [11, 22, 33]);
    }
    let closed = cuda.stream(1);
    assert_eq!(cuda.close_stream(closed), 0);
    assert_eq!(cuda.sum(function, closed, [a, b, a], 3), 400);
    assert_eq!(cuda.sum(closed, LEGACY, [a, b, a], 3), 400, "no function");
}

#[test]
fn grids_and_blocks_have_limits() {
    let (cuda, _) = Cuda::open();
    let function = cuda.loaded(sum());
    for (grid, threads, result) in [
        ([1, 1, 1], [1024, 1, 1], 0),
        ([2, 2, 2], [4, 4, 64], 0),
        ([0, 1, 1], [32, 1, 1], 1),
        ([1, 65536, 1], [32, 1, 1], 1),
        ([1, 1, 65536], [32, 1, 1], 1),
        ([1 << 31, 1, 1], [32, 1, 1], 1),
        ([1, 1, 1], [0, 1, 1], 1),
        ([1, 1, 1], [1024, 2, 1], 1),
        ([1, 1, 1], [1, 1, 65], 1),
    ] {
        assert_eq!(launch(&cuda, function, grid, threads, 0), result, "{grid:?} of {threads:?}");
    }
    assert_eq!(cuda.launch(function, 1, 1, 1, 32, 1, 1, 0, LEGACY, null_mut(), null_mut()), 1, "no parameters");
    assert_eq!(cuda.wait_for_all(), 0, "what was refused has harmed nothing");
}

#[test]
fn a_block_has_registers_and_launch_bounds() {
    let (cuda, _) = Cuda::open();
    let bounded = cuda.loaded(Kernel { most_threads: Some(128), ..sum() });
    assert_eq!(launch(&cuda, bounded, [1; 3], [128, 1, 1], 0), 0);
    assert_eq!(launch(&cuda, bounded, [1; 3], [129, 1, 1], 0), 1);
    // 97 registers are given as 104: 65536 of them are enough for 19 warps, which come by four.
    let heavy = cuda.loaded(Kernel { registers: 97, ..sum() });
    assert_eq!(launch(&cuda, heavy, [1; 3], [512, 1, 1], 0), 0);
    assert_eq!(launch(&cuda, heavy, [1; 3], [513, 1, 1], 0), 701);
}

#[test]
fn shared_memory_must_be_asked_for() {
    for (architecture, most) in [("80", 163 << 10), ("90", 227 << 10)] {
        if alone("launches::shared_memory_must_be_asked_for", &[("EMULATED_CUDA_ARCHITECTURE", architecture)]) {
            let (cuda, _) = Cuda::open();
            let kernel = Kernel { shared: 1000, ..sum() };
            let number = architecture.parse().expect("a number");
            let module = cuda.module(&crate::image::fatbin(&[kernel], number)).unwrap();
            let function = cuda.kernel(module, c"sum");
            let with = |shared| launch(&cuda, function, [1; 3], [32, 1, 1], shared);
            assert_eq!((with((48 << 10) - 1000), with((48 << 10) - 999)), (0, 1));
            assert_eq!(cuda.set_fact(function, MOST_DYNAMIC_SHARED, most - 999), 1);
            assert_eq!(cuda.set_fact(function, MOST_DYNAMIC_SHARED, -1), 1);
            assert_eq!(cuda.set_fact(function, MOST_DYNAMIC_SHARED, most - 1000), 0);
            assert_eq!((with(most as c_uint - 1000), with(most as c_uint - 999)), (0, 1));
        }
    }
}

/// Ranks that blocks say they have: `blocks` of them, started in the kernel's own clusters.
fn ranks(cuda: &Cuda, cluster: Option<[u32; 3]>, blocks: c_uint) -> Result<[i32; 8], i32> {
    let function = cuda.loaded(Kernel { cluster, ..kernel("cluster_ranks", &[8]) });
    let mut ranks = cuda.memory(&[-1; 8]);
    let mut parameters = [(&raw mut ranks).cast()];
    match cuda.launch(function, blocks, 1, 1, 32, 1, 1, 0, LEGACY, parameters.as_mut_ptr(), null_mut()) {
        0 => Ok((cuda.wait(LEGACY) == 0).then(|| cuda.values(ranks)).expect("no fault")),
        refused => Err(refused),
    }
}

#[test]
fn blocks_are_in_the_clusters_that_the_machine_code_says() {
    let (cuda, _) = Cuda::open();
    assert_eq!(ranks(&cuda, None, 8), Ok([0; 8]));
    assert_eq!(ranks(&cuda, Some([1, 1, 1]), 8), Ok([0; 8]));
    assert_eq!(ranks(&cuda, Some([2, 1, 1]), 8), Ok([0, 1, 0, 1, 0, 1, 0, 1]));
    assert_eq!(ranks(&cuda, Some([4, 1, 1]), 8), Ok([0, 1, 2, 3, 0, 1, 2, 3]));
    for (cluster, blocks, result) in [
        ([2, 1, 1], 7, 912),
        ([1, 2, 1], 8, 912),
        ([1, 1, 2], 8, 912),
        ([16, 1, 1], 16, 912),
        ([0; 3], 8, 912),
        // Another than a power of two is in order on a GPU.
        ([3, 1, 1], 6, 801),
    ] {
        assert_eq!(ranks(&cuda, Some(cluster), blocks), Err(result), "{cluster:?}");
    }
    let recorded = cuda.loaded(Kernel { cluster: Some([2, 1, 1]), ..kernel("cluster_ranks", &[8]) });
    let (stream, mut ranks) = (cuda.stream(1), cuda.memory(&[-1; 4]));
    let (mut graph, mut executable) = (null_mut(), null_mut());
    assert_eq!(cuda.begin(stream, 1), 0);
    let mut parameters = [(&raw mut ranks).cast()];
    assert_eq!(cuda.launch(recorded, 4, 1, 1, 32, 1, 1, 0, stream, parameters.as_mut_ptr(), null_mut()), 0);
    assert_eq!((cuda.end(stream, &mut graph), cuda.instantiate(&mut executable, graph, 0)), (0, 0));
    assert_eq!((cuda.replay(executable, stream), cuda.wait(stream)), (0, 0));
    assert_eq!(cuda.values(ranks), [0, 1, 0, 1]);
}

#[test]
fn as_many_blocks_run_at_once_as_there_is_room_for() {
    let (cuda, _) = Cuda::open();
    let blocks = |kernel: Kernel, threads, shared| {
        let mut blocks = -1;
        assert_eq!(cuda.blocks_at_once(&mut blocks, cuda.loaded(kernel), threads, shared), 0);
        blocks
    };
    assert_eq!(blocks(sum(), 32, 0), 32, "as many as there are places");
    assert_eq!(blocks(sum(), 256, 0), 8, "64 warps");
    assert_eq!(blocks(Kernel { registers: 128, ..sum() }, 128, 0), 4, "16 warps have registers");
    assert_eq!(blocks(sum(), 128, 75 << 10), 3, "each with a KiB of the driver's");
    assert_eq!(blocks(sum(), 128, 76 << 10), 2);
    assert_eq!(blocks(sum(), 128, 228 << 10), 0);
}
