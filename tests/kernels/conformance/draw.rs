//! Words for the kernels: drawn from a seed, so that a recording names its inputs by a number, with the values at which
//! roundings, signs and special cases change sides among them.

use da_moe::{bf16, f16};

/// SplitMix64: the same words on every machine.
pub struct Draw(pub u64);

impl Draw {
    pub fn word(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 32) as u32
    }

    pub fn words(&mut self, count: usize) -> Vec<u32> {
        (0..count).map(|_| self.word()).collect()
    }

    pub fn below(&mut self, bound: u32) -> u32 {
        ((u64::from(self.word()) * u64::from(bound)) >> 32) as u32
    }

    pub fn uniform(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * (self.word() >> 8) as f32 / (1 << 24) as f32
    }

    /// Of either sign and of any exponent in the range.
    pub fn scaled(&mut self, exponents: [i32; 2]) -> f32 {
        let exponent = exponents[0] + self.below((exponents[1] - exponents[0]) as u32) as i32;
        let sign = if self.word() & 1 == 0 { 1.0 } else { -1.0 };
        let power = f64::from_bits(((1023 + exponent) as u64) << 52);
        (f64::from(sign * self.uniform(1.0, 2.0)) * power) as f32
    }
}

/// Values that every kernel of single numbers gets.
pub const SPECIAL: [f32; 13] = [
    f32::NAN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    0.0,
    -0.0,
    1.0,
    -1.0,
    f32::MAX,
    f32::MIN,
    f32::MIN_POSITIVE,
    f32::from_bits(1),
    f32::from_bits(0x8000_0001),
    f32::from_bits(0xff80_0001),
];

/// `count` values: the special ones, then halves, the middle between two of them, and what is next to each.
pub fn roundings(draw: &mut Draw, count: usize) -> Vec<u32> {
    let mut values: Vec<u32> = SPECIAL.map(f32::to_bits).to_vec();
    // The largest of f16, the first value that rounds to infinity, and the last that does not.
    values.extend([65504.0f32, 65519.996, 65520.0].map(f32::to_bits));
    while values.len() < count {
        let bits = draw.word() as u16;
        let near = match draw.below(4) {
            0 => bf16::from_bits(bits).to_f32().to_bits(),
            1 => (u32::from(bits) << 16) + 0x8000,
            2 => f16::from_bits(bits).to_f32().to_bits(),
            _ => (((f16::from_bits(bits).to_f64() + f16::from_bits(bits.wrapping_add(1)).to_f64()) / 2.0) as f32)
                .to_bits(),
        };
        values.push(near.wrapping_add(draw.below(3)).wrapping_sub(1));
    }
    values.truncate(count);
    values
}

/// Which 16-bit type a product is of.
#[derive(Clone, Copy, PartialEq)]
pub enum Half {
    Bf16,
    F16,
}

impl Half {
    pub fn bits(self, value: f32) -> u16 {
        match self {
            Half::Bf16 => bf16::from_f32(value).to_bits(),
            Half::F16 => f16::from_f32(value).to_bits(),
        }
    }

    pub fn value(self, bits: u16) -> f64 {
        match self {
            Half::Bf16 => bf16::from_bits(bits).to_f64(),
            Half::F16 => f16::from_bits(bits).to_f64(),
        }
    }
}

/// Fragments of 16 products: ordinary values, wide ranges, subnormals, and one with infinities and NaN.
pub fn fragments(draw: &mut Draw, half: Half, words: usize) -> Vec<u32> {
    let tile_words = words / 16;
    let mut all = Vec::with_capacity(words);
    for tile in 0..16 {
        for word in 0..tile_words {
            let element = |draw: &mut Draw| {
                half.bits(match tile {
                    0..8 => draw.uniform(-1.0, 1.0),
                    8..12 => draw.scaled([-10, 10]),
                    // Subnormals of either type, times what makes a number of ordinary size of them.
                    12..15 if word % 10 < 4 => draw.uniform(-1.0, 1.0) * smallest_normal(half),
                    12..15 => draw.uniform(-1.0, 1.0) / smallest_normal(half),
                    _ if draw.below(24) == 0 => SPECIAL[draw.below(3) as usize],
                    _ => draw.uniform(-1.0, 1.0),
                })
            };
            if word % 10 < 6 {
                let low = element(draw);
                all.push(u32::from(element(draw)) << 16 | u32::from(low));
            } else {
                all.push(draw.uniform(-4.0, 4.0).to_bits());
            }
        }
    }
    all
}

/// Fragments of 16 products of f32 words.
pub fn fragments_of_f32(draw: &mut Draw, words: usize) -> Vec<u32> {
    let element = |draw: &mut Draw, place: usize| match place * 16 / words {
        0..8 => draw.uniform(-1.0, 1.0),
        8..15 => draw.scaled([-20, 20]),
        _ if draw.below(24) == 0 => SPECIAL[draw.below(3) as usize],
        _ => draw.uniform(-1.0, 1.0),
    };
    let word = |place| if place % 10 < 6 { element(draw, place) } else { draw.uniform(-4.0, 4.0) };
    (0..words).map(word).map(f32::to_bits).collect()
}

fn smallest_normal(half: Half) -> f32 {
    match half {
        Half::Bf16 => f32::MIN_POSITIVE,
        Half::F16 => f16::MIN_POSITIVE.to_f32(),
    }
}
