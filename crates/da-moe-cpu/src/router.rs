//! SPEC §3: the router product `z = x W_rᵀ`, accumulated and returned in f32; and the selection bias that follows the load.

use crate::gemm::{gather, times_transposed};
use crate::scratch;
use crate::views::{Rows, by_storage, output, rows, vector};
use da_moe_core::{BiasUpdate, Result, RouterArgs, Storage, TensorMut, TensorRef};
use rayon::prelude::*;

/// Tokens that one task takes.
const CHUNK: usize = 128;

pub(crate) fn forward(args: RouterArgs<'_>) -> Result<()> {
    args.check()?;
    let op = "router";
    let logits = output::<f32, 2>(op, "logits", args.logits)?;
    by_storage!(op, "x", args.x.dtype(), S => {
        let x = rows::<S>(op, "x", &args.x)?;
        by_storage!(op, "router.weight", args.weight.dtype(), W => {
            product(x, rows::<W>(op, "router.weight", &args.weight)?, args.weight.shape()[0], logits);
            Ok(())
        })
    })
}

fn product<S: Storage, W: Storage>(x: Rows<'_, S>, weight: Rows<'_, W>, candidates: usize, logits: &mut [f32]) {
    logits.par_chunks_mut(CHUNK * candidates).enumerate().for_each(|(chunk, logits)| {
        let (first, count) = (chunk * CHUNK, logits.len() / candidates);
        scratch::with([count * x.cols], |[tokens]| {
            gather(x, first..first + count, 0, x.cols, tokens);
            times_transposed(logits, tokens, count, weight, candidates);
        });
    });
}

pub(crate) fn update_bias(update: BiasUpdate, load: TensorRef<'_, 1>, bias: TensorMut<'_, 1>) -> Result<()> {
    let op = "update_bias";
    let load: &[i32] = vector(op, "load", &load)?;
    let bias = output::<f32, 1>(op, "router.bias", bias)?;
    let mean = load.iter().map(|&count| f64::from(count)).sum::<f64>() / load.len().max(1) as f64;
    if mean == 0.0 {
        return Ok(());
    }
    for (bias, &count) in bias.iter_mut().zip(load) {
        let lack = mean - f64::from(count);
        *bias += match update {
            BiasUpdate::Sign { .. } if lack == 0.0 => 0.0,
            BiasUpdate::Sign { rate } => rate * lack.signum() as f32,
            BiasUpdate::Proportional { rate } => rate * (lack / mean) as f32,
        };
    }
    Ok(())
}
