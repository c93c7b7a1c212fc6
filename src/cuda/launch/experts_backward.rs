//! The launches that take gradients back through the experts (SPEC §6), in order, and what passes between them.
//!
//! `dh` and `g·a` of every row have the storage type on their way, TF32 beside f16: each gradient then has one rounding there
//! and one at its end, as `y` has with the activated values of forward. Sums are f32 always; `h` is of [`hidden_type`], to which
//! it is rounded for backward alone.

use crate::cuda::abi;
use crate::cuda::device::workspace::{Carver, Workspace};
use crate::cuda::device::{Call, Target};
use crate::cuda::launch::experts::{self, Factors, Operands, activated_stride};
use crate::cuda::launch::gradient_products::{
    across, between, bias_gradient, factors_between, hidden_gradient, part_count, row_weight_gradient, weight_gradient,
};
use crate::{Activation, DType, Keep, LayerConfig, Sizes, hidden_type};
use std::ffi::c_void;
use std::ptr::{null, null_mut};

/// A stack of matrices, one for each expert, in memory of any type; null where there is none.
#[derive(Clone, Copy, Debug)]
pub struct Stack<P> {
    /// Where it starts.
    pub at: P,
    /// Distance between experts.
    pub expert_stride: i64,
    /// Distance between rows.
    pub stride: i64,
}

impl<P> Stack<P> {
    /// Matrices `rows` by `columns` without gaps.
    pub fn dense(at: P, rows: usize, columns: usize) -> Self {
        Self { at, expert_stride: (rows * columns) as i64, stride: columns as i64 }
    }
}

/// Everything that backward through some experts reads, writes and needs in between.
#[derive(Clone, Copy, Debug)]
pub struct Backward {
    /// Of everything that is not said to be f32.
    pub storage: DType,
    /// Between the two matrices.
    pub activation: Activation,
    /// T.
    pub tokens: usize,
    /// Rows that there is room for; without `offsets`, the rows there are.
    pub rows: usize,
    /// D.
    pub hidden: usize,
    /// F.
    pub width: usize,
    /// E.
    pub experts: usize,
    /// `[T, D]` and the distance between rows.
    pub x: (*const c_void, i64),
    /// `[T, D]` and the distance between rows.
    pub dy: (*const c_void, i64),
    /// `[E + 1]`, or null: one expert has all rows, which are the tokens.
    pub offsets: *const i32,
    /// `[rows]`, or null.
    pub row_token: *const i32,
    /// `[rows]`, or null: 1.
    pub row_weight: *const f32,
    /// `[E, F or 2F, D]`.
    pub w_in: Stack<*const c_void>,
    /// `[E, D, F]`.
    pub w_out: Stack<*const c_void>,
    /// `[E, F or 2F]` and the distance between experts, or null.
    pub b_in: (*const c_void, i64),
    /// `[E, D]` and the distance between experts, or null.
    pub b_out: (*const c_void, i64),
    /// `[rows, F or 2F]` of [`hidden_type`] as forward kept it, without gaps, or null: it is computed again.
    pub kept: *const c_void,
    /// Out: `[rows, D]`, without gaps.
    pub dx_rows: *mut c_void,
    /// Whether that is f32.
    pub dx_rows_f32: bool,
    /// Out: `[rows]`.
    pub d_row_weight: *mut f32,
    /// Out: `[E, F or 2F, D]`.
    pub d_w_in: *mut c_void,
    /// Out: `[E, D, F]`.
    pub d_w_out: *mut c_void,
    /// Out: `[E, F or 2F]`, or null.
    pub d_b_in: *mut c_void,
    /// Out: `[E, D]`, or null.
    pub d_b_out: *mut c_void,
    /// Whether the four gradients of weights are f32.
    pub gradients_f32: bool,
    /// Factor on what they hold: 0 or 1.
    pub beta: f32,
    scratch: Scratch,
}

/// What passes between the launches.
#[derive(Clone, Copy, Debug)]
struct Scratch {
    /// `[rows, F or 2F]` of [`hidden_type`], where forward kept none.
    hidden: *mut c_void,
    /// `[rows, F or 2F]` of the type [`between`] launches, every row aligned.
    d_hidden: *mut c_void,
    /// `[rows, F]` of that type, every row aligned.
    activated: *mut c_void,
    /// `[rows, part_count]`.
    parts: *mut f32,
}

impl Backward {
    /// Nothing at all, of some type and sizes `[T, rows, D, F, E]`; the rest is to be set.
    pub fn new(storage: DType, activation: Activation, [tokens, rows, hidden, width, experts]: [usize; 5]) -> Self {
        let rows_in = activation.rows_in(width);
        Self {
            storage,
            activation,
            tokens,
            rows,
            hidden,
            width,
            experts,
            x: (null(), hidden as i64),
            dy: (null(), hidden as i64),
            offsets: null(),
            row_token: null(),
            row_weight: null(),
            w_in: Stack::dense(null(), rows_in, hidden),
            w_out: Stack::dense(null(), hidden, width),
            b_in: (null(), rows_in as i64),
            b_out: (null(), hidden as i64),
            kept: null(),
            dx_rows: null_mut(),
            dx_rows_f32: true,
            d_row_weight: null_mut(),
            d_w_in: null_mut(),
            d_w_out: null_mut(),
            d_b_in: null_mut(),
            d_b_out: null_mut(),
            gradients_f32: false,
            beta: 0.0,
            scratch: Scratch { hidden: null_mut(), d_hidden: null_mut(), activated: null_mut(), parts: null_mut() },
        }
    }

    /// Places what passes between the launches at `base`; returns how much there has to be. Inputs must be set before.
    pub fn bind(&mut self, target: Target, base: u64) -> Workspace {
        let mut carver = Carver::new(base);
        carver.end_header();
        let (rows, size) = (self.rows, between(self.storage).size());
        let again = if self.kept.is_null() { rows.saturating_mul(self.rows_in()) } else { 0 };
        self.scratch = Scratch {
            hidden: carver.take::<u8>(again.saturating_mul(hidden_type(self.storage).size())).cast(),
            d_hidden: carver.take::<u8>(rows.saturating_mul(activated_stride(self.rows_in()) * size)).cast(),
            activated: carver.take::<u8>(rows.saturating_mul(activated_stride(self.width) * size)).cast(),
            parts: carver.take(rows.saturating_mul(part_count(target, self.storage, self.width))),
        };
        Workspace { zeroed: 0, bytes: carver.used() }
    }

    /// The launches, in order. `factors` are those of forward, for what has to be computed again.
    pub fn calls(&self, target: Target, factors: Factors) -> impl Iterator<Item = Call> + use<> {
        let (storage, again) = (self.storage, self.kept.is_null().then(|| self.hidden_again()));
        let (rows, factors_of_rows) = (between(storage), factors_between(storage));
        let d_hidden = self.activated_rows(self.scratch.d_hidden, self.rows_in());
        let activated = self.activated_rows(self.scratch.activated, self.width);
        let w_in = self.weight_gradient(d_hidden, self.of_tokens(self.x), self.d_w_in);
        let w_out = self.weight_gradient(self.of_tokens(self.dy), activated, self.d_w_out);
        let b_in = self.bias_gradient(d_hidden, null(), self.d_b_in);
        let b_out = self.bias_gradient(self.of_tokens(self.dy), self.row_weight, self.d_b_out);
        again
            .into_iter()
            .flat_map(move |p| experts::calls(target, storage, factors, p))
            .chain(hidden_gradient(target, storage, self.hidden_gradient()))
            .chain(row_weight_gradient(target, storage, self.row_weight_gradient(target)))
            .chain(across(target, Operands { rows, weights: storage }, factors_of_rows, self.dx()))
            .chain(weight_gradient(target, [rows, storage], factors_of_rows, w_in))
            .chain(weight_gradient(target, [storage, rows], factors_of_rows, w_out))
            .chain((!b_in.out.is_null()).then(|| bias_gradient(target, rows, storage, b_in)).into_iter().flatten())
            .chain((!b_out.out.is_null()).then(|| bias_gradient(target, storage, storage, b_out)).into_iter().flatten())
    }

    fn rows_in(&self) -> usize {
        self.activation.rows_in(self.width)
    }

    fn hidden_f32(&self) -> i32 {
        i32::from(hidden_type(self.storage) == DType::F32)
    }

    /// What all products of rows share.
    fn product(&self, weights: Stack<*const c_void>) -> abi::GroupedGemm {
        abi::GroupedGemm {
            b: weights.at,
            b_expert_stride: weights.expert_stride,
            b_stride: weights.stride,
            offsets: self.offsets,
            rows: self.rows as i32,
            experts: self.experts as i32,
            ..Default::default()
        }
    }

    /// Forward's first product once more, for `h` alone. What it activates goes where `g·a` will replace it.
    fn hidden_again(&self) -> abi::GroupedGemm {
        abi::GroupedGemm {
            a: self.x.0,
            a_stride: self.x.1,
            a_rows: self.tokens as i32,
            row_token: self.row_token,
            bias: self.b_in.0,
            bias_stride: self.b_in.1,
            out: self.scratch.activated,
            out_stride: activated_stride(self.width) as i64,
            out_f32: i32::from(between(self.storage) == DType::F32),
            hidden: self.scratch.hidden,
            hidden_stride: self.rows_in() as i64,
            hidden_f32: self.hidden_f32(),
            depth: self.hidden as i32,
            columns: self.width as i32,
            activation: experts::activation(self.activation),
            ..self.product(self.w_in)
        }
    }

    fn hidden_gradient(&self) -> abi::HiddenGradient {
        let hidden = if self.kept.is_null() { self.scratch.hidden.cast_const() } else { self.kept };
        let product = abi::GroupedGemm {
            a: self.dy.0,
            a_stride: self.dy.1,
            a_rows: self.tokens as i32,
            row_token: self.row_token,
            out: self.scratch.d_hidden,
            out_stride: activated_stride(self.rows_in()) as i64,
            hidden: hidden.cast_mut(),
            hidden_stride: self.rows_in() as i64,
            hidden_f32: self.hidden_f32(),
            depth: self.hidden as i32,
            columns: self.width as i32,
            activation: experts::activation(self.activation),
            ..self.product(self.w_out)
        };
        abi::HiddenGradient {
            product,
            row_weight: self.row_weight,
            activated: self.scratch.activated,
            parts: self.scratch.parts,
            activated_stride: activated_stride(self.width) as i64,
        }
    }

    fn row_weight_gradient(&self, target: Target) -> abi::RowWeightGradient {
        abi::RowWeightGradient {
            parts: self.scratch.parts,
            dy: self.dy.0,
            bias: self.b_out.0,
            offsets: self.offsets,
            row_token: self.row_token,
            out: self.d_row_weight,
            dy_stride: self.dy.1,
            bias_stride: self.b_out.1,
            rows: self.rows as i32,
            tokens: self.tokens as i32,
            experts: self.experts as i32,
            width: self.hidden as i32,
            part_count: part_count(target, self.storage, self.width) as i32,
            ..Default::default()
        }
    }

    fn dx(&self) -> abi::GroupedGemm {
        abi::GroupedGemm {
            a: self.scratch.d_hidden,
            a_stride: activated_stride(self.rows_in()) as i64,
            a_rows: self.rows as i32,
            out: self.dx_rows,
            out_stride: self.hidden as i64,
            out_f32: i32::from(self.dx_rows_f32),
            depth: self.rows_in() as i32,
            columns: self.hidden as i32,
            activation: abi::ACTIVATION_NONE,
            ..self.product(self.w_in)
        }
    }

    /// Rows of `x` or `dy`, gathered by token.
    fn of_tokens(&self, (rows, stride): (*const c_void, i64)) -> abi::RoutedOperand {
        let (sources, columns) = (self.tokens as i32, self.hidden as i32);
        abi::RoutedOperand { rows, row_token: self.row_token, mask: null(), stride, sources, columns }
    }

    /// Rows that an earlier launch left, in the plan's order.
    fn activated_rows(&self, rows: *mut c_void, columns: usize) -> abi::RoutedOperand {
        let stride = activated_stride(columns) as i64;
        abi::RoutedOperand { rows, stride, sources: self.rows as i32, columns: columns as i32, ..Default::default() }
    }

    fn weight_gradient(
        &self,
        left: abi::RoutedOperand,
        right: abi::RoutedOperand,
        out: *mut c_void,
    ) -> abi::WeightGradient {
        let to = Stack::dense(out, left.columns as usize, right.columns as usize);
        abi::WeightGradient {
            left,
            right,
            offsets: self.offsets,
            out,
            out_expert_stride: to.expert_stride,
            out_stride: to.stride,
            rows: self.rows as i32,
            experts: self.experts as i32,
            share: self.rows as i32,
            out_f32: i32::from(self.gradients_f32),
            beta: self.beta,
            ..Default::default()
        }
    }

    fn bias_gradient(&self, from: abi::RoutedOperand, row_weight: *const f32, out: *mut c_void) -> abi::BiasGradient {
        abi::BiasGradient {
            from,
            row_weight,
            offsets: self.offsets,
            out,
            out_stride: i64::from(from.columns),
            rows: self.rows as i32,
            experts: self.experts as i32,
            out_f32: i32::from(self.gradients_f32),
            beta: self.beta,
        }
    }
}

/// The workspace of backward through the routed experts or the shared one of a layer, whichever needs more. `keep` is what
/// forward kept.
pub fn workspace(target: Target, config: &LayerConfig, sizes: &Sizes, storage: DType, keep: Keep) -> Workspace {
    let of = |rows, width| {
        let mut p = Backward::new(storage, config.hidden_act, [sizes.tokens, rows, sizes.hidden, width, 1]);
        if keep == Keep::Hidden {
            // Any address that is not null says that it is there.
            p.kept = std::ptr::dangling();
        }
        p.bind(target, 0)
    };
    let [routed, shared] = [of(sizes.rows, sizes.width), of(sizes.tokens, sizes.shared_width)];
    if routed.bytes > shared.bytes { routed } else { shared }
}
