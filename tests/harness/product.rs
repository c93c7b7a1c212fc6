//! One grouped product of Hopper's by itself, with as many rows for each expert as is asked for, held against f64.
#![allow(unsafe_code, reason = "launches take the addresses of their parameters")]

use da_moe::cuda::launch::clocked;
use da_moe::cuda::launch::experts::{self, Factors};
use da_moe::cuda::{Device, Target, abi};
use da_moe::{DType, Error, bf16, f16};
use std::ptr::{null, null_mut, without_provenance, without_provenance_mut};

/// What outputs hold before.
const POISON: u8 = 0xa5;

/// Where groups of so many members start, and where the last one ends.
pub fn offsets(counts: &[usize]) -> Vec<i32> {
    let mut offsets = vec![0];
    counts.iter().for_each(|count| offsets.push(offsets[offsets.len() - 1] + *count as i32));
    offsets
}

/// A product, described by a few numbers that shrink well.
#[derive(Clone, Debug)]
pub struct Product {
    pub dtype: DType,
    /// Rows of each expert.
    pub counts: Vec<usize>,
    pub depth: usize,
    pub columns: usize,
    pub activation: i32,
    /// Rows are gathered from so many tokens; 0 where they are packed.
    pub tokens: usize,
    /// One gathered row in so many has a token that there is not, and is zeros; 0 for none.
    pub astray: usize,
    pub biased: bool,
    /// Elements from row to row beyond a row's own, in multiples of 16 bytes.
    pub padding: usize,
    /// Bytes of an element of `h` where it is kept, else 0; of the output.
    pub hidden_size: usize,
    pub out_size: usize,
    pub multiprocessors: usize,
    pub seed: u64,
    /// Whether it is by a kernel that tells where its clocks go.
    pub clocked: bool,
}

/// Number `i` of a tensor, between -1 and 1.
fn number(i: usize, seed: u64) -> f32 {
    let mut z = (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ seed.wrapping_mul(0xD1B5_4A32_D192_ED03);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (z >> 40) as f32 / (1 << 23) as f32 - 1.0
}

impl Product {
    fn is_gated(&self) -> bool {
        self.activation >= abi::ACTIVATION_SWIGLU
    }

    fn halves(&self) -> usize {
        if self.is_gated() { 2 } else { 1 }
    }

    fn rows(&self) -> usize {
        self.counts.iter().sum()
    }

    /// Rows that there is room for: more than there are.
    fn room(&self) -> usize {
        self.rows() + 70
    }

    /// Rows of `a`.
    fn sources(&self) -> usize {
        if self.tokens == 0 { self.room() } else { self.tokens }
    }

    /// Elements between rows of `h`: halves lie evenly.
    fn hidden_padding(&self) -> usize {
        if self.padding > 0 { self.columns } else { 0 }
    }

    /// The row of `a` that a row takes, if there is one.
    fn source(&self, row: usize) -> Option<usize> {
        match self.tokens {
            0 => Some(row),
            _ if self.astray > 0 && row.is_multiple_of(self.astray) => None,
            tokens => Some((row * 7 + self.seed as usize) % tokens),
        }
    }

    /// What says so: nothing that could be taken for a row where there is none.
    fn token(&self, row: usize) -> i32 {
        let is_there = row < self.rows();
        let none = if row.is_multiple_of(2) { -1 } else { self.tokens as i32 };
        if is_there { self.source(row).map_or(none, |source| source as i32) } else { i32::MAX }
    }

    /// As it is stored, and in memory.
    fn stored(&self, value: f32) -> (f32, [u8; 2]) {
        match self.dtype {
            DType::Bf16 => (bf16::from_f32(value).to_f32(), bf16::from_f32(value).to_ne_bytes()),
            _ => (f16::from_f32(value).to_f32(), f16::from_f32(value).to_ne_bytes()),
        }
    }

    fn read(&self, bytes: &[u8]) -> Vec<f32> {
        let half = |bytes: &[u8]| [bytes[0], bytes[1]];
        match self.dtype {
            DType::Bf16 => bytes.chunks_exact(2).map(|of| bf16::from_ne_bytes(half(of)).to_f32()).collect(),
            _ => bytes.chunks_exact(2).map(|of| f16::from_ne_bytes(half(of)).to_f32()).collect(),
        }
    }

    fn a(&self, source: usize, k: usize) -> f32 {
        number(source * self.depth + k, self.seed)
    }

    fn b(&self, expert: usize, row: usize, k: usize) -> f32 {
        let rows = self.halves() * self.columns;
        number((expert * rows + row) * self.depth + k, self.seed + 1) / (self.depth as f32).sqrt()
    }

    fn bias(&self, expert: usize, row: usize) -> f32 {
        if self.biased { number(expert * self.halves() * self.columns + row, self.seed + 2) } else { 0.0 }
    }

    /// `h` and the output in f64, of the rows that there are.
    pub fn expected(&self) -> [Vec<f64>; 2] {
        let (mut hidden, mut out, mut row) = (Vec::new(), Vec::new(), 0);
        let stored = |value: f32| f64::from(self.stored(value).0);
        for (expert, &count) in self.counts.iter().enumerate() {
            let width = self.halves() * self.columns;
            let weights: Vec<Vec<f64>> =
                (0..width).map(|r| (0..self.depth).map(|k| stored(self.b(expert, r, k))).collect()).collect();
            for _ in 0..count {
                let source = self.source(row);
                let a: Vec<f64> =
                    (0..self.depth).map(|k| source.map_or(0.0, |source| stored(self.a(source, k)))).collect();
                let dot = |weights: &Vec<f64>| a.iter().zip(weights).map(|(a, b)| a * b).sum::<f64>();
                let h: Vec<f64> = (0..width).map(|r| dot(&weights[r]) + stored(self.bias(expert, r))).collect();
                out.extend((0..self.columns).map(|c| match self.activation {
                    abi::ACTIVATION_SWIGLU => h[c] / (1.0 + (-h[c]).exp()) * h[self.columns + c],
                    abi::ACTIVATION_REGLU => h[c].max(0.0) * h[self.columns + c],
                    abi::ACTIVATION_SILU => h[c] / (1.0 + (-h[c]).exp()),
                    abi::ACTIVATION_RELU => h[c].max(0.0),
                    _ => h[c],
                }));
                hidden.extend(h);
                row += 1;
            }
        }
        [hidden, out]
    }

    /// `h` and the output of the kernel, with what lies between and behind rows.
    ///
    /// # Errors
    /// The device's.
    ///
    /// # Panics
    /// If the product is not one for Hopper's kernels.
    pub fn run(&self, device: &impl Device) -> Result<[Vec<u8>; 2], Error> {
        let stream = device.own_stream();
        let upload = |name, bytes: &[u8]| {
            let address = device.alloc(name, bytes.len()).unwrap();
            // SAFETY: it was allocated with as many bytes.
            unsafe { device.upload(stream, address, bytes) }.unwrap();
            address
        };
        let integers = |name, values: &[i32]| {
            upload(name, &values.iter().flat_map(|value| value.to_ne_bytes()).collect::<Vec<u8>>())
        };
        let nan = self.stored(f32::NAN).1;
        // Rows that no row takes, and what lies between rows, are NaN: nothing of them may show.
        let taken: Vec<bool> = {
            let mut taken = vec![false; self.sources()];
            (0..self.rows()).filter_map(|row| self.source(row)).for_each(|source| taken[source] = true);
            taken
        };
        let matrix = |rows: usize, width: usize, of: &dyn Fn(usize, usize) -> Option<f32>| -> Vec<u8> {
            let element = |r: usize, c: usize| match of(r, c).filter(|_| c < width) {
                Some(value) => self.stored(value).1,
                None => nan,
            };
            (0..rows).flat_map(|r| (0..width + self.padding).flat_map(move |c| element(r, c))).collect()
        };
        let rows_in = self.halves() * self.columns;
        let a = matrix(self.sources(), self.depth, &|source, k| taken[source].then(|| self.a(source, k)));
        let weights =
            matrix(self.counts.len() * rows_in, self.depth, &|row, k| Some(self.b(row / rows_in, row % rows_in, k)));
        let bias: Vec<u8> = (0..self.counts.len() * rows_in)
            .flat_map(|at| self.stored(self.bias(at / rows_in, at % rows_in)).1)
            .collect();
        let row_token: Vec<i32> = (0..self.room()).map(|row| self.token(row)).collect();
        let output = |name, width: usize, size: usize| {
            let bytes = self.room() * width * size;
            (device.alloc(name, bytes).unwrap(), bytes)
        };
        let out = output("out", self.columns + self.padding, self.out_size);
        let hidden = output("hidden", rows_in + self.hidden_padding(), self.hidden_size);
        let poison = |(address, bytes): (u64, usize)| {
            // SAFETY: as above.
            unsafe { device.fill(stream, address, POISON, bytes) }.unwrap();
        };
        [out, hidden].into_iter().for_each(poison);
        let stride = (self.depth + self.padding) as i64;
        let p = abi::GroupedGemm {
            a: without_provenance(upload("a", &a) as usize),
            b: without_provenance(upload("b", &weights) as usize),
            bias: if self.biased { without_provenance(upload("bias", &bias) as usize) } else { null() },
            offsets: without_provenance(integers("offsets", &offsets(&self.counts)) as usize),
            row_token: match self.tokens {
                0 => null(),
                _ => without_provenance(integers("row_token", &row_token) as usize),
            },
            out: without_provenance_mut(out.0 as usize),
            hidden: if self.hidden_size == 0 { null_mut() } else { without_provenance_mut(hidden.0 as usize) },
            a_stride: stride,
            b_stride: stride,
            b_expert_stride: rows_in as i64 * stride,
            bias_stride: rows_in as i64,
            out_stride: (self.columns + self.padding) as i64,
            hidden_stride: (rows_in + self.hidden_padding()) as i64,
            rows: self.room() as i32,
            a_rows: self.sources() as i32,
            experts: self.counts.len() as i32,
            depth: self.depth as i32,
            columns: self.columns as i32,
            activation: self.activation,
            out_f32: i32::from(self.out_size == 4),
            hidden_f32: i32::from(self.hidden_size == 4),
        };
        let target = Target { multiprocessors: self.multiprocessors, ..device.target() };
        let call = experts::calls(target, self.dtype, Factors::F32, p).next().expect("a launch");
        assert!(call.launch.kernel.ends_with("_hopper"), "{}", call.launch.kernel);
        let clocks = device.alloc("clocks", call.launch.blocks() as usize * abi::HOPPER_CLOCKS as usize * 8)?;
        let call = if self.clocked { clocked(&call, clocks).expect("a kernel that tells") } else { call };
        // SAFETY: every address is of an allocation as large as the kernel expects; the emulator checks that.
        unsafe {
            call.run(device, stream)?;
            assert!(!self.clocked || device.unwritten(clocks)? == 0, "every block tells its clocks");
        }
        Ok([hidden, out].map(|(address, bytes)| {
            let mut read = vec![0; bytes];
            // SAFETY: as above.
            unsafe { device.download(stream, address, &mut read) }.unwrap();
            read
        }))
    }

    /// The rows that there are, if nothing else was written.
    fn rows_of(&self, bytes: &[u8], [width, padding]: [usize; 2], size: usize) -> Result<Vec<f32>, String> {
        let row_bytes = (width + padding) * size;
        let mut rows = Vec::new();
        for (row, bytes) in bytes.chunks_exact(row_bytes).enumerate() {
            let (own, beyond) = bytes.split_at(if row < self.rows() { width * size } else { 0 });
            if beyond.iter().any(|byte| *byte != POISON) {
                return Err(format!("row {row}: something is written beyond it"));
            }
            match size {
                2 => rows.extend(self.read(own)),
                _ => rows.extend(own.as_chunks().0.iter().map(|bytes| f32::from_ne_bytes(*bytes))),
            }
        }
        Ok(rows)
    }

    /// Holds what [`Product::run`] returned against what was expected.
    ///
    /// # Errors
    /// What is wrong.
    pub fn judge(&self, expected: &[Vec<f64>; 2], [hidden, out]: &[Vec<u8>; 2]) -> Result<(), String> {
        let error = |what, found: &[f32], expected: &[f64], bound: f64| {
            assert_eq!(found.len(), expected.len());
            let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
            let apart = norm(&mut found.iter().zip(expected).map(|(found, expected)| f64::from(*found) - expected));
            let of = norm(&mut expected.iter().copied());
            if apart <= bound * of { Ok(()) } else { Err(format!("{what} is off by {:e}", apart / of)) }
        };
        let bound = |size| {
            if size == 4 {
                1e-5
            } else if self.dtype == DType::Bf16 {
                4e-3
            } else {
                5e-4
            }
        };
        let [expected_hidden, expected_out] = expected;
        error(
            "out",
            &self.rows_of(out, [self.columns, self.padding], self.out_size)?,
            expected_out,
            bound(self.out_size),
        )?;
        if self.hidden_size > 0 {
            let width = self.halves() * self.columns;
            error(
                "h",
                &self.rows_of(hidden, [width, self.hidden_padding()], self.hidden_size)?,
                expected_hidden,
                bound(self.hidden_size),
            )?;
        }
        Ok(())
    }
}
