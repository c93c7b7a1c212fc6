//! Stage 2, its product.

#![allow(unsafe_code, reason = "addresses of device memory; each block names what it relies on")]

use super::{STORAGE, row_stride};
use crate::cuda::abi;
use crate::cuda::device::Device;
use crate::cuda::launch::experts;
use crate::cuda::stage::binder::Binder;
use crate::{DType, Result, RouterArgs};

pub(in crate::cuda) fn router<D: Device>(binder: &mut Binder<'_, D>, args: RouterArgs<'_>) -> Result<()> {
    args.check()?;
    let operands = experts::Operands { rows: args.x.dtype(), weights: args.weight.dtype() };
    args.x.expect_dtype("router", "x", &STORAGE)?;
    args.weight.expect_dtype("router", "router.weight", &[operands.rows, DType::F32])?;
    let ([tokens, width], [candidates, _]) = (args.x.shape(), args.weight.shape());
    let logits = binder.output::<f32, 2>("logits", args.logits)?;
    let p = abi::GroupedGemm {
        a: binder.storage("x", &args.x)?,
        b: binder.storage("router.weight", &args.weight)?,
        out: logits.address().cast(),
        a_stride: row_stride(&args.x),
        b_stride: row_stride(&args.weight),
        out_stride: candidates as i64,
        rows: tokens as i32,
        a_rows: tokens as i32,
        experts: 1,
        depth: width as i32,
        columns: candidates as i32,
        activation: abi::ACTIVATION_NONE,
        out_f32: 1,
        ..Default::default()
    };
    // SAFETY: every address is of an allocation as large as the tensor it stands for.
    unsafe { binder.run(experts::calls(binder.target(), operands, experts::Factors::F32, p)) }?;
    binder.take(logits).map(drop)
}
