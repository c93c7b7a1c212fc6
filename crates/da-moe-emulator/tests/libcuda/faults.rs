//! Kernels that do wrong: when it is told, and to whom.

use std::ffi::c_void;

use crate::image::{Kernel, kernel, sum};
use crate::library::{Cuda, LEGACY, alone};

/// Starts a kernel that takes, if anything, memory of four numbers, and how many they are.
fn start(cuda: &Cuda, kernel: Kernel) -> i32 {
    let function = cuda.loaded(kernel);
    let (mut address, mut count) = (cuda.memory(&[0; 4]), 4_i32);
    let mut list: [*mut c_void; 2] = [(&raw mut address).cast(), (&raw mut count).cast()];
    cuda.start(function, 1, LEGACY, &mut list)
}

#[test]
fn a_fault_is_told_by_the_next_wait_and_by_everything_after() {
    for (kernel, code) in
        [(kernel("past_the_end", &[8, 4]), 700), (kernel("between_words", &[8]), 716), (kernel("gives_up", &[]), 719)]
    {
        let (cuda, mut context) = Cuda::open();
        let right = cuda.loaded(sum());
        let [a, b, out] = [[1], [2], [0]].map(|values| cuda.memory(&values));
        assert_eq!(start(&cuda, kernel), 0, "{code}: the launch itself is in order");
        assert_eq!(cuda.sum(right, LEGACY, [a, b, out], 1), 0, "{code}: nobody knows yet");
        assert_eq!(cuda.wait(LEGACY), code);
        assert_eq!(cuda.sum(right, LEGACY, [a, b, out], 1), code);
        assert_eq!(cuda.alloc(&mut 0, 4), code);
        assert_eq!(cuda.free(a), code);
        assert_eq!(cuda.retain(&mut context, 0), code);
    }
}

#[test]
fn launches_may_be_waited_for_one_by_one() {
    if alone("faults::launches_may_be_waited_for_one_by_one", &[("CUDA_LAUNCH_BLOCKING", "1")]) {
        let (cuda, _) = Cuda::open();
        assert_eq!(start(&cuda, kernel("past_the_end", &[8, 4])), 700);
    }
}

#[test]
fn a_launch_fails_when_it_is_told_to() {
    for settings in [
        [("EMULATED_CUDA_FAIL_LAUNCH", "2"), ("EMULATED_CUDA_FAULT", "719")],
        [("EMULATED_CUDA_FAIL_KERNEL", "between_words"), ("EMULATED_CUDA_FAULT", "719")],
    ] {
        if alone("faults::a_launch_fails_when_it_is_told_to", &settings) {
            let (cuda, _) = Cuda::open();
            let [a, b, out] = [[1], [2], [0]].map(|values| cuda.memory(&values));
            assert_eq!(cuda.sum(cuda.loaded(sum()), LEGACY, [a, b, out], 1), 0);
            assert_eq!((cuda.wait(LEGACY), cuda.values(out)), (0, [3]));
            assert_eq!(start(&cuda, kernel("between_words", &[8])), 0);
            assert_eq!(cuda.is_done(LEGACY), 719);
        }
    }
}

#[test]
fn a_device_that_hangs_is_never_done() {
    if alone("faults::a_device_that_hangs_is_never_done", &[("EMULATED_CUDA_HANG_LAUNCH", "1")]) {
        let (cuda, _) = Cuda::open();
        let [a, b, out] = [[1], [2], [0]].map(|values| cuda.memory(&values));
        let event = cuda.new_event();
        assert_eq!((cuda.is_done(LEGACY), cuda.is_past(event)), (0, 0));
        assert_eq!(cuda.sum(cuda.loaded(sum()), LEGACY, [a, b, out], 1), 0);
        assert_eq!(cuda.mark(event, LEGACY), 0);
        assert_eq!((cuda.is_done(LEGACY), cuda.is_past(event)), (600, 600));
    }
}

#[test]
fn a_function_is_refused_when_it_is_told_to() {
    let settings = [("EMULATED_CUDA_REFUSE", "cuMemAlloc"), ("EMULATED_CUDA_REFUSAL", "2")];
    if alone("faults::a_function_is_refused_when_it_is_told_to", &settings) {
        let (cuda, _) = Cuda::open();
        assert_eq!(cuda.alloc(&mut 0, 4), 2);
        assert_eq!(cuda.wait(LEGACY), 0);
    }
}
