//! Rows by their experts' weights.

use super::memory::{Memory, matrix, rows_of, stored};
use super::{Routing, close, number, offsets};
use da_moe::cuda::launch::experts::{self, Factors, Operands};
use da_moe::cuda::launch::gradient_products;
use da_moe::cuda::launch::{Way, in_another_way};
use da_moe::cuda::{Call, Device, Target, abi};
use da_moe::{DType, Error};
use std::ptr::{null, null_mut};

/// A product, described by a few numbers that shrink well.
#[derive(Clone, Debug)]
pub struct Product {
    pub dtype: DType,
    pub routing: Routing,
    pub depth: usize,
    pub columns: usize,
    pub activation: i32,
    /// Whether rows of weights run across the depth, as on the way back.
    pub across: bool,
    pub biased: bool,
    /// Elements from row to row beyond a row's own, in multiples of 16 bytes.
    pub padding: usize,
    /// Bytes of an element of `h` where it is kept, else 0; of the output.
    pub hidden_size: usize,
    pub out_size: usize,
    pub multiprocessors: usize,
    pub seed: u64,
    pub way: Run,
}

/// The kernel that a product is by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// The one that layers use.
    Usual,
    /// One that tells where its clocks go.
    Clocked,
    Alone,
    Skewed,
}

impl Run {
    /// Runs a call by that kernel.
    ///
    /// # Errors
    /// The device's.
    ///
    /// # Panics
    /// If there is no such kernel, or not every block tells its clocks.
    ///
    /// # Safety
    /// As for [`Call::run`].
    pub unsafe fn run(self, call: &Call, device: &impl Device) -> Result<(), Error> {
        assert!(call.launch.kernel.ends_with("_hopper"), "{}", call.launch.kernel);
        let clocks = device.alloc("clocks", call.launch.blocks() as usize * abi::HOPPER_CLOCKS as usize * 8)?;
        let way = match self {
            Run::Usual => None,
            Run::Clocked => Some(Way::Clocked(clocks)),
            Run::Alone => Some(Way::Alone),
            Run::Skewed => Some(Way::Skewed),
        };
        let call = way.map_or(*call, |way| in_another_way(call, way).expect("a kernel for this way"));
        // SAFETY: the caller's word.
        unsafe { call.run(device, device.own_stream()) }?;
        // SAFETY: it was allocated here.
        let unwritten = unsafe { device.unwritten(clocks) }?;
        assert!(self != Run::Clocked || unwritten == 0, "every block tells its clocks");
        Ok(())
    }
}

impl Product {
    fn is_gated(&self) -> bool {
        self.activation >= abi::ACTIVATION_SWIGLU
    }

    fn halves(&self) -> usize {
        if self.is_gated() { 2 } else { 1 }
    }

    /// Elements between rows of `h`: halves lie evenly.
    fn hidden_padding(&self) -> usize {
        if self.padding > 0 { self.columns } else { 0 }
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
        let (mut hidden, mut out) = (Vec::new(), Vec::new());
        let stored = |value: f32| f64::from(stored(self.dtype, value).0);
        let width = self.halves() * self.columns;
        let of_expert = |expert| -> Vec<Vec<f64>> {
            (0..width).map(|r| (0..self.depth).map(|k| stored(self.b(expert, r, k))).collect()).collect()
        };
        let weights: Vec<_> = (0..self.routing.counts.len()).map(of_expert).collect();
        for (row, expert) in self.routing.experts() {
            let source = self.routing.source(row, self.seed);
            let a: Vec<f64> = (0..self.depth).map(|k| source.map_or(0.0, |source| stored(self.a(source, k)))).collect();
            let dot = |weights: &Vec<f64>| a.iter().zip(weights).map(|(a, b)| a * b).sum::<f64>();
            let h: Vec<f64> = (0..width).map(|r| dot(&weights[expert][r]) + stored(self.bias(expert, r))).collect();
            out.extend((0..self.columns).map(|c| match self.activation {
                abi::ACTIVATION_SWIGLU => h[c] / (1.0 + (-h[c]).exp()) * h[self.columns + c],
                abi::ACTIVATION_REGLU => h[c].max(0.0) * h[self.columns + c],
                abi::ACTIVATION_SILU => h[c] / (1.0 + (-h[c]).exp()),
                abi::ACTIVATION_RELU => h[c].max(0.0),
                _ => h[c],
            }));
            hidden.extend(h);
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
        let (memory, routing, seed) = (Memory::new(device), &self.routing, self.seed);
        let (experts, rows_in, room) = (routing.counts.len(), self.halves() * self.columns, routing.room());
        // Rows that no row takes, and what lies between rows, are NaN: nothing of them may show.
        let taken = routing.taken(seed);
        let a = matrix(self.dtype, [routing.sources(), self.depth, self.padding], &|source, k| {
            taken[source].then(|| self.a(source, k))
        });
        let [rows, width] = if self.across { [self.depth, rows_in] } else { [rows_in, self.depth] };
        let weights = matrix(self.dtype, [experts * rows, width, self.padding], &|row, column| {
            let (expert, row) = (row / rows, row % rows);
            let within = column < width;
            within.then(|| if self.across { self.b(expert, column, row) } else { self.b(expert, row, column) })
        });
        let bias: Vec<u8> =
            (0..experts * rows_in).flat_map(|at| stored(self.dtype, self.bias(at / rows_in, at % rows_in)).1).collect();
        let out = memory.output("out", room * (self.columns + self.padding) * self.out_size);
        let hidden = memory.output("hidden", room * (rows_in + self.hidden_padding()) * self.hidden_size);
        let stride = (width + self.padding) as i64;
        let p = abi::GroupedGemm {
            a: memory.upload("a", &a),
            b: memory.upload("b", &weights),
            bias: if self.biased { memory.upload("bias", &bias) } else { null() },
            offsets: memory.integers("offsets", &offsets(&routing.counts)),
            row_token: match routing.tokens {
                0 => null(),
                _ => memory.integers("row_token", &routing.row_token(seed)),
            },
            out: out.pointer(),
            hidden: if self.hidden_size == 0 { null_mut() } else { hidden.pointer() },
            a_stride: (self.depth + self.padding) as i64,
            b_stride: stride,
            b_expert_stride: rows as i64 * stride,
            bias_stride: rows_in as i64,
            out_stride: (self.columns + self.padding) as i64,
            hidden_stride: (rows_in + self.hidden_padding()) as i64,
            rows: room as i32,
            a_rows: routing.sources() as i32,
            experts: experts as i32,
            depth: self.depth as i32,
            columns: self.columns as i32,
            activation: self.activation,
            out_f32: i32::from(self.out_size == 4),
            hidden_f32: i32::from(self.hidden_size == 4),
        };
        let target = Target { multiprocessors: self.multiprocessors, ..device.target() };
        let call = match self.across {
            false => experts::calls(target, self.dtype, Factors::F32, p).next(),
            true => gradient_products::across(target, Operands::from(self.dtype), Factors::F32, p).next(),
        };
        // SAFETY: every address is of an allocation as large as the kernel expects; the emulator checks that.
        unsafe { self.way.run(&call.expect("a launch"), device) }?;
        Ok([memory.download(hidden)?, memory.download(out)?])
    }

    /// Holds what [`Product::run`] returned against what was expected.
    ///
    /// # Errors
    /// What is wrong.
    pub fn judge(&self, expected: &[Vec<f64>; 2], [hidden, out]: &[Vec<u8>; 2]) -> Result<(), String> {
        let bound = |size| match (size, self.dtype) {
            (4, _) => 1e-5,
            (_, DType::Bf16) => 4e-3,
            _ => 5e-4,
        };
        let rows = |bytes, width, size| rows_of(self.dtype, bytes, self.routing.rows(), width, size);
        let [expected_hidden, expected_out] = expected;
        let found = rows(out, [self.columns, self.padding], self.out_size)?;
        close("out", &found, expected_out, bound(self.out_size))?;
        if self.hidden_size > 0 {
            let width = [self.halves() * self.columns, self.hidden_padding()];
            let found = rows(hidden, width, self.hidden_size)?;
            close("h", &found, expected_hidden, bound(self.hidden_size))?;
        }
        Ok(())
    }
}
