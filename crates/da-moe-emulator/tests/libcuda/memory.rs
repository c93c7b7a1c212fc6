//! Memory: what may be taken, given back, and touched.

use crate::library::{Cuda, LEGACY, alone};

#[test]
fn memory_is_given_back_once_and_whole() {
    let (cuda, _) = Cuda::open();
    let mut address = 0;
    assert_eq!(cuda.alloc(&mut address, 0), 1);
    assert_eq!(cuda.alloc(&mut address, usize::MAX), 2);
    assert_eq!(cuda.alloc(&mut address, 64), 0);
    assert!(address.is_multiple_of(256));
    assert_eq!(cuda.free(address + 4), 1);
    assert_eq!(cuda.free(address), 0);
    assert_eq!(cuda.free(address), 1);
    assert_eq!(cuda.free(0), 0, "which gives back nothing");
}

#[test]
fn what_is_outside_of_memory_is_refused() {
    let (cuda, _) = Cuda::open();
    let address = cuda.memory(&[1, 2, 3, 4]);
    assert_eq!(cuda.fill(address + 4, 0xff, 8, LEGACY), 0);
    assert_eq!(cuda.values(address), [1, -1, -1, 4]);
    assert_eq!(cuda.fill(address + 4, 0, 13, LEGACY), 1);
    assert_eq!(cuda.copy(address, address + 8, 8, LEGACY), 0);
    assert_eq!(cuda.values(address), [-1, 4, -1, 4]);
    assert_eq!(cuda.copy(address, address + 8, 9, LEGACY), 1);
    assert_eq!(cuda.free(address), 0);
    assert_eq!(cuda.fill(address, 0, 1, LEGACY), 1, "used after it was given back");
    assert_eq!(cuda.fill(64, 0, 1, LEGACY), 1);
}

#[test]
fn there_is_as_much_memory_as_was_said() {
    if alone("memory::there_is_as_much_memory_as_was_said", &[("EMULATED_CUDA_MEMORY", "1000")]) {
        let (cuda, _) = Cuda::open();
        let [mut a, mut b] = [0, 0];
        assert_eq!(cuda.alloc(&mut a, 600), 0);
        assert_eq!(cuda.alloc(&mut b, 600), 2);
        assert_eq!(cuda.alloc(&mut b, 400), 0);
        assert_eq!(cuda.free(a), 0);
        assert_eq!(cuda.alloc(&mut a, 600), 0);
    }
}
