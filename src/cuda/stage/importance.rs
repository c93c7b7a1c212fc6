//! Stage 1.

#![allow(unsafe_code, reason = "addresses of device memory; each block names what it relies on")]

use super::row_stride;
use crate::cuda::abi;
use crate::cuda::device::Device;
use crate::cuda::launch::attention;
use crate::cuda::launch::importance;
use crate::cuda::stage::binder::Binder;
use crate::{Attention, ImportanceArgs, Result, Source};

pub(in crate::cuda) fn importance<D: Device>(binder: &mut Binder<'_, D>, args: ImportanceArgs<'_>) -> Result<()> {
    args.check()?;
    let Some(config) = args.config else {
        let out = binder.output::<f32, 1>("importance", args.importance)?;
        binder.zero(&out)?;
        return binder.take(out).map(drop);
    };
    let attention = args.attention.as_ref().filter(|_| reads_attention(&config.source));
    let attention = attention.map(|attention| attention_on(binder, attention)).transpose()?;
    let state = binder.in_out("state", args.state)?;
    let out = binder.output("importance", args.importance)?;
    let tensors = importance::Tensors {
        tokens: args.logits.shape()[0],
        // Tokens that are in no sequence are in one: that there are none is for the contents to say.
        sequences: args.cu_seqlens.map_or(1, |bounds| (bounds.shape()[0] - 1).max(1)),
        cu_seqlens: binder.optional("cu_seqlens", &args.cu_seqlens)?,
        mask: binder.optional("mask", &args.mask)?,
        attention,
        external: binder.optional("external", &args.external)?,
        token_ids: binder.optional("token_ids", &args.token_ids)?,
        token_frequency: binder.optional("token_frequency", &args.token_frequency)?,
        vocabulary: args.token_frequency.map_or(0, |table| table.shape()[0]),
        logits: binder.input("logits", &args.logits)?,
        logits_stride: row_stride(&args.logits) as usize,
        candidates: args.logits.shape()[1],
        experts: args.experts,
        state: state.address(),
        training: args.training,
        importance: out.address(),
    };
    let target = binder.target();
    let workspace = binder.workspace(importance::workspace(target, &tensors))?;
    // SAFETY: every address above is of an allocation as large as the tensor that was checked.
    importance::calls(target, config, &tensors, workspace, |call| unsafe { binder.run([call]) })?;
    binder.take(state)?;
    binder.take(out).map(drop)
}

/// Whether any part of a source is read off attention.
fn reads_attention(source: &Source) -> bool {
    match source {
        Source::Attention { .. } => true,
        Source::Mix(parts) => parts.iter().any(|part| reads_attention(&part.source)),
        _ => false,
    }
}

/// What attention sources read, on the device.
fn attention_on<D: Device>(binder: &mut Binder<'_, D>, from: &Attention<'_>) -> Result<attention::Attention> {
    match from {
        Attention::Probabilities(p) => {
            let ([sequences, heads, side, _], strides) = (p.shape(), p.strides());
            let matrix = abi::ImportanceProbabilities {
                probabilities: binder.storage("attn_probs", p)?,
                sequence_stride: strides[0] as i64,
                head_stride: strides[1] as i64,
                row_stride: strides[2] as i64,
                side: if sequences > 0 { side as i32 } else { 0 },
                ..Default::default()
            };
            Ok(attention::Attention::Probabilities(attention::Probabilities { dtype: p.dtype(), heads, matrix }))
        }
        Attention::QueryKey { q, k, lse } => {
            let ([_, heads, width], [_, key_heads, _]) = (q.shape(), k.shape());
            let tensors = abi::ImportanceQueryKey {
                q: binder.storage("q", q)?,
                q_token_stride: q.strides()[0] as i64,
                q_head_stride: q.strides()[1] as i64,
                k: binder.storage("k", k)?,
                k_token_stride: k.strides()[0] as i64,
                k_head_stride: k.strides()[1] as i64,
                lse: binder.optional("lse", lse)?,
                lse_stride: lse.as_ref().map_or(0, row_stride),
                width: width as i32,
                ..Default::default()
            };
            Ok(attention::Attention::QueryKey(attention::QueryKey { dtype: q.dtype(), heads, key_heads, tensors }))
        }
    }
}
