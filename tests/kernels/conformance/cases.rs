//! Every kernel with its words, and what it has to make of them, said in plain Rust without a look at the emulator.

use super::draw::{Draw, Half, SPECIAL, fragments, fragments_of_f32, roundings};
use super::expected::{Expected, all_bits, power_of_two, ulps};
use super::hopper;
use da_moe::cuda::conformance::{KERNELS, MicroKernel};
use da_moe::{bf16, f16};

const WARP: usize = 32;

pub struct Case {
    pub kernel: &'static str,
    pub draw: fn(&mut Draw, usize) -> Vec<u32>,
    pub expect: fn(&[u32]) -> Vec<Expected>,
}

/// Every case, in the order of the files.
pub fn all() -> impl Iterator<Item = &'static Case> {
    CASES.iter().chain(hopper::CASES)
}

impl Case {
    pub fn kernel(&self) -> &'static MicroKernel {
        let found = KERNELS.iter().find(|kernel| kernel.name() == self.kernel);
        found.unwrap_or_else(|| panic!("`{}` is not in KERNELS", self.kernel))
    }

    pub fn named(kernel: &str) -> &'static Self {
        all().find(|case| case.kernel == kernel).unwrap_or_else(|| panic!("no case of `{kernel}`"))
    }

    pub fn input(&self, seed: u64) -> Vec<u32> {
        // Kernels do not share words: one more kernel must not change the others' recordings.
        let of_name =
            self.kernel.bytes().fold(seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        let words = (self.draw)(&mut Draw(of_name), self.kernel().input_words());
        assert_eq!(words.len(), self.kernel().input_words(), "{}", self.kernel);
        words
    }

    pub fn expected(&self, input: &[u32]) -> Vec<Expected> {
        let expected = (self.expect)(input);
        assert_eq!(expected.len(), self.kernel().output_words(), "{}", self.kernel);
        expected
    }
}

/// In the order of the file.
const CASES: &[Case] = &[
    Case { kernel: "conformance_cp_async", draw: Draw::words, expect: copies },
    Case { kernel: "conformance_cp_async_if", draw: Draw::words, expect: copies_of_some },
    Case { kernel: "conformance_ldmatrix", draw: Draw::words, expect: |words| matrices(words, false) },
    Case { kernel: "conformance_ldmatrix_trans", draw: Draw::words, expect: |words| matrices(words, true) },
    Case {
        kernel: "conformance_mma_bf16",
        draw: |draw, count| fragments(draw, Half::Bf16, count),
        expect: |words| products(words, Half::Bf16),
    },
    Case {
        kernel: "conformance_mma_f16",
        draw: |draw, count| fragments(draw, Half::F16, count),
        expect: |words| products(words, Half::F16),
    },
    Case { kernel: "conformance_mma_tf32", draw: fragments_of_f32, expect: products_of_f32 },
    Case { kernel: "conformance_round_tf32", draw: roundings_to_tf32, expect: rounded_to_tf32 },
    Case {
        kernel: "conformance_ex2",
        draw: exponents,
        expect: |words| words.iter().map(|x| power_of_two(*x)).collect(),
    },
    Case { kernel: "conformance_reduce", draw: Draw::words, expect: reductions },
    Case { kernel: "conformance_match_any", draw: few_values, expect: matches },
    Case { kernel: "conformance_vote", draw: few_values, expect: votes },
    Case { kernel: "conformance_shuffle", draw: sources, expect: shuffles },
    Case { kernel: "conformance_atomic_inc", draw: counters, expect: increments },
    Case { kernel: "conformance_from_float", draw: roundings, expect: rounded },
    Case { kernel: "conformance_to_float", draw: Draw::words, expect: widened },
    Case { kernel: "conformance_extremes", draw: pairs, expect: extremes },
    Case { kernel: "conformance_exp_log", draw: powers_and_logarithms, expect: powers_and_logarithms_of },
];

/// Lanes copy 0 to 16 bytes of their 16, then the other way round, and read what their neighbours have.
fn copies(words: &[u32]) -> Vec<Expected> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let byte = |half: usize, reader: usize, place: usize| {
        let lane = reader ^ 1;
        let count = if half == 0 { lane % 17 } else { 16 - lane % 17 };
        if place < count { bytes[lane * 16 + place] } else { 0 }
    };
    let word = |half, reader, w: usize| u32::from_le_bytes([0, 1, 2, 3].map(|b| byte(half, reader, w * 4 + b)));
    all_bits((0..2).flat_map(|half| (0..WARP).flat_map(move |lane| (0..4).map(move |w| word(half, lane, w)))))
}

/// All lanes but every third copy their 16 bytes, and read what their neighbours have.
fn copies_of_some(words: &[u32]) -> Vec<Expected> {
    let word = |reader: usize, w: usize| if (reader ^ 1).is_multiple_of(3) { 0 } else { words[(reader ^ 1) * 4 + w] };
    all_bits((0..WARP).flat_map(|reader| (0..4).map(move |w| word(reader, w))))
}

/// Matrix q has eight rows of eight; a lane gets two neighbours in row `lane / 4`, or in that column.
fn matrices(words: &[u32], transposed: bool) -> Vec<Expected> {
    let element = |q: usize, row: usize, column: usize| {
        let word = words[(q * 8 + row) * 7 % WARP * 4 + column / 2];
        (word >> (column % 2 * 16)) & 0xffff
    };
    let fragment = |lane: usize, q: usize| {
        let (major, minor) = (lane / 4, lane % 4 * 2);
        let [low, high] = [minor, minor + 1]
            .map(|minor| if transposed { element(q, minor, major) } else { element(q, major, minor) });
        high << 16 | low
    };
    all_bits((0..WARP).flat_map(|lane| (0..4).map(move |q| fragment(lane, q))))
}

/// A · B + C of every tile in f64, where products are exact, in the fragments of the PTX manual.
fn products(words: &[u32], half: Half) -> Vec<Expected> {
    let of_tile = |tile: &[u32]| {
        let element = |lane: usize, word: usize, e: usize| half.value((tile[lane * 10 + word] >> (16 * e)) as u16);
        // Which lane, word and half of it has an element.
        let a = |row: usize, k: usize| element(row % 8 * 4 + k % 8 / 2, row / 8 + k / 8 * 2, k % 2);
        let b = |k: usize, column: usize| element(column * 4 + k % 8 / 2, 4 + k / 8, k % 2);
        product(tile, 16, a, b)
    };
    words.chunks(WARP * 10).flat_map(of_tile).collect()
}

/// The same of f32 words, whose lower 13 bits are ignored.
fn products_of_f32(words: &[u32]) -> Vec<Expected> {
    let of_tile = |tile: &[u32]| {
        let element = |lane: usize, word: usize| f64::from(f32::from_bits(tile[lane * 10 + word] & TF32));
        let a = |row: usize, k: usize| element(row % 8 * 4 + k % 4, row / 8 + k / 4 * 2);
        let b = |k: usize, column: usize| element(column * 4 + k % 4, 4 + k / 4);
        product(tile, 8, a, b)
    };
    words.chunks(WARP * 10).flat_map(of_tile).collect()
}

/// The four results of every lane; accumulators are a lane's last four words.
fn product(
    tile: &[u32],
    depth: usize,
    a: impl Fn(usize, usize) -> f64,
    b: impl Fn(usize, usize) -> f64,
) -> Vec<Expected> {
    let value = |lane: usize, i: usize| {
        let (row, column) = (lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2);
        let c = f64::from(f32::from_bits(tile[lane * 10 + 6 + i]));
        let terms = (0..depth).map(|k| a(row, k) * b(k, column)).chain([c]);
        let (sum, magnitude) = terms.fold((0.0, 0.0), |(sum, magnitude), term| (sum + term, magnitude + term.abs()));
        Expected::sum(sum, magnitude)
    };
    let value = &value;
    (0..WARP).flat_map(|lane| (0..4).map(move |i| value(lane, i))).collect()
}

/// Bits of an f32 that are in a TF32.
const TF32: u32 = 0xffff_e000;

/// The middle between two TF32 values, and what is next to it, among others.
fn roundings_to_tf32(draw: &mut Draw, count: usize) -> Vec<u32> {
    let random = |draw: &mut Draw| match draw.below(3) {
        0 => draw.word(),
        _ => ((draw.word() & TF32) + 0x1000).wrapping_add(draw.below(3)).wrapping_sub(1),
    };
    // Half a step would carry these over into other numbers.
    let nans = [0x7f80_1fff, 0x7fff_f000, 0xffff_ffff];
    let given: Vec<u32> = SPECIAL.map(f32::to_bits).into_iter().chain(nans).collect();
    let random: Vec<u32> = (given.len()..count).map(|_| random(draw)).collect();
    given.into_iter().chain(random).collect()
}

/// To nearest, halves away from zero: half a step added to the magnitude, then cut. Past the largest, infinity. What is not
/// finite is cut alone: a NaN whose bits are all in what is cut becomes an infinity, since ptxas makes integer operations
/// of this instruction.
fn rounded_to_tf32(words: &[u32]) -> Vec<Expected> {
    let half = |bits: u32| if f32::from_bits(bits).is_finite() { 0x1000 } else { 0 };
    all_bits(words.iter().map(|bits| (bits + half(*bits)) & TF32))
}

#[test]
fn roundings_to_tf32_of_what_is_not_finite() {
    for (bits, rounded) in [
        (0xff80_0001, 0xff80_0000),
        (0x7f80_1fff, 0x7f80_0000),
        (0x7f80_2001, 0x7f80_2000),
        (0x7fc0_0000, 0x7fc0_0000),
        (0x7fff_ffff, 0x7fff_e000),
        (0x7f80_0000, 0x7f80_0000),
        (0x7f7f_ffff, 0x7f80_0000),
        (0xff7f_efff, 0xff7f_e000),
        (0x8000_1000, 0x8000_2000),
    ] {
        assert_eq!(rounded_to_tf32(&[bits]), [Expected::Bits(rounded)], "{bits:#010x}");
    }
    let words = Case::named("conformance_round_tf32").input(1);
    assert!(words.contains(&0xff80_0001) && words.contains(&0x7fc0_0000), "words that tell");
}

fn exponents(draw: &mut Draw, count: usize) -> Vec<u32> {
    let random = (SPECIAL.len()..count).map(|_| draw.uniform(-140.0, 127.9).to_bits()).collect::<Vec<_>>();
    SPECIAL.map(f32::to_bits).into_iter().chain(random).collect()
}

fn reductions(words: &[u32]) -> Vec<Expected> {
    let of_warp = |warp: &[u32]| {
        let signed = warp.iter().map(|word| *word as i32).max().unwrap_or_default();
        let sum = warp.iter().fold(0u32, |sum, word| sum.wrapping_add(*word));
        [warp.iter().copied().max().unwrap_or_default(), signed as u32, sum].repeat(WARP)
    };
    all_bits(words.chunks(WARP).flat_map(of_warp))
}

/// One value in a warp, then two, then more; the first warp has zeros alone.
fn few_values(draw: &mut Draw, count: usize) -> Vec<u32> {
    (0..count).map(|i| draw.below(1 + (i / WARP) as u32)).collect()
}

fn lanes(warp: &[u32], holds: impl Fn(u32) -> bool) -> u32 {
    warp.iter().enumerate().filter(|(_, word)| holds(**word)).map(|(lane, _)| 1 << lane).sum()
}

fn matches(words: &[u32]) -> Vec<Expected> {
    let of_warp = |warp: &[u32]| warp.iter().map(|mine| lanes(warp, |word| word == *mine)).collect::<Vec<_>>();
    all_bits(words.chunks(WARP).flat_map(of_warp))
}

fn votes(words: &[u32]) -> Vec<Expected> {
    let of_warp = |warp: &[u32]| {
        let holds = lanes(warp, |word| word != 0);
        let first = if holds == 0 { 0 } else { holds.trailing_zeros() + 1 };
        [holds, first, holds.count_ones()].repeat(WARP)
    };
    all_bits(words.chunks(WARP).flat_map(of_warp))
}

fn sources(draw: &mut Draw, count: usize) -> Vec<u32> {
    (0..count).map(|i| if i % 2 == 0 { draw.word() } else { draw.below(WARP as u32) }).collect()
}

fn shuffles(words: &[u32]) -> Vec<Expected> {
    let of_warp = |warp: &[u32]| {
        let value = |lane: usize| warp[2 * lane];
        // A lane without a source keeps its own value.
        let up = |lane: usize, delta: usize| value(lane.checked_sub(delta).unwrap_or(lane));
        let of_lane = |lane: usize| {
            let distances = [1, 2, 4, 8, 16];
            let moved = distances.map(|delta| up(lane, delta)).into_iter();
            moved.chain(distances.map(|bits| value(lane ^ bits))).chain([value(warp[2 * lane + 1] as usize)])
        };
        (0..WARP).flat_map(of_lane).collect::<Vec<_>>()
    };
    all_bits(words.chunks(2 * WARP).flat_map(of_warp))
}

/// Starts at, below and above limits of every size, 0 among them.
fn counters(draw: &mut Draw, count: usize) -> Vec<u32> {
    let mut words = vec![0, 0, 0, 6, 3, 3, 100, 5, u32::MAX, 1, 5, u32::MAX];
    while words.len() < count {
        words.extend([draw.below(20), draw.below(20)]);
    }
    words
}

fn increments(words: &[u32]) -> Vec<Expected> {
    let of_block = |block: &[u32]| {
        let (mut counter, limit) = (block[0], block[1]);
        let mut seen = [0; 16];
        for _ in 0..128 {
            seen[counter.min(15) as usize] += 1;
            counter = if counter >= limit { 0 } else { counter + 1 };
        }
        [counter].into_iter().chain(seen)
    };
    all_bits(words.chunks(2).flat_map(of_block))
}

/// What both conversions to 16 bits make of any NaN.
pub const PACKED_NAN: u16 = 0x7fff;

/// To nearest, ties to even.
fn rounded(words: &[u32]) -> Vec<Expected> {
    let both = |bits: &u32| {
        let value = f32::from_bits(*bits);
        let halves = [bf16::from_f32(value).to_bits(), f16::from_f32(value).to_bits()];
        let [low, high] = if value.is_nan() { [PACKED_NAN; 2] } else { halves };
        u32::from(high) << 16 | u32::from(low)
    };
    all_bits(words.iter().map(both))
}

fn widened(words: &[u32]) -> Vec<Expected> {
    let both = |word: &u32| [bf16::from_bits(*word as u16).to_f32(), f16::from_bits((*word >> 16) as u16).to_f32()];
    words.iter().flat_map(both).map(Expected::exactly).collect()
}

/// Numbers, and NaN on either side. Zeros of both signs are left out: which of them is larger is not said.
fn pairs(draw: &mut Draw, count: usize) -> Vec<u32> {
    let value = |draw: &mut Draw| match draw.below(8) {
        0 => f32::NAN,
        1 => SPECIAL[1 + draw.below(2) as usize],
        _ => draw.scaled([-140, 120]),
    };
    (0..count).map(|_| value(draw).to_bits()).collect()
}

/// NaN loses against any number, as in Rust.
fn extremes(words: &[u32]) -> Vec<Expected> {
    let both = |pair: &[u32]| {
        let [x, y] = [pair[0], pair[1]].map(f32::from_bits);
        [x.max(y), x.min(y)].map(Expected::exactly)
    };
    words.chunks(2).flat_map(both).collect()
}

/// Exponents at which e^x is a number, and positive numbers of every size, half of them near 1.
fn powers_and_logarithms(draw: &mut Draw, count: usize) -> Vec<u32> {
    let special = SPECIAL.iter().flat_map(|special| [special.to_bits(); 2]).collect::<Vec<_>>();
    let near = |draw: &mut Draw| match draw.below(2) {
        0 => draw.uniform(0.25, 4.0),
        _ => draw.scaled([-126, 127]).abs(),
    };
    let random = (special.len()..count).map(|i| if i % 2 == 0 { draw.uniform(-100.0, 88.0) } else { near(draw) });
    let random: Vec<u32> = random.map(f32::to_bits).collect();
    special.into_iter().chain(random).collect()
}

/// The bounds are those of the CUDA C++ programming guide, in units in the last place, plus one for the emulator's own.
fn powers_and_logarithms_of(words: &[u32]) -> Vec<Expected> {
    let of_pair = |pair: &[u32]| {
        let [x, y] = [pair[0], pair[1]].map(|bits| f64::from(f32::from_bits(bits)));
        let fast = match ulps(y.ln(), 3.0) {
            // Between ½ and 2, where the logarithm is near 0, the bound is absolute.
            Expected::Near { value, .. } if (0.5..=2.0).contains(&y) => {
                Expected::Near { value, within: (-21.41f64).exp2() }
            }
            other => other,
        };
        [ulps(x.exp(), 2.0), ulps(y.ln(), 2.0), fast, ulps(y.log2(), 2.0)]
    };
    words.chunks(2).flat_map(of_pair).collect()
}
