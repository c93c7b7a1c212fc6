//! As `cases`, for the kernels of `kernels/conformance/hopper/conformance_hopper.cu`.

use super::cases::{Case, PACKED_NAN};
use super::draw::{Draw, Half, SPECIAL, roundings};
use super::expected::{Expected, all_bits};
use da_moe::cuda::conformance::BEFORE;
use da_moe::{bf16, f16};

/// In the order of the file.
pub const CASES: &[Case] = &[
    Case {
        kernel: "conformance_wgmma_bf16",
        draw: |draw, count| exact(draw, Half::Bf16, count),
        expect: |words| products(words, Half::Bf16, [false; 2]),
    },
    Case {
        kernel: "conformance_wgmma_f16",
        draw: |draw, count| exact(draw, Half::F16, count),
        expect: |words| products(words, Half::F16, [false; 2]),
    },
    Case {
        kernel: "conformance_wgmma_b_across",
        draw: |draw, count| exact(draw, Half::Bf16, count),
        expect: |words| products(words, Half::Bf16, [false, true]),
    },
    Case {
        kernel: "conformance_wgmma_both_across",
        draw: |draw, count| exact(draw, Half::Bf16, count),
        expect: |words| products(words, Half::Bf16, [true; 2]),
    },
    Case {
        kernel: "conformance_wgmma_of_copies",
        draw: |draw, count| exact(draw, Half::F16, count),
        expect: |words| products(&without_every_fifth_row(words), Half::F16, [false; 2]),
    },
    Case { kernel: "conformance_tma_load_2d", draw: Draw::words, expect: |words| corners(words, &HALVES) },
    Case { kernel: "conformance_tma_load_2d_f32", draw: Draw::words, expect: |words| corners(words, &FLOATS) },
    Case { kernel: "conformance_tma_load_3d", draw: Draw::words, expect: of_halves },
    Case { kernel: "conformance_tma_load_4d", draw: Draw::words, expect: of_matrices },
    Case { kernel: "conformance_tma_multicast", draw: Draw::words, expect: multicasts },
    Case { kernel: "conformance_tma_store_2d_f32", draw: Draw::words, expect: stored_floats },
    Case { kernel: "conformance_tma_store_3d", draw: Draw::words, expect: stored_halves },
    Case { kernel: "conformance_tma_add_3d", draw: alike, expect: added },
    Case { kernel: "conformance_bulk_wait_read", draw: Draw::words, expect: planes },
    Case { kernel: "conformance_stmatrix", draw: Draw::words, expect: matrices },
    Case { kernel: "conformance_stmatrix_trans", draw: Draw::words, expect: turned },
    Case { kernel: "conformance_barrier_arrive", draw: Draw::words, expect: handed_on },
    Case { kernel: "conformance_elect", draw: Draw::words, expect: |words| all_bits(words.iter().map(plus(1))) },
    Case { kernel: "conformance_cluster_barrier", draw: Draw::words, expect: told },
    Case { kernel: "conformance_remote_arrive", draw: Draw::words, expect: turns },
    Case { kernel: "conformance_registers", draw: Draw::words, expect: sums },
    Case { kernel: "conformance_pack", draw: roundings, expect: packed },
    Case { kernel: "conformance_rcp", draw: divisors, expect: |words| words.iter().map(|x| reciprocal(*x)).collect() },
];

fn plus(added: u32) -> impl Fn(&u32) -> u32 {
    move |word| word.wrapping_add(added)
}

/// Odd multiples of 1/8 up to 15/8: sums of their products have few bits, so that no order or grouping rounds or cuts any.
fn exact(draw: &mut Draw, half: Half, count: usize) -> Vec<u32> {
    let element = |draw: &mut Draw| u32::from(half.bits((2.0 * draw.below(16) as f32 - 15.0) / 8.0));
    (0..count).map(|_| element(draw) | element(draw) << 16).collect()
}

/// Rows of 64 elements as they are brought.
fn without_every_fifth_row(words: &[u32]) -> Vec<u32> {
    words.iter().enumerate().map(|(at, word)| if (at / 32).is_multiple_of(5) { 0 } else { *word }).collect()
}

/// 64 rows of A by 256 of B, in planes of 64 by 64: rows along the depth, or a row for each element of the depth. In a warp's 16 rows a
/// thread has, of each eight columns, two in row `lane / 4` and two in row 8 further.
fn products(words: &[u32], half: Half, across: [bool; 2]) -> Vec<Expected> {
    const PLANE: usize = 64;
    let elements: Vec<f64> =
        words.iter().flat_map(|word| [*word as u16, (word >> 16) as u16]).map(|bits| half.value(bits)).collect();
    let element = |plane: usize, across: bool, row: usize, k: usize| {
        let (row, column) = if across { (k, row) } else { (row, k) };
        elements[(plane * PLANE + row) * PLANE + column]
    };
    let element = &element;
    let value = |thread: usize, i: usize| {
        let lane = thread % 32;
        let (m, n) = (thread / 32 * 16 + lane / 4 + i / 2 % 2 * 8, i / 4 * 8 + lane % 4 * 2 + i % 2);
        let product = |k| element(0, across[0], m, k) * element(1 + n / PLANE, across[1], n % PLANE, k);
        // Zero may have either sign.
        Expected::Near { value: (0..PLANE).map(product).sum(), within: 0.0 }
    };
    let value = &value;
    (0..128).flat_map(|thread| (0..128).map(move |i| value(thread, i))).collect()
}

/// A tensor among the bytes of a kernel's words, 16 from their beginning.
struct Tensor {
    /// Bytes of an element.
    size: usize,
    extents: [i64; 4],
    strides: [usize; 3],
}

const HALVES: Tensor = Tensor { size: 2, extents: [101, 77, 1, 1], strides: [224, 0, 0] };
const FLOATS: Tensor = Tensor { size: 4, extents: [45, 77, 1, 1], strides: [208, 0, 0] };

/// In shared memory: the byte of a row of 128 bytes, whose pieces of 16 are exchanged by xor with the row's number mod 8.
fn swizzled(row: usize, byte: usize) -> usize {
    row * 128 + ((byte / 16) ^ (row % 8)) * 16 + byte % 16
}

impl Tensor {
    /// Where an element is, if it is inside.
    fn place(&self, at: [i64; 4]) -> Option<usize> {
        let inside = at.iter().zip(self.extents).all(|(at, extent)| (0..extent).contains(at));
        let outer = at[1..].iter().zip(self.strides).map(|(at, stride)| *at as usize * stride);
        inside.then(|| 16 + at[0] as usize * self.size + outer.sum::<usize>())
    }

    /// Where each element of a box is in shared memory and, if it is inside, in the tensor. Its rows go along one dimension.
    fn elements(&self, at: [i64; 4], along: usize, rows: usize) -> Vec<(usize, Option<usize>)> {
        let element = |row: usize, i: usize| {
            let mut to = at;
            to[0] += i as i64;
            to[along] += row as i64;
            (swizzled(row, i * self.size), self.place(to))
        };
        let element = &element;
        (0..rows).flat_map(|row| (0..128 / self.size).map(move |i| element(row, i))).collect()
    }

    /// The shared memory of a box that was loaded, whose rows go along the second dimension.
    fn loaded(&self, bytes: &[u8], at: [i64; 4], rows: usize) -> Vec<u32> {
        self.loaded_along(bytes, at, 1, rows)
    }

    fn loaded_along(&self, bytes: &[u8], at: [i64; 4], along: usize, rows: usize) -> Vec<u32> {
        let mut shared = vec![0; rows * 128];
        for (to, from) in self.elements(at, along, rows) {
            if let Some(from) = from {
                shared[to..][..self.size].copy_from_slice(&bytes[from..][..self.size]);
            }
        }
        words_of(&shared)
    }

    /// Writes a plane of 64 rows to the tensor.
    fn store(&self, memory: &mut [u8], plane: &[u8], at: [i64; 4], along: usize) {
        for (from, to) in self.elements(at, along, 64) {
            if let Some(to) = to {
                memory[to..][..self.size].copy_from_slice(&plane[from..][..self.size]);
            }
        }
    }
}

fn bytes_of(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn words_of(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().copied().map(u32::from_le_bytes).collect()
}

/// Outside a tensor are zeros.
fn corners(words: &[u32], tensor: &Tensor) -> Vec<Expected> {
    let bytes = bytes_of(words);
    let boxes = [[-5, -3, 0, 0], [40, -3, 0, 0], [-5, 40, 0, 0], [40, 40, 0, 0]];
    all_bits(boxes.into_iter().flat_map(|at| tensor.loaded(&bytes, at, 64)))
}

const ROWS_OF_HALVES: Tensor = Tensor { size: 2, extents: [77, 2, 70, 1], strides: [160, 480, 0] };

fn of_halves(words: &[u32]) -> Vec<Expected> {
    let bytes = bytes_of(words);
    all_bits(
        [[30, 0, -5, 0], [-10, 1, 35, 0]].into_iter().flat_map(|at| ROWS_OF_HALVES.loaded_along(&bytes, at, 2, 64)),
    )
}

fn of_matrices(words: &[u32]) -> Vec<Expected> {
    let tensor = Tensor { size: 2, extents: [72, 75, 2, 2], strides: [160, 160 * 75, 2 * 160 * 75] };
    let bytes = bytes_of(words);
    all_bits([[30, -5, 0, 1], [-10, 35, 1, 0]].into_iter().flat_map(|at| tensor.loaded(&bytes, at, 64)))
}

/// What each block brings for both, and what the other one brings for it.
fn multicasts(words: &[u32]) -> Vec<Expected> {
    let tensor = Tensor { size: 2, extents: [72, 150, 2, 2], strides: [160, 160 * 150, 2 * 160 * 150] };
    let bytes = bytes_of(words);
    let both = [[0, 100, 0, 1], [16, 20, 1, 0]];
    let alone = [[-8, 6, 0, 1], [-8, 5, 1, 1]];
    let boxes = alone.into_iter().flat_map(|alone| [both[0], both[1], alone]);
    all_bits(boxes.flat_map(|at| tensor.loaded(&bytes, at, 128)))
}

const PLANE: usize = 64 * 128;

/// What is outside is not written, nor what lies between rows.
fn stored(words: &[u32], count: usize, tensor: &Tensor, boxes: &[[i64; 4]], along: usize) -> Vec<Expected> {
    let (bytes, mut memory) = (bytes_of(words), vec![BEFORE; count * 4]);
    for (plane, at) in bytes.chunks(PLANE).zip(boxes) {
        tensor.store(&mut memory, plane, *at, along);
    }
    all_bits(words_of(&memory))
}

fn stored_floats(words: &[u32]) -> Vec<Expected> {
    let tensor = Tensor { size: 4, extents: [45, 70, 1, 1], strides: [192, 0, 0] };
    stored(words, 3400, &tensor, &[[-7, -9, 0, 0], [25, 40, 0, 0]], 1)
}

fn stored_halves(words: &[u32]) -> Vec<Expected> {
    stored(words, 8420, &ROWS_OF_HALVES, &[[-6, 0, -9, 0], [40, 1, 20, 0]], 2)
}

/// About as large as what bytes make of a number before, so that the sum has something of both.
fn alike(draw: &mut Draw, count: usize) -> Vec<u32> {
    let before = f32::from_le_bytes([BEFORE; 4]);
    (0..count).map(|_| (draw.uniform(-4.0, 4.0) * before).to_bits()).collect()
}

/// Added to what is there, with one rounding.
fn added(words: &[u32]) -> Vec<Expected> {
    let tensor = Tensor { size: 4, extents: [45, 70, 2, 1], strides: [192, 192 * 70, 0] };
    let (bytes, mut memory) = (bytes_of(words), vec![BEFORE; 6724 * 4]);
    let number = |bytes: &[u8]| f32::from_le_bytes(bytes[..4].try_into().expect("four bytes"));
    for (from, to) in tensor.elements([-7, -9, 1, 0], 1, 64) {
        if let Some(to) = to {
            let sum = number(&memory[to..]) + number(&bytes[from..]);
            memory[to..][..4].copy_from_slice(&sum.to_le_bytes());
        }
    }
    all_bits(words_of(&memory))
}

/// As they were when they were stored.
fn planes(words: &[u32]) -> Vec<Expected> {
    let tensor = Tensor { size: 2, extents: [64, 384, 1, 1], strides: [128, 0, 0] };
    let boxes: Vec<_> = (0..6).map(|plane| [0, plane * 64, 0, 0]).collect();
    stored(words, 6 * PLANE / 4 + 4, &tensor, &boxes, 1)
}

/// Row r of matrix q goes where lane `8 q + r` says; lane l has two neighbours of row `l / 4`, from column `l mod 4 · 2` on.
fn matrices(words: &[u32]) -> Vec<Expected> {
    let mut rows = vec![0; 128];
    for (lane, own) in words.chunks(4).enumerate() {
        for (q, word) in own.iter().enumerate() {
            rows[(q * 8 + lane / 4) * 7 % 32 * 4 + lane % 4] = *word;
        }
    }
    all_bits(rows)
}

/// As `matrices`, but that a lane's two neighbours are of a column.
fn turned(words: &[u32]) -> Vec<Expected> {
    let mut halves = vec![0u16; 256];
    for (lane, own) in words.chunks(4).enumerate() {
        for (q, word) in own.iter().enumerate() {
            for (i, half) in [*word as u16, (word >> 16) as u16].into_iter().enumerate() {
                let row = (q * 8 + lane % 4 * 2 + i) * 7 % 32;
                halves[row * 8 + lane / 4] = half;
            }
        }
    }
    all_bits(halves.chunks(2).map(|pair| u32::from(pair[0]) | u32::from(pair[1]) << 16))
}

/// The second warp has the first one's words too.
fn handed_on(words: &[u32]) -> Vec<Expected> {
    let (first, second) = words.split_at(32);
    all_bits(first.iter().copied().chain(second.iter().zip(first).map(|(own, first)| own.wrapping_add(*first))))
}

/// A block's own number, and the other's.
fn told(words: &[u32]) -> Vec<Expected> {
    let own = |thread: usize| words[thread].wrapping_add((thread / 32 % 2) as u32);
    all_bits((0..words.len()).flat_map(|thread| [own(thread), own(thread ^ 32)]))
}

/// Who begins waits once less.
fn turns(words: &[u32]) -> Vec<Expected> {
    all_bits(words.iter().enumerate().map(|(thread, word)| plus(7 + (thread / 32 % 2) as u32)(word)))
}

fn sums(words: &[u32]) -> Vec<Expected> {
    let few = words[..128].iter().map(|word| word.wrapping_mul(3).wrapping_add(1));
    let many = (128..384).map(|thread| {
        let own = (0..180).rev().map(|i| words[i * 256 + thread]);
        own.fold(0u32, |sum, word| sum.wrapping_mul(5).wrapping_add(word))
    });
    all_bits(few.chain(many))
}

/// Two of bf16, then the same two of f16, the first in the lower half.
fn packed(words: &[u32]) -> Vec<Expected> {
    let pack = |pair: &[u32], bits: fn(f32) -> u16| {
        let value = |word: u32| f32::from_bits(word);
        let half = |word: u32| u32::from(if value(word).is_nan() { PACKED_NAN } else { bits(value(word)) });
        half(pair[1]) << 16 | half(pair[0])
    };
    let both = |pair: &[u32]| [pack(pair, |x| bf16::from_f32(x).to_bits()), pack(pair, |x| f16::from_f32(x).to_bits())];
    all_bits(words.chunks(2).flat_map(both))
}

/// Of every size, what has no normal reciprocal included.
fn divisors(draw: &mut Draw, count: usize) -> Vec<u32> {
    let edges = [126.0f32, -126.0, 127.0, -127.0].map(|exponent| exponent.exp2().to_bits());
    let given: Vec<u32> = SPECIAL.map(f32::to_bits).into_iter().chain(edges).collect();
    let random: Vec<u32> =
        (given.len()..count).map(|i| if i % 2 == 0 { draw.word() } else { draw.uniform(0.5, 4.0).to_bits() }).collect();
    given.into_iter().chain(random).collect()
}

/// 1 / x within 2^-23 of it; what is subnormal counts as zero of its sign, and so does a result. Of either kind may be what is that
/// near to the smallest normal number.
fn reciprocal(x: u32) -> Expected {
    let x = f32::from_bits(x);
    let x = if x.is_subnormal() { 0f32.copysign(x) } else { x };
    let value = 1.0 / f64::from(x);
    let error = (-23.0f64).exp2();
    let to_smallest = value.abs() / f64::from(f32::MIN_POSITIVE) - 1.0;
    match value {
        _ if !value.is_finite() => Expected::exactly(value as f32),
        _ if to_smallest < -error => Expected::exactly(0f32.copysign(x)),
        _ if to_smallest < error => Expected::Near { value, within: value.abs() },
        _ => Expected::Near { value, within: value.abs() * error },
    }
}

#[test]
fn reciprocals_of_what_is_special() {
    for (x, found) in [
        (0.0, f32::INFINITY),
        (-0.0, f32::NEG_INFINITY),
        (f32::from_bits(0x8000_0001), f32::NEG_INFINITY),
        (f32::NEG_INFINITY, -0.0),
        (f32::MIN, -0.0),
    ] {
        assert_eq!(reciprocal(x.to_bits()), Expected::Bits(found.to_bits()), "{x:e}");
    }
    assert_eq!(reciprocal(f32::NAN.to_bits()), Expected::Nan);
    assert!(reciprocal(3f32.to_bits()).admits((1.0f32 / 3.0).to_bits()) && !reciprocal(3f32.to_bits()).admits(0));
}
