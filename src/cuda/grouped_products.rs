//! The products of the way back one by one, on host tensors: what a stage does with a few of them at once, and more than it
//! asks for (sums that go on, gradients in f32 beside 16-bit weights).

#![allow(unsafe_code, reason = "addresses of device memory; each block names what it relies on")]

use crate::cuda::abi;
use crate::cuda::device::Device;
use crate::cuda::launch::experts::{Factors, Operands};
use crate::cuda::launch::gradient_products::{across, bias_gradient, weight_gradient};
use crate::cuda::stage::binder::Binder;
use crate::cuda::stage::{STORAGE, row_stride};
use crate::cuda::staged::Staged;
use crate::{DType, Result, TensorMut, TensorRef};

/// Rows, and which of them each row of a plan is.
#[derive(Clone, Copy, Debug)]
pub struct Gathered<'a> {
    /// `[sources, columns]`.
    pub rows: TensorRef<'a, 2>,
    /// `[rows]` i32 row of `rows` for each row of the plan; absent: the same.
    pub row_token: Option<TensorRef<'a, 1>>,
}

/// `out[e] = beta · out[e] + Σ left ⊗ right` over an expert's rows.
#[derive(Debug)]
pub struct WeightGradientArgs<'a> {
    /// Of the storage type, or f32.
    pub left: Gathered<'a>,
    /// Of the storage type; f32 beside a left of f16 if `factors` are TF32.
    pub right: Gathered<'a>,
    /// How f32 beside f16 is multiplied: as TF32, what it holds beyond that is cut off.
    pub factors: Factors,
    /// `[E + 1]` i32; absent: one expert has all rows.
    pub offsets: Option<TensorRef<'a, 1>>,
    /// Rows of the plan that there is room for; without `offsets`, the rows there are.
    pub rows: usize,
    /// In and out: `[E, left columns, right columns]` of the storage type or f32.
    pub out: TensorMut<'a, 3>,
    /// 0: what `out` holds is not read. 1: it is added to.
    pub beta: f32,
}

/// `out[e] = beta · out[e] + Σ weight · row` over an expert's rows.
#[derive(Debug)]
pub struct BiasGradientArgs<'a> {
    /// Of the storage type.
    pub from: Gathered<'a>,
    /// `[rows]` f32; absent: 1.
    pub row_weight: Option<TensorRef<'a, 1>>,
    /// As in [`WeightGradientArgs`].
    pub offsets: Option<TensorRef<'a, 1>>,
    /// As in [`WeightGradientArgs`].
    pub rows: usize,
    /// In and out: `[E, columns]` of the storage type or f32.
    pub out: TensorMut<'a, 2>,
    /// As in [`WeightGradientArgs`].
    pub beta: f32,
}

fn operand<D: Device>(
    binder: &mut Binder<'_, D>,
    name: &'static str,
    from: &Gathered<'_>,
) -> Result<abi::RoutedOperand> {
    let [sources, columns] = from.rows.shape();
    from.rows.expect_dtype("gradient", name, &STORAGE)?;
    Ok(abi::RoutedOperand {
        rows: binder.storage(name, &from.rows)?,
        row_token: binder.optional("row_token", &from.row_token)?,
        mask: std::ptr::null(),
        stride: row_stride(&from.rows),
        sources: sources as i32,
        columns: columns as i32,
    })
}

impl<D: Device> Staged<D> {
    /// One launch: the gradient of a weight.
    ///
    /// # Errors
    /// Shapes and types that do not fit, and the device's.
    pub fn weight_gradient(&self, args: WeightGradientArgs<'_>) -> Result<()> {
        let op = "gradient";
        let types = [args.left.rows.dtype(), args.right.rows.dtype()];
        let storage =
            if types == [DType::F16, DType::F32] && args.factors == Factors::Tf32 { types[0] } else { types[1] };
        args.left.rows.expect_dtype(op, "left", &[storage, DType::F32])?;
        let experts = args.offsets.map_or(1, |offsets| offsets.shape()[0].saturating_sub(1));
        let [m, n] = [&args.left, &args.right].map(|from| from.rows.shape()[1]);
        args.out.expect_shape(op, "out", [experts, m, n])?;
        args.out.expect_dtype(op, "out", &[storage, DType::F32])?;
        let mut binder = self.binder(op);
        let (left_rows, right_rows) =
            (operand(&mut binder, "left", &args.left)?, operand(&mut binder, "right", &args.right)?);
        let offsets = binder.optional("offsets", &args.offsets)?;
        let out_f32 = i32::from(args.out.dtype() == DType::F32);
        let out = binder.storage_in_out("out", args.out, args.beta)?;
        let p = abi::WeightGradient {
            left: left_rows,
            right: right_rows,
            offsets,
            out: out.address(),
            out_expert_stride: (m * n) as i64,
            out_stride: n as i64,
            rows: args.rows as i32,
            experts: experts as i32,
            share: args.rows as i32,
            out_f32,
            beta: args.beta,
            ..Default::default()
        };
        // SAFETY: every address is of an allocation as large as the tensor it stands for.
        unsafe { binder.run(weight_gradient(binder.target(), types, args.factors, p)) }?;
        binder.take(out).map(drop)
    }

    /// One launch: the gradient of a bias.
    ///
    /// # Errors
    /// Shapes and types that do not fit, and the device's.
    pub fn bias_gradient(&self, args: BiasGradientArgs<'_>) -> Result<()> {
        let op = "gradient";
        let storage = args.from.rows.dtype();
        let experts = args.offsets.map_or(1, |offsets| offsets.shape()[0].saturating_sub(1));
        let columns = args.from.rows.shape()[1];
        args.out.expect_shape(op, "out", [experts, columns])?;
        args.out.expect_dtype(op, "out", &[storage, DType::F32])?;
        let mut binder = self.binder(op);
        let from = operand(&mut binder, "rows", &args.from)?;
        let offsets = binder.optional("offsets", &args.offsets)?;
        let row_weight = binder.optional("row_weight", &args.row_weight)?;
        let out_f32 = i32::from(args.out.dtype() == DType::F32);
        let out = binder.storage_in_out("out", args.out, args.beta)?;
        let p = abi::BiasGradient {
            from,
            row_weight,
            offsets,
            out: out.address(),
            out_stride: columns as i64,
            rows: args.rows as i32,
            experts: experts as i32,
            out_f32,
            beta: args.beta,
        };
        // SAFETY: every address is of an allocation as large as the tensor it stands for.
        unsafe { binder.run(bias_gradient(binder.target(), storage, storage, p)) }?;
        binder.take(out).map(drop)
    }

    /// One launch: `out = a B` of one group, in f32; `b` is `[depth, columns]`, and `a` of its type or f32. `factors` are as in
    /// [`WeightGradientArgs`].
    ///
    /// # Errors
    /// Shapes and types that do not fit, and the device's.
    pub fn rows_by_weights(
        &self,
        a: TensorRef<'_, 2>,
        b: TensorRef<'_, 2>,
        factors: Factors,
        out: TensorMut<'_, 2>,
    ) -> Result<()> {
        let op = "rows_by_weights";
        let ([rows, depth], [_, columns]) = (a.shape(), b.shape());
        b.expect_dtype(op, "b", &STORAGE)?;
        b.expect_shape(op, "b", [depth, columns])?;
        a.expect_dtype(op, "a", &[b.dtype(), DType::F32])?;
        out.expect_shape(op, "out", [rows, columns])?;
        let mut binder = self.binder(op);
        let out = binder.output::<f32, 2>("out", out)?;
        let p = abi::GroupedGemm {
            a: binder.storage("a", &a)?,
            b: binder.storage("b", &b)?,
            out: out.address().cast(),
            a_stride: row_stride(&a),
            b_stride: row_stride(&b),
            out_stride: columns as i64,
            rows: rows as i32,
            a_rows: rows as i32,
            experts: 1,
            depth: depth as i32,
            columns: columns as i32,
            activation: abi::ACTIVATION_NONE,
            out_f32: 1,
            ..Default::default()
        };
        let operands = Operands { rows: a.dtype(), weights: b.dtype() };
        // SAFETY: every address is of an allocation as large as the tensor it stands for.
        unsafe { binder.run(across(binder.target(), operands, factors, p)) }?;
        binder.take(out).map(drop)
    }
}
