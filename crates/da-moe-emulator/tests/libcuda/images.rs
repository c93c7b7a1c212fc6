//! Images: which code of them is taken, and what it says of its kernels.

use crate::image::{Code, Image, Kernel, bundle, cubin, fatbin, kernel, sum};
use crate::library::{Cuda, Handle, alone};

fn fact(cuda: &Cuda, attribute: i32, function: Handle) -> i32 {
    let mut value = -1;
    assert_eq!(cuda.fact(&mut value, attribute, function), 0);
    value
}

/// Registers, static shared and local bytes, threads; versions of the machine code and of the PTX it was made from.
fn facts(cuda: &Cuda, function: Handle) -> [i32; 6] {
    [4, 1, 3, 0, 6, 5].map(|attribute| fact(cuda, attribute, function))
}

#[test]
fn machine_code_tells_what_its_kernels_need() {
    let (cuda, _) = Cuda::open();
    let heavy = Kernel { registers: 200, shared: 5000, local: 48, ..sum() };
    let bounded = Kernel { most_threads: Some(256), ..kernel("past_the_end", &[8, 4]) };
    let module = cuda.module(&fatbin(&[heavy, bounded], 90)).unwrap();
    let mut count = 0;
    assert_eq!((cuda.functions(&mut count, module), count), (0, 2));
    // 200 registers, of which a block has 65536, are enough for eight warps.
    assert_eq!(facts(&cuda, cuda.kernel(module, c"sum")), [200, 5000, 48, 256, 90, 90]);
    let bounded = cuda.kernel(module, c"past_the_end");
    assert_eq!(facts(&cuda, bounded), [20, 0, 0, 256, 90, 90]);
    // Whether it must be started in clusters, and their blocks along x, y and z.
    let cluster = |function| [10, 11, 12, 13].map(|attribute| fact(&cuda, attribute, function));
    assert_eq!(cluster(bounded), [0; 4]);
    let pairs = cuda.loaded(Kernel { cluster: Some([2, 1, 1]), ..kernel("cluster_ranks", &[8]) });
    assert_eq!(cluster(pairs), [1, 2, 1, 1]);
    let (mut offset, mut bytes) = (0, 0);
    assert_eq!(cuda.parameter(bounded, 1, &mut offset, &mut bytes), 0);
    assert_eq!((offset, bytes), (8, 4));
    assert_eq!(cuda.parameter(bounded, 2, &mut offset, &mut bytes), 1);
    let mut none = std::ptr::null_mut();
    assert_eq!(cuda.function(&mut none, module, c"another".as_ptr()), 500);
    assert_eq!(cuda.unload(module), 0);
    assert_eq!(cuda.load_function(bounded), 400, "it went with its module");
    assert_eq!(cuda.unload(module), 400);
}

/// Code as the project's own images have it, told apart by the registers.
fn of_each() -> Image {
    let machine = |registers, architecture| cubin(&[Kernel { registers, ..sum() }], architecture);
    bundle(&[(Code::Machine(machine(80, 80)), 80), (Code::Ptx, 80), (Code::MachineOfOne(machine(90, 90)), 90)])
}

#[test]
fn every_gpu_takes_the_code_that_it_runs() {
    for (architecture, expected) in [("80", [80, 80, 80]), ("90", [90, 90, 90]), ("100", [80, 100, 80])] {
        if alone("images::every_gpu_takes_the_code_that_it_runs", &[("EMULATED_CUDA_ARCHITECTURE", architecture)]) {
            let (cuda, _) = Cuda::open();
            let function = cuda.kernel(cuda.module(&of_each()).unwrap(), c"sum");
            assert_eq!([4, 6, 5].map(|attribute| fact(&cuda, attribute, function)), expected);
        }
    }
}

#[test]
fn code_for_hopper_alone_is_for_nothing_newer_or_older() {
    for architecture in ["80", "90", "100"] {
        let settings = [("EMULATED_CUDA_ARCHITECTURE", architecture)];
        if alone("images::code_for_hopper_alone_is_for_nothing_newer_or_older", &settings) {
            let (cuda, _) = Cuda::open();
            let image = bundle(&[(Code::MachineOfOne(cubin(&[sum()], 90)), 90)]);
            let refused = cuda.module(&image).map(drop).err();
            let expected = (architecture != "90").then(|| (209, format!("it has no code for sm_{architecture}")));
            assert_eq!(refused, expected);
        }
    }
}

#[test]
fn what_no_gpu_could_run_is_refused() {
    let (cuda, _) = Cuda::open();
    let refused = |image: &Image| cuda.module(image).expect_err("an image that cannot be loaded");
    assert_eq!(refused(&fatbin(&[sum()], 80)), (209, "it has no code for sm_90".into()));
    assert_eq!(refused(&Image::new(b"neither the one nor the other")).0, 200);
    let (result, text) = refused(&bundle(&[(Code::Machine(vec![0x28, 0xb5, 0x2f, 0xfd]), 90)]));
    assert!(result == 200 && text.contains("compressed"), "{text}");
    let (result, text) = refused(&fatbin(&[kernel("sum", &[24])], 90));
    assert!(result == 200 && text.contains("the parameters of `sum` are others"), "{text}");
    let (result, text) = refused(&fatbin(&[kernel("another", &[])], 90));
    assert!(result == 200 && text.contains("no kernel `another`"), "{text}");
    let image = fatbin(&[sum()], 90);
    let mut module = std::ptr::null_mut();
    let between = image.start().wrapping_add(4);
    assert_eq!(cuda.load(&mut module, between, 0, std::ptr::null(), std::ptr::null_mut()), 200, "between words");
}
