//! Matrices in shared memory as the table of operands has them.

use half::f16;

use super::{OPERANDS, numbers};

/// A matrix of 16-bit elements in shared memory, and the descriptors of its blocks.
pub struct Tile {
    pub name: String,
    pub mn_major: bool,
    k: usize,
    pieces: Vec<usize>,
    pub blocks: Vec<Block>,
}

pub struct Block {
    pub is_a: bool,
    pub rows: usize,
    pub mn: usize,
    pub k: usize,
    pub descriptor: u64,
}

pub const TILE_BYTES: usize = 256 * 64 * 2;

/// What moves a descriptor behind the first tile, in units of 16 bytes.
pub const BEHIND: u64 = TILE_BYTES as u64 / 16;

impl Tile {
    pub fn all() -> Vec<Self> {
        let mut tiles: Vec<Self> = Vec::new();
        for line in OPERANDS.lines() {
            let fields: Vec<_> = line.split(',').collect();
            if fields[0] == "tile" {
                let sizes = numbers(fields[4..6].iter().copied());
                let pieces = numbers(fields[6..].iter().copied());
                assert_eq!((sizes[0] * sizes[1] * 2, pieces.len()), (TILE_BYTES, TILE_BYTES / 16));
                let (name, mn_major) = (fields[1..4].join(" "), fields[1] == "mn");
                tiles.push(Self { name, mn_major, k: sizes[1], pieces, blocks: Vec::new() });
            } else {
                let [rows, mn, k] = numbers(fields[2..5].iter().copied())[..] else { panic!("{line}") };
                let descriptor = u64::from_str_radix(fields[5], 16).expect("a descriptor");
                let tile = tiles.last_mut().expect("a tile before its descriptors");
                tile.blocks.push(Block { is_a: fields[1] == "a", rows, mn, k, descriptor });
            }
        }
        assert!(!tiles.is_empty() && tiles.iter().all(|tile| !tile.blocks.is_empty()));
        tiles
    }

    /// The first, whose rows are contiguous.
    pub fn plain() -> Self {
        Self::all().swap_remove(0)
    }

    /// The byte where an element lies.
    pub fn place(&self, mn: usize, k: usize) -> usize {
        let (major, minor, runs) = if self.mn_major { (mn, k, 256 / 8) } else { (k, mn, self.k / 8) };
        self.pieces[minor * runs + major / 8] * 16 + major % 8 * 2
    }

    /// The descriptor of the first block as A, or as B.
    pub fn start(&self, is_a: bool) -> u64 {
        self.blocks.iter().find(|block| block.is_a == is_a).expect("a block").descriptor
    }
}

/// Elements of operands. Rows of TF32 lie as rows of twice as many elements of 16 bits.
#[derive(Clone, Copy, PartialEq)]
pub enum Type {
    F16,
    Tf32,
}

impl Type {
    pub fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::Tf32 => 4,
        }
    }

    pub fn depth(self) -> usize {
        32 / self.bytes()
    }

    /// One of 16384 numbers that are different, and that a product with 1 leaves as they are.
    pub fn named(self, at: usize) -> u32 {
        let bits = at as u32 + 0x400;
        match self {
            Self::F16 => bits,
            Self::Tf32 => bits << 13,
        }
    }

    /// Which of them that is.
    pub fn name_of(self, value: f32) -> usize {
        let bits = match self {
            Self::F16 => u32::from(f16::from_f32(value).to_bits()),
            Self::Tf32 => value.to_bits() >> 13,
        };
        bits.wrapping_sub(0x400) as usize
    }

    pub fn bits(self, value: usize) -> u32 {
        match self {
            Self::F16 => u32::from(f16::from_f32(value as f32).to_bits()),
            Self::Tf32 => (value as f32).to_bits(),
        }
    }

    /// Elements in a word, the first in its lower half.
    pub fn word(self, values: &[usize]) -> u32 {
        values.iter().rev().fold(0, |word, &value| word << 16 | self.bits(value))
    }
}

/// Shared memory: the tile that is looked at, and behind it one that the other operand is in.
pub struct Image(pub Vec<u8>, Type);

impl Image {
    pub fn new(element: Type) -> Self {
        Self(vec![0; 2 * TILE_BYTES], element)
    }

    pub fn put(&mut self, byte: usize, value: usize) {
        self.put_bits(byte, self.1.bits(value));
    }

    pub fn put_bits(&mut self, byte: usize, bits: u32) {
        let bytes = self.1.bytes();
        self.0[byte..byte + bytes].copy_from_slice(&bits.to_le_bytes()[..bytes]);
    }

    /// Puts the unit matrix behind the first tile.
    pub fn put_unit(&mut self, tile: &Tile) {
        for i in 0..self.1.depth() {
            self.put(TILE_BYTES + tile.place(i, i * self.1.bytes() / 2), 1);
        }
    }
}
