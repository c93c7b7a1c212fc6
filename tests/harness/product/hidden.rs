//! From `dy` to `dh`: what becomes of `da = W_outᵀ dy` where `h` was kept.

use super::memory::{Memory, matrix, rows_of, stored};
use super::{Routing, Run, close, number, offsets};
use da_moe::cuda::launch::gradient_products;
use da_moe::cuda::{Device, Target, abi};
use da_moe::{DType, Error};
use std::ptr::null;

/// Columns that have a part of `dg`.
const TILE: usize = abi::HOPPER_TILE_COLUMNS as usize;

#[derive(Clone, Debug)]
pub struct HiddenProduct {
    pub routing: Routing,
    /// D and F.
    pub depth: usize,
    pub columns: usize,
    pub activation: i32,
    pub weighted: bool,
    /// Elements from row to row beyond a row's own, in multiples of 16 bytes.
    pub padding: usize,
    pub multiprocessors: usize,
    pub seed: u64,
    pub way: Run,
}

/// `dh`, `g·a` and the parts of `dg`.
pub type Three<T> = [Vec<T>; 3];

fn sigmoid(h: f64) -> f64 {
    1.0 / (1.0 + (-h).exp())
}

impl HiddenProduct {
    fn halves(&self) -> usize {
        if self.activation >= abi::ACTIVATION_SWIGLU { 2 } else { 1 }
    }

    fn parts(&self) -> usize {
        self.columns.div_ceil(TILE)
    }

    /// Halves of rows of `h` and `dh` lie evenly.
    fn hidden_padding(&self) -> usize {
        if self.padding > 0 { self.columns } else { 0 }
    }

    fn dy(&self, token: usize, k: usize) -> f32 {
        stored(DType::Bf16, number(token * self.depth + k, self.seed)).0
    }

    fn w(&self, expert: usize, k: usize, column: usize) -> f32 {
        let value = number((expert * self.depth + k) * self.columns + column, self.seed + 1);
        stored(DType::Bf16, value / (self.depth as f32).sqrt()).0
    }

    fn h(&self, row: usize, at: usize) -> f32 {
        stored(DType::Bf16, 3.0 * number(row * 2 * self.columns + at, self.seed + 2)).0
    }

    fn g(&self, row: usize) -> f32 {
        if self.weighted { number(row, self.seed + 3) } else { 1.0 }
    }

    /// Value and derivative of the activation, of the gate where there is one.
    fn curve(&self, h: f64) -> [f64; 2] {
        match self.activation {
            abi::ACTIVATION_SILU | abi::ACTIVATION_SWIGLU => {
                [h * sigmoid(h), sigmoid(h) * (1.0 + h * (1.0 - sigmoid(h)))]
            }
            abi::ACTIVATION_RELU | abi::ACTIVATION_REGLU => [h.max(0.0), if h > 0.0 { 1.0 } else { 0.0 }],
            _ => [h, 1.0],
        }
    }

    /// In f64, of the rows that there are.
    pub fn expected(&self) -> Three<f64> {
        let (mut dh, mut activated, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        for (row, expert) in self.routing.experts() {
            let token = self.routing.source(row, self.seed);
            let da: Vec<f64> = (0..self.columns)
                .map(|c| {
                    let product =
                        |k| token.map_or(0.0, |token| f64::from(self.dy(token, k)) * f64::from(self.w(expert, k, c)));
                    (0..self.depth).map(product).sum()
                })
                .collect();
            let h = |half: usize, c: usize| f64::from(self.h(row, half * self.columns + c));
            let (g, mut of_row) = (f64::from(self.g(row)), vec![0.0; self.parts()]);
            let (mut of_gate, mut of_up) = (Vec::new(), Vec::new());
            for (c, da) in da.into_iter().enumerate() {
                let ([value, slope], up) = (self.curve(h(0, c)), if self.halves() == 2 { h(1, c) } else { 1.0 });
                of_row[c / TILE] += value * up * da;
                activated.push(g * value * up);
                of_gate.push(g * da * slope * up);
                of_up.push(g * da * value);
            }
            dh.extend(of_gate);
            dh.extend(of_up.into_iter().filter(|_| self.halves() == 2));
            parts.extend(of_row);
        }
        [dh, activated, parts]
    }

    /// What the kernel makes of it, with what lies between and behind rows.
    ///
    /// # Errors
    /// The device's.
    ///
    /// # Panics
    /// If the product is not one for Hopper's kernels.
    pub fn run(&self, device: &impl Device) -> Result<Three<u8>, Error> {
        let (memory, routing, seed) = (Memory::new(device), &self.routing, self.seed);
        let (experts, width, room) = (routing.counts.len(), self.halves() * self.columns, routing.room());
        let taken = routing.taken(seed);
        let dy = matrix(DType::Bf16, [routing.sources(), self.depth, self.padding], &|token, k| {
            taken[token].then(|| self.dy(token, k))
        });
        let w = matrix(DType::Bf16, [experts * self.depth, self.columns, self.padding], &|row, column| {
            Some(self.w(row / self.depth, row % self.depth, column))
        });
        let h = matrix(DType::Bf16, [room, width, self.hidden_padding()], &|row, at| {
            (row < routing.rows()).then(|| self.h(row, at))
        });
        let g: Vec<f32> = (0..room).map(|row| if row < routing.rows() { self.g(row) } else { f32::NAN }).collect();
        let dh = memory.output("dh", room * (width + self.hidden_padding()) * 2);
        let activated = memory.output("activated", room * (self.columns + self.padding) * 2);
        let parts = memory.output("parts", room * self.parts() * 4);
        let product = abi::GroupedGemm {
            a: memory.upload("dy", &dy),
            b: memory.upload("w", &w),
            offsets: memory.integers("offsets", &offsets(&routing.counts)),
            row_token: match routing.tokens {
                0 => null(),
                _ => memory.integers("row_token", &routing.row_token(seed)),
            },
            out: dh.pointer(),
            hidden: memory.upload::<u8>("h", &h).cast_mut().cast(),
            a_stride: (self.depth + self.padding) as i64,
            b_stride: (self.columns + self.padding) as i64,
            b_expert_stride: (self.depth * (self.columns + self.padding)) as i64,
            out_stride: (width + self.hidden_padding()) as i64,
            hidden_stride: (width + self.hidden_padding()) as i64,
            rows: room as i32,
            a_rows: routing.sources() as i32,
            experts: experts as i32,
            depth: self.depth as i32,
            columns: self.columns as i32,
            activation: self.activation,
            ..Default::default()
        };
        let p = abi::HiddenGradient {
            product,
            row_weight: if self.weighted { memory.floats("g", &g) } else { null() },
            activated: activated.pointer(),
            parts: parts.pointer(),
            activated_stride: (self.columns + self.padding) as i64,
        };
        let target = Target { multiprocessors: self.multiprocessors, ..device.target() };
        let call = gradient_products::hidden_gradient(target, DType::Bf16, p).next().expect("a launch");
        // SAFETY: every address is of an allocation as large as the kernel expects; the emulator checks that.
        unsafe { self.way.run(&call, device) }?;
        Ok([memory.download(dh)?, memory.download(activated)?, memory.download(parts)?])
    }

    /// Holds what [`HiddenProduct::run`] returned against what was expected.
    ///
    /// # Errors
    /// What is wrong.
    pub fn judge(&self, expected: &Three<f64>, [dh, activated, parts]: &Three<u8>) -> Result<(), String> {
        let rows = |bytes, width, size| rows_of(DType::Bf16, bytes, self.routing.rows(), width, size);
        let width = self.halves() * self.columns;
        close("dh", &rows(dh, [width, self.hidden_padding()], 2)?, &expected[0], 4e-3)?;
        close("g·a", &rows(activated, [self.columns, self.padding], 2)?, &expected[1], 4e-3)?;
        close("dg", &rows(parts, [self.parts(), 0], 4)?, &expected[2], 1e-5)
    }
}
