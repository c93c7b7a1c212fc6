//! Gradients of the experts' weights: sums over each one's rows.

use super::memory::{Memory, POISON, matrix, read, stored};
use super::{Routing, Run, close, number, offsets};
use da_moe::cuda::launch::experts::Factors;
use da_moe::cuda::launch::gradient_products;
use da_moe::cuda::{Device, Target, abi};
use da_moe::{DType, Error};
use std::ptr::null;

#[derive(Clone, Debug)]
pub struct WeightProduct {
    pub routing: Routing,
    /// Columns of the factor that is found by token, and of the other one.
    pub found: usize,
    pub packed: usize,
    /// Whether the one that is found is the right factor, as in `dW_in`.
    pub turned: bool,
    /// Elements from row to row beyond a row's own, in multiples of 16 bytes; of the gradient too.
    pub padding: usize,
    pub out_size: usize,
    /// Whether it is added to what is there.
    pub adds: bool,
    pub multiprocessors: usize,
    pub seed: u64,
    pub way: Run,
}

impl WeightProduct {
    fn found_at(&self, source: usize, column: usize) -> f32 {
        stored(DType::Bf16, number(source * self.found + column, self.seed)).0
    }

    fn packed_at(&self, row: usize, column: usize) -> f32 {
        stored(DType::Bf16, number(row * self.packed + column, self.seed + 1)).0
    }

    /// What the gradient is added to.
    fn old(&self, at: usize) -> f32 {
        let value = number(at, self.seed + 2);
        if self.out_size == 4 { value } else { stored(DType::Bf16, value).0 }
    }

    /// Rows and columns of an expert's gradient.
    fn sides(&self) -> [usize; 2] {
        if self.turned { [self.packed, self.found] } else { [self.found, self.packed] }
    }

    /// Of every expert, in f64.
    pub fn expected(&self) -> Vec<f64> {
        let [height, width] = self.sides();
        let (of_expert, mut sums) = (height * width, Vec::new());
        for at in 0..self.routing.counts.len() * of_expert {
            sums.push(if self.adds { f64::from(self.old(at)) } else { 0.0 });
        }
        for (row, expert) in self.routing.experts() {
            let Some(source) = self.routing.source(row, self.seed) else { continue };
            for f in 0..self.found {
                let of_source = f64::from(self.found_at(source, f));
                for p in 0..self.packed {
                    let at = if self.turned { p * width + f } else { f * width + p };
                    sums[expert * of_expert + at] += of_source * f64::from(self.packed_at(row, p));
                }
            }
        }
        sums
    }

    /// What the kernel makes of it, with what lies between rows.
    ///
    /// # Errors
    /// The device's.
    ///
    /// # Panics
    /// If the product is not one for Hopper's kernels.
    pub fn run(&self, device: &impl Device) -> Result<Vec<u8>, Error> {
        let (memory, routing, seed) = (Memory::new(device), &self.routing, self.seed);
        let taken = routing.taken(seed);
        let found = matrix(DType::Bf16, [routing.sources(), self.found, self.padding], &|source, column| {
            taken[source].then(|| self.found_at(source, column))
        });
        // Nobody has written what comes after the last row.
        let packed = matrix(DType::Bf16, [routing.room(), self.packed, self.padding], &|row, column| {
            (row < routing.rows()).then(|| self.packed_at(row, column))
        });
        let found = abi::RoutedOperand {
            rows: memory.upload("found", &found),
            row_token: match routing.tokens {
                0 => null(),
                _ => memory.integers("row_token", &routing.row_token(seed)),
            },
            stride: (self.found + self.padding) as i64,
            sources: routing.sources() as i32,
            columns: self.found as i32,
            ..Default::default()
        };
        let packed = abi::RoutedOperand {
            rows: memory.upload("packed", &packed),
            stride: (self.packed + self.padding) as i64,
            sources: routing.room() as i32,
            columns: self.packed as i32,
            ..Default::default()
        };
        let ([height, width], experts) = (self.sides(), routing.counts.len());
        let out = memory.output("out", experts * height * (width + self.padding) * self.out_size);
        if self.adds {
            let old = self.old_rows(experts * height, width);
            // SAFETY: it was allocated with as many bytes.
            unsafe { device.upload(memory.stream, out.address, &old) }?;
        }
        let p = abi::WeightGradient {
            left: if self.turned { packed } else { found },
            right: if self.turned { found } else { packed },
            offsets: memory.integers("offsets", &offsets(&routing.counts)),
            out: out.pointer(),
            out_expert_stride: (height * (width + self.padding)) as i64,
            out_stride: (width + self.padding) as i64,
            rows: routing.room() as i32,
            experts: experts as i32,
            out_f32: i32::from(self.out_size == 4),
            beta: if self.adds { 1.0 } else { 0.0 },
            share: routing.room() as i32,
            ..Default::default()
        };
        let target = Target { multiprocessors: self.multiprocessors, ..device.target() };
        let call =
            gradient_products::weight_gradient(target, [DType::Bf16; 2], Factors::F32, p).next().expect("a launch");
        // SAFETY: every address is of an allocation as large as the kernel expects; the emulator checks that.
        unsafe { self.way.run(&call, device) }?;
        memory.download(out)
    }

    fn old_rows(&self, rows: usize, width: usize) -> Vec<u8> {
        let element = |at: usize| match self.out_size {
            4 => self.old(at).to_ne_bytes().to_vec(),
            _ => stored(DType::Bf16, self.old(at)).1.to_vec(),
        };
        let row = |row: usize| {
            let own = (0..width).flat_map(move |column| element(row * width + column));
            own.chain(std::iter::repeat_n(POISON, self.padding * self.out_size)).collect::<Vec<u8>>()
        };
        (0..rows).flat_map(row).collect()
    }

    /// Holds what [`WeightProduct::run`] returned against what was expected.
    ///
    /// # Errors
    /// What is wrong.
    pub fn judge(&self, expected: &[f64], out: &[u8]) -> Result<(), String> {
        let ([_, width], size) = (self.sides(), self.out_size);
        let mut found = Vec::new();
        for (row, bytes) in out.chunks_exact((width + self.padding) * size).enumerate() {
            let (own, beyond) = bytes.split_at(width * size);
            if beyond.iter().any(|byte| *byte != POISON) {
                return Err(format!("row {row}: something is written beyond it"));
            }
            found.extend(read(DType::Bf16, size, own));
        }
        close("the gradient", &found, expected, if size == 4 { 1e-5 } else { 4e-3 })
    }
}
