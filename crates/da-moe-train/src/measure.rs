//! The library's importance by itself, outside of a layer: ranks are made of it before a layer is handed them.

use crate::tokens::Tokens;
use candle_core::{Error, Result, Tensor};
use da_moe::{
    Attention, Backend, Buffer, Cpu, DType, ImportanceArgs, Keep, LayerConfig, STATE_LEN, Sizes, TensorMut, TensorRef,
};

/// `I[T]` as `layer` measures it from queries and keys `[B, S, H, dh]`. On the host: ranks are made there.
pub(crate) fn importance(layer: &LayerConfig, [queries, keys]: [&Tensor; 2], tokens: &Tokens) -> Result<Vec<f32>> {
    let (_, _, heads, width) = queries.dims4()?;
    let [queries, keys] = [queries, keys].map(|tensor| tensor.flatten_all()?.to_vec1::<f32>());
    let mut importance = vec![0.0f32; tokens.host_ids.len()];
    measure(layer, [&queries?, &keys?], [heads, width], tokens, &mut importance).map_err(Error::wrap)?;
    Ok(importance)
}

fn measure(
    layer: &LayerConfig,
    [queries, keys]: [&[f32]; 2],
    [heads, width]: [usize; 2],
    tokens: &Tokens,
    importance: &mut [f32],
) -> da_moe::Result<()> {
    let cpu = Cpu::new();
    let count = importance.len();
    let bounds: Vec<i32> = (0..=count / tokens.length).map(|sequence| (sequence * tokens.length) as i32).collect();
    let present: Option<Vec<u8>> =
        tokens.host_present.as_ref().map(|present| present.iter().map(|&there| u8::from(there)).collect());
    let sizes = Sizes::new(layer, count)?;
    let room = cpu.stage_scratch(&sizes, Keep::Nothing);
    let mut scratch = Buffer::zeros(DType::F32, room);
    let mut carried = [0.0f32; STATE_LEN];
    let logits = vec![0.0f32; count];
    let heads = [count, heads, width];
    cpu.importance(
        &(),
        ImportanceArgs {
            config: Some(&layer.importance),
            cu_seqlens: Some(TensorRef::new(&bounds, [bounds.len()])?),
            mask: present.as_ref().map(|present| TensorRef::new(present, [count])).transpose()?,
            attention: Some(Attention::query_key(TensorRef::new(queries, heads)?, TensorRef::new(keys, heads)?)),
            external: None,
            token_ids: None,
            token_frequency: None,
            logits: TensorRef::new(&logits, [count, 1])?,
            experts: 1,
            state: TensorMut::new(&mut carried[..], [STATE_LEN])?,
            training: false,
            scratch: TensorMut::new(&mut scratch, [room])?,
            importance: TensorMut::new(importance, [count])?,
        },
    )
}
