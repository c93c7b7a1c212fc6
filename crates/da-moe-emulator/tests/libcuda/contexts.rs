//! What needs a driver that is started, and what needs a context.

use std::ptr::null_mut;
use std::thread;

use crate::library::{Cuda, alone};

#[test]
fn nothing_is_answered_before_the_driver_is_started() {
    let cuda = Cuda::load_library();
    let (mut count, mut context) = (0, null_mut());
    assert_eq!(cuda.count(&mut count), 3);
    assert_eq!(cuda.retain(&mut context, 0), 3);
    assert_eq!(cuda.init(1), 1, "there are no flags");
    assert_eq!(cuda.init(0), 0);
    assert_eq!((cuda.count(&mut count), count), (0, 1));
    assert_eq!(cuda.retain(&mut context, 1), 101);
}

#[test]
fn every_thread_has_its_own_current_context() {
    let (cuda, context) = Cuda::open();
    let mut address = 0;
    assert_eq!(cuda.alloc(&mut address, 8), 0);
    let context = context as usize;
    thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(cuda.free(address), 201);
            assert_eq!(cuda.set_current(std::ptr::with_exposed_provenance_mut(context)), 0);
            assert_eq!(cuda.free(address), 0);
        });
    });
    assert_eq!(cuda.set_current(null_mut()), 0);
    assert_eq!(cuda.wait_for_all(), 201);
    assert_eq!(cuda.set_current(std::ptr::without_provenance_mut(64)), 201, "that is no context");
}

#[test]
fn the_context_goes_with_its_last_holder() {
    let (cuda, mut context) = Cuda::open();
    let stream = cuda.stream(1);
    assert_eq!(cuda.retain(&mut context, 0), 0);
    assert_eq!(cuda.release(0), 0);
    assert_eq!(cuda.wait(stream), 0, "somebody still holds it");
    assert_eq!(cuda.release(0), 0);
    assert_eq!(cuda.wait(stream), 709);
    assert_eq!(cuda.release(0), 201);
    assert_eq!(cuda.retain(&mut context, 0), 0);
    assert_eq!(cuda.wait(stream), 400, "its streams are gone");
}

#[test]
fn a_machine_may_have_no_gpu() {
    if alone("contexts::a_machine_may_have_no_gpu", &[("EMULATED_CUDA_DEVICES", "0")]) {
        let cuda = Cuda::load_library();
        let mut count = 0;
        assert_eq!(cuda.init(0), 100);
        assert_eq!(cuda.count(&mut count), 3);
    }
}

#[test]
fn the_gpu_is_the_one_that_was_asked_for() {
    for (setting, multiprocessors, shared) in [("80", 108, 163 << 10), ("90", 132, 227 << 10)] {
        if alone("contexts::the_gpu_is_the_one_that_was_asked_for", &[("EMULATED_CUDA_ARCHITECTURE", setting)]) {
            let (cuda, _) = Cuda::open();
            let attribute = |number| {
                let mut value = 0;
                assert_eq!(cuda.attribute(&mut value, number, 0), 0);
                value
            };
            assert_eq!((attribute(75) * 10 + attribute(76)).to_string(), setting);
            assert_eq!((attribute(16), attribute(97)), (multiprocessors, shared));
        }
    }
}
