//! Bank conflicts of shared memory, and sectors of global memory.

use da_moe_emulator::{Device, SharedPlace, Traffic};

use crate::common::{compile, compiler, input, lines_with, output, parameter, passes};

const FILE: &str = "traffic.cu";
const LANES: i32 = 32;

/// What is told of the line of the file that has this text. Counting starts at nothing.
fn at_line(device: &Device, text: &str) -> SharedPlace {
    let place = format!("tests/kernels/{FILE}:{}", lines_with(FILE, text)[0]);
    let mut places = (0..).map_while(|rank| device.shared_place(rank));
    places.find(|found| found.place.contains(&place)).unwrap_or_else(|| panic!("no access at {place}"))
}

fn counted(place: &SharedPlace) -> [u64; 3] {
    [place.accesses, place.wavefronts, place.ideal_wavefronts]
}

/// Wavefronts of one access by a warp, under every schedule, are as many as these, and without conflicts as few as those.
fn reads(bytes: i32, offset: impl Fn(i32) -> i32, wavefronts: u64, ideal: u64) {
    let offsets: Vec<_> = (0..LANES).map(offset).collect();
    passes(&compile(&compiler(FILE)), |device| {
        device.count_traffic(true);
        let (at, out) = (input(device, "offsets", &offsets), output::<u32>(device, "out", 32));
        let parameters = [parameter(&at), parameter(&bytes), parameter(&out)];
        // SAFETY: an address, an int and an address, as the kernel takes them.
        unsafe { device.launch("shared_reads", [1, 1, 1], [32, 1, 1], 4096, &parameters)? };
        let found = at_line(device, "const T value =");
        assert_eq!(counted(&found), [1, wavefronts, ideal], "{bytes} bytes at {offsets:?}");
        let filled = at_line(device, "[i] = i;");
        assert_eq!(counted(&filled), [32, 32, 32]);
        let traffic = device.traffic();
        assert_eq!(traffic.wavefronts, wavefronts + 32);
        assert_eq!(traffic.ideal_wavefronts, ideal + 32);
        Ok(())
    });
}

#[test]
fn words() {
    // In order, backwards, and past the last bank.
    reads(4, |lane| lane * 4, 1, 1);
    reads(4, |lane| (31 - lane) * 4, 1, 1);
    reads(4, |lane| lane * 4 + 20, 1, 1);
    // An odd stride meets every bank; an even one each of its banks as often as its power of two says.
    reads(4, |lane| lane * 4 * 7, 1, 1);
    for stride in [2, 4, 8, 16, 32] {
        reads(4, |lane| lane * 4 * stride % 4096, stride as u64, 1);
    }
    // One word goes to any number of lanes; two of a bank do not.
    reads(4, |_| 400, 1, 1);
    reads(4, |lane| lane % 2 * 4, 1, 1);
    reads(4, |lane| lane % 2 * 128, 2, 1);
    // Halves of a word are one word.
    reads(2, |lane| lane * 2, 1, 1);
    reads(2, |lane| lane / 2 * 128 + lane % 2 * 2, 16, 1);
    // Some lanes only.
    reads(4, |lane| if lane % 4 == 0 { lane * 4 * 4 } else { -1 }, 4, 1);
}

#[test]
fn wide_words_go_by_parts_of_a_warp() {
    reads(8, |lane| lane * 8, 2, 2);
    reads(8, |lane| lane * 16, 4, 2);
    reads(8, |lane| lane / 16 * 8, 2, 2);
    // The same bank in different halves is no conflict.
    reads(8, |lane| lane % 16 * 8 + lane / 16 * 128, 2, 2);
    reads(8, |lane| if lane < 16 { lane * 8 } else { -1 }, 1, 1);
    reads(16, |lane| lane * 16, 4, 4);
    reads(16, |lane| lane * 32, 8, 4);
    reads(16, |lane| lane * 128, 32, 4);
    reads(16, |lane| lane * 128 + lane % 8 * 16, 4, 4);
    reads(16, |lane| if lane % 8 == 0 { lane * 128 } else { -1 }, 4, 4);
}

/// Wavefronts of the 16-byte write and of the ldmatrix of the warp's rows.
fn rows(in_background: bool, offset: impl Fn(i32) -> i32, wavefronts: u64) {
    let offsets: Vec<_> = (0..LANES).map(offset).collect();
    passes(&compile(&compiler(FILE)), |device| {
        device.count_traffic(true);
        let rows = input(device, "in", &(0..128).collect::<Vec<u32>>());
        let (at, out) = (input(device, "offsets", &offsets), output::<u32>(device, "out", 32));
        let background = i32::from(in_background);
        let parameters = [parameter(&rows), parameter(&at), parameter(&background), parameter(&out)];
        // SAFETY: two addresses, an int and an address, as the kernel takes them.
        unsafe { device.launch("matrices", [1, 1, 1], [32, 1, 1], 4096, &parameters)? };
        let write = if in_background { "gpu::cp_async16(" } else { "= in[lane];" };
        for line in [write, "gpu::ldmatrix_x4("] {
            assert_eq!(counted(&at_line(device, line)), [1, wavefronts, 4], "{line} at {offsets:?}");
        }
        // Offsets and sums are 128 bytes each, the rows 512.
        let background_bytes = if in_background { 512 } else { 0 };
        let expected = Traffic {
            global_read_bytes: 128 + 512 - background_bytes,
            global_written_bytes: 128,
            background_bytes,
            global_sectors: (256 + 512 - background_bytes) / 32,
            wavefronts: 2 * wavefronts,
            ideal_wavefronts: 8,
        };
        assert_eq!(device.traffic(), expected);
        assert_eq!(expected.l2_bytes(), 768);
        Ok(())
    });
}

#[test]
fn rows_of_matrices() {
    for in_background in [false, true] {
        rows(in_background, |lane| lane * 16, 4);
        // Rows of 128 bytes begin in the same bank, unless they are swizzled; every second of 64 bytes does.
        rows(in_background, |lane| lane * 128, 32);
        rows(in_background, |lane| lane * 128 + lane % 8 * 16, 4);
        rows(in_background, |lane| lane * 64, 16);
        rows(in_background, |lane| lane * 64 + lane / 2 % 4 * 16, 4);
        // The usual padding.
        rows(in_background, |lane| lane * 80, 4);
    }
}

#[test]
fn the_worst_place_comes_first() {
    let device = &Device::new(compile(&compiler(FILE)), da_moe_emulator::Schedule::from_seed(0));
    let launch = || {
        let (stride, out) = (32, output::<i32>(device, "out", 32));
        // SAFETY: an int and an address, as the kernel takes them.
        unsafe { device.launch("uneven_loops", [1, 1, 1], [32, 1, 1], 4096, &[parameter(&stride), parameter(&out)]) }
            .unwrap_or_else(|error| panic!("{error}"));
    };
    launch();
    assert_eq!((device.traffic(), device.shared_place(0)), (Traffic::default(), None));
    device.count_traffic(true);
    launch();
    let worst = device.shared_place(0).expect("a place");
    assert_eq!(worst, at_line(device, "// one lane less each time"));
    assert!(worst.wavefronts > worst.ideal_wavefronts);
    assert_eq!(device.shared_place(2), None);
}

#[test]
fn lanes_that_have_left_a_loop_take_no_part() {
    for (stride, wavefronts) in [(1, 32), (32, (1..=32).sum())] {
        passes(&compile(&compiler(FILE)), |device| {
            device.count_traffic(true);
            let out = output::<i32>(device, "out", 32);
            // SAFETY: an int and an address, as the kernel takes them.
            unsafe {
                device.launch("uneven_loops", [1, 1, 1], [32, 1, 1], 4096, &[parameter(&stride), parameter(&out)])?;
            }
            let found = at_line(device, "// one lane less each time");
            assert_eq!(counted(&found), [64, 2 * wavefronts, 64]);
            Ok(())
        });
    }
}

#[test]
fn sectors_of_global_memory() {
    for (stride, sectors) in [(0, 1), (1, 4), (2, 8), (8, 32), (64, 32)] {
        passes(&compile(&compiler(FILE)), |device| {
            device.count_traffic(true);
            let words = input(device, "in", &vec![1; 64 * 64]);
            let sum = input(device, "sum", &[0]);
            let parameters = [parameter(&words), parameter(&stride), parameter(&sum)];
            // SAFETY: an address, an int and an address, as the kernel takes them.
            unsafe { device.launch("global_words", [1, 1, 1], [64, 1, 1], 0, &parameters)? };
            let traffic = device.traffic();
            assert_eq!(traffic.global_sectors, 2 * (sectors + 1), "a stride of {stride}");
            assert_eq!([traffic.global_read_bytes, traffic.global_written_bytes], [2 * 64 * 4, 64 * 4]);
            Ok(())
        });
    }
}
