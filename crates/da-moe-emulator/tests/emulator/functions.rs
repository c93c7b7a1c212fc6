//! Kernels compute what CUDA says they compute.

use std::ffi::c_void;
use std::sync::{Arc, LazyLock};

use da_moe_emulator::{Device, Error, Module, Schedule};
use half::{bf16, f16};

use crate::common::{compile, compiler, download, input, output, parameter, passes};

static MODULE: LazyLock<Arc<Module>> = LazyLock::new(|| compile(&compiler("functions.cu")));

fn launch(device: &Device, kernel: &str, blocks: u32, threads: u32, parameters: &[*mut c_void]) -> Result<(), Error> {
    // SAFETY: the tests below pass what the kernels of the file take.
    unsafe { device.launch(kernel, [blocks, 1, 1], [threads, 1, 1], 0, parameters) }
}

fn device() -> Device {
    Device::new(MODULE.clone(), Schedule::from_seed(0))
}

fn same_f32(got: f32, want: f32) -> bool {
    got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan())
}

#[test]
fn every_half_converts_to_float() {
    let device = device();
    let all: Vec<u16> = (0..=u16::MAX).collect();
    let (bits, count) = (input(&device, "bits", &all), all.len() as i32);
    let (bf16_at, f16_at) = (output::<f32>(&device, "bf16", all.len()), output::<f32>(&device, "f16", all.len()));
    let parameters = [parameter(&bits), parameter(&bf16_at), parameter(&f16_at), parameter(&count)];
    launch(&device, "to_float", 1, 64, &parameters).unwrap();
    let (from_bf16, from_f16): (Vec<f32>, Vec<f32>) =
        (download(&device, bf16_at, all.len()), download(&device, f16_at, all.len()));
    for (i, &bits) in all.iter().enumerate() {
        assert!(same_f32(from_bf16[i], bf16::from_bits(bits).to_f32()), "bf16 {bits:#x}");
        assert!(same_f32(from_f16[i], f16::from_bits(bits).to_f32()), "f16 {bits:#x}");
    }
}

#[test]
fn floats_round_to_nearest_even_at_every_boundary() {
    // Rounding changes only at a half and at the middle between two: both and their neighbours, for every half.
    let mut values = vec![f32::NAN, f32::MAX, f32::MIN_POSITIVE, f32::from_bits(1), f32::from_bits(0xff80_0001)];
    for bits in 0..=u16::MAX {
        for value in [bf16::from_bits(bits).to_f32(), f16::from_bits(bits).to_f32()] {
            values.extend([0i64, -1, 1].map(|ulp| f32::from_bits((i64::from(value.to_bits()) + ulp) as u32)));
        }
        let middle = (u32::from(bits) << 16) + 0x8000;
        values.extend([middle - 1, middle, middle + 1].map(f32::from_bits));
        let (low, high) = (f16::from_bits(bits).to_f64(), f16::from_bits(bits.wrapping_add(1)).to_f64());
        let middle = ((low + high) / 2.0) as f32;
        values.extend([0i64, -1, 1].map(|ulp| f32::from_bits((i64::from(middle.to_bits()) + ulp) as u32)));
    }
    let device = device();
    let (at, count) = (input(&device, "values", &values), values.len() as i32);
    let (bf16_at, f16_at) = (output::<u16>(&device, "bf16", values.len()), output::<u16>(&device, "f16", values.len()));
    let parameters = [parameter(&at), parameter(&bf16_at), parameter(&f16_at), parameter(&count)];
    launch(&device, "from_float", 1, 64, &parameters).unwrap();
    let (got_bf16, got_f16): (Vec<u16>, Vec<u16>) =
        (download(&device, bf16_at, values.len()), download(&device, f16_at, values.len()));
    for (i, &value) in values.iter().enumerate() {
        if value.is_nan() {
            // The hardware has one NaN.
            assert_eq!((got_bf16[i], got_f16[i]), (0x7fff, 0x7fff));
        } else {
            assert_eq!(got_bf16[i], bf16::from_f32(value).to_bits(), "bf16 of {value:e}");
            assert_eq!(got_f16[i], f16::from_f32(value).to_bits(), "f16 of {value:e}");
        }
    }
}

#[test]
fn pairs_of_halves() {
    let values: Vec<[f32; 2]> = (0..32).map(|i| [i as f32 * 0.37, -(i as f32) * 1.91]).collect();
    passes(&MODULE, |device| {
        let at = input(device, "values", &values);
        let (bf16s, f16s) = (output::<[bf16; 2]>(device, "bf16", 32), output::<[f16; 2]>(device, "f16", 32));
        let sums = output::<[f32; 2]>(device, "sums", 32);
        launch(device, "pairs", 1, 32, &[parameter(&at), parameter(&bf16s), parameter(&f16s), parameter(&sums)])?;
        let sum = |[x, y]: [f32; 2]| {
            [
                bf16::from_f32(x).to_f32() + f16::from_f32(x).to_f32(),
                f16::from_f32(y).to_f32() + bf16::from_f32(y).to_f32(),
            ]
        };
        assert_eq!(download::<[f32; 2]>(device, sums, 32), values.iter().copied().map(sum).collect::<Vec<_>>());
        Ok(())
    });
}

#[test]
fn functions_of_a_warp() {
    let thirds = (0..32).filter(|lane| lane % 3 == 0).map(|lane| 1u32 << lane).sum::<u32>() as i32;
    let expected: Vec<i32> = (0..32)
        .flat_map(|lane: i32| {
            let group = (0..32).filter(|other| other / 5 == lane / 5).map(|other| 1u32 << other).sum::<u32>() as i32;
            [
                5,
                lane / 8 * 8 + (lane + 1) % 8,
                if lane < 3 { lane } else { lane - 3 },
                if lane % 16 + 3 < 16 { lane + 3 } else { lane },
                lane ^ 9,
                thirds,
                2,
                group,
                496,
                !7,
                if lane < 16 { 0xaaaa } else { 0 },
            ]
        })
        .collect();
    passes(&MODULE, |device| {
        let out = output::<i32>(device, "out", expected.len());
        launch(device, "warp_functions", 1, 32, &[parameter(&out)])?;
        assert_eq!(download::<i32>(device, out, expected.len()), expected);
        Ok(())
    });
}

#[test]
fn votes_of_a_block() {
    passes(&MODULE, |device| {
        let out = output::<i32>(device, "out", 100);
        launch(device, "block_votes", 1, 100, &[parameter(&out)])?;
        assert_eq!(download::<i32>(device, out, 100), [1 + 10 * 34; 100]);
        Ok(())
    });
}

#[test]
fn atomics_of_all_kinds() {
    passes(&MODULE, |device| {
        let ints = input(device, "ints", &[0i32; 4]);
        let words = input(device, "words", &[u32::MAX, 0, 0, 0, 0, 0, 0]);
        let longs = input(device, "longs", &[0u64; 2]);
        let floats = input(device, "floats", &[0f32; 2]);
        launch(
            device,
            "atomics",
            3,
            64,
            &[parameter(&ints), parameter(&words), parameter(&longs), parameter(&floats)],
        )?;
        let sum: i32 = (0..192).sum();
        assert_eq!(download::<i32>(device, ints, 4), [sum, -sum, -191, 191]);
        let odd = (0..7).filter(|bit| (0..192).filter(|i| i % 7 == *bit).count() % 2 == 1).map(|bit| 1u32 << bit).sum();
        // 192 steps round a circle of 10, up from 0 and down from 0.
        assert_eq!(download::<u32>(device, words, 7), [0, u32::MAX, odd, 2, 8, 0, 192]);
        assert_eq!(download::<u64>(device, longs, 2), [192 << 33, 191 << 32]);
        assert_eq!(download::<f32>(device, floats, 2), [96.0, 1.0]);
        Ok(())
    });
}

#[test]
fn bits_and_rounding() {
    let device = device();
    let out = output::<u32>(&device, "out", 8);
    launch(&device, "bits", 1, 1, &[parameter(&out)]).unwrap();
    let expected = [8 + 6400, 4 + 3100 + 63 * 10000, 0, 0x7711_6600, 2 + 0x3f80_0000 + 1, 2 + 200, 1, 3 + 2 + 1 + 3];
    assert_eq!(download::<u32>(&device, out, 8), expected);
}

#[test]
fn parameters_of_four_kilobytes() {
    #[repr(C)]
    struct Large {
        values: [f64; 500],
        index: i32,
    }
    let large = Large { values: std::array::from_fn(|i| i as f64), index: 7 };
    passes(&MODULE, |device| {
        let out = output::<f64>(device, "out", 500);
        launch(device, "large_parameter", 1, 500, &[parameter(&large), parameter(&out)])?;
        assert_eq!(download::<f64>(device, out, 500), (7..507).map(f64::from).collect::<Vec<_>>());
        Ok(())
    });
}

#[test]
fn indices_in_three_dimensions() {
    passes(&MODULE, |device| {
        let (threads, blocks) = (output::<[u32; 3]>(device, "threads", 576), output::<[u32; 3]>(device, "blocks", 576));
        // SAFETY: two addresses, as the kernel takes them.
        unsafe { device.launch("indices", [2, 3, 4], [4, 3, 2], 0, &[parameter(&threads), parameter(&blocks)])? };
        let (threads, blocks) = (download::<[u32; 3]>(device, threads, 576), download::<[u32; 3]>(device, blocks, 576));
        for i in 0..576u32 {
            let (thread, block) = (i % 24, i / 24);
            assert_eq!(threads[i as usize], [thread % 4, thread / 4 % 3, thread / 12]);
            assert_eq!(blocks[i as usize], [block % 2, block / 2 % 3, block / 6]);
        }
        Ok(())
    });
}
