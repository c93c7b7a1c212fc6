//! The launches of a forward call, as the library chooses them from sizes and types. Nothing is launched: addresses stand
//! for tensors that start where allocations do.

use crate::Result;
use da_moe::cuda::launch::attention::{Attention, QueryKey};
use da_moe::cuda::launch::experts::{self, Factors};
use da_moe::cuda::launch::importance::{self, Tensors};
use da_moe::cuda::launch::{combine, gate, permute};
use da_moe::cuda::{Call, Target, abi, row_type};
use da_moe::{DType, LayerConfig};
use std::ptr::{null, null_mut, without_provenance, without_provenance_mut};

/// Width of an attention head; there are D / 128.
pub(super) const HEAD_WIDTH: usize = 128;
/// Tokens of a sequence, but of the last.
pub(super) const SEQUENCE: usize = 4096;

/// Aligned as allocations are.
pub(super) const ADDRESS: usize = 256;

/// Heads of the attention that importance is read off.
pub(super) fn heads(config: &LayerConfig) -> usize {
    (config.hidden_size / HEAD_WIDTH).max(1)
}

/// Pairs of query and key of one head, over all sequences.
pub(super) fn pairs(tokens: usize) -> f64 {
    let square = |length: usize| length as f64 * length as f64;
    (tokens / SEQUENCE) as f64 * square(SEQUENCE) + square(tokens % SEQUENCE)
}

/// Every launch with its stage. The router's product belongs to the gate, as in `bench`.
pub(super) fn forward(
    config: &LayerConfig,
    tokens: usize,
    storage: DType,
    target: Target,
) -> Result<Vec<(&'static str, Call)>> {
    let mut all = Vec::new();
    let product = |p| experts::calls(target, storage, Factors::default(), p);
    all.extend(product(router(config, tokens)).map(|call| ("gate", call)));
    let tensors = importance_tensors(config, tokens, storage);
    importance::calls(target, &config.importance, &tensors, ADDRESS as u64, |call| {
        all.push(("importance", call));
        Ok(())
    })?;
    all.extend(gate::calls(target, gate::parameters(config, tokens, true)).map(|call| ("gate", call)));
    all.extend(permute::calls(target, permute::parameters(config, tokens)).map(|call| ("permute", call)));
    let rows = row_type(storage);
    for p in [up(config, tokens), down(config, tokens, rows)] {
        all.extend(product(p).map(|call| ("experts", call)));
    }
    all.extend(combine::calls(target, storage, rows, sum(config, tokens)).map(|call| ("combine", call)));
    // By stage, in the order of the specification; launches of a stage stay in theirs.
    let order = ["importance", "gate", "permute", "experts", "combine"];
    all.sort_by_key(|(stage, _)| order.iter().position(|known| known == stage));
    Ok(all)
}

fn router(config: &LayerConfig, tokens: usize) -> abi::GroupedGemm {
    let (width, candidates) = (config.hidden_size as i64, config.candidates());
    abi::GroupedGemm {
        a: without_provenance(ADDRESS),
        b: without_provenance(ADDRESS),
        a_stride: width,
        b_stride: width,
        out_stride: candidates as i64,
        rows: tokens as i32,
        a_rows: tokens as i32,
        experts: 1,
        depth: width as i32,
        columns: candidates as i32,
        activation: abi::ACTIVATION_NONE,
        out_f32: 1,
        ..Default::default()
    }
}

/// What importance reads. Which attention there is, is decided here: queries and keys with the log-sum-exp that attention
/// kernels leave; without it there would be one more walk over them.
fn importance_tensors(config: &LayerConfig, tokens: usize, storage: DType) -> Tensors {
    let heads = heads(config);
    let (token, head) = ((heads * HEAD_WIDTH) as i64, HEAD_WIDTH as i64);
    let query_key = abi::ImportanceQueryKey {
        q: without_provenance(ADDRESS),
        q_token_stride: token,
        q_head_stride: head,
        k: without_provenance(ADDRESS),
        k_token_stride: token,
        k_head_stride: head,
        lse: without_provenance(ADDRESS),
        lse_stride: tokens as i64,
        width: HEAD_WIDTH as i32,
        ..Default::default()
    };
    Tensors {
        tokens,
        sequences: tokens.div_ceil(SEQUENCE),
        cu_seqlens: if tokens > SEQUENCE { without_provenance(ADDRESS) } else { null() },
        mask: null(),
        attention: Some(Attention::QueryKey(QueryKey { dtype: storage, heads, key_heads: heads, tensors: query_key })),
        external: null(),
        token_ids: null(),
        token_frequency: null(),
        vocabulary: 0,
        logits: without_provenance(ADDRESS),
        logits_stride: config.candidates(),
        candidates: config.candidates(),
        experts: config.num_experts,
        state: null_mut(),
        training: true,
        importance: without_provenance_mut(ADDRESS),
    }
}

/// What both products of the experts share: all routed rows, which there is room for to the last.
fn grouped(config: &LayerConfig, tokens: usize) -> abi::GroupedGemm {
    abi::GroupedGemm {
        a: without_provenance(ADDRESS),
        b: without_provenance(ADDRESS),
        offsets: without_provenance(ADDRESS),
        rows: (tokens * config.k_max()) as i32,
        experts: config.num_experts as i32,
        ..Default::default()
    }
}

fn up(config: &LayerConfig, tokens: usize) -> abi::GroupedGemm {
    let (hidden, width) = (config.hidden_size, config.moe_intermediate_size);
    abi::GroupedGemm {
        row_token: without_provenance(ADDRESS),
        a_stride: hidden as i64,
        b_stride: hidden as i64,
        b_expert_stride: (config.rows_in() * hidden) as i64,
        out_stride: experts::activated_stride(width) as i64,
        a_rows: tokens as i32,
        depth: hidden as i32,
        columns: width as i32,
        activation: experts::activation(config.hidden_act),
        ..grouped(config, tokens)
    }
}

fn down(config: &LayerConfig, tokens: usize, rows: DType) -> abi::GroupedGemm {
    let (hidden, width) = (config.hidden_size, config.moe_intermediate_size);
    abi::GroupedGemm {
        a_stride: experts::activated_stride(width) as i64,
        b_stride: width as i64,
        b_expert_stride: (hidden * width) as i64,
        out_stride: hidden as i64,
        a_rows: (tokens * config.k_max()) as i32,
        depth: width as i32,
        columns: hidden as i32,
        activation: abi::ACTIVATION_NONE,
        out_f32: i32::from(rows == DType::F32),
        ..grouped(config, tokens)
    }
}

fn sum(config: &LayerConfig, tokens: usize) -> abi::Combine {
    let width = config.hidden_size as i64;
    abi::Combine {
        x_stride: width,
        rows_stride: width,
        tokens: tokens as i32,
        width: width as i32,
        slots: config.k_max() as i32,
        routed: config.num_experts as i32,
        nulls: i32::MAX,
        null_kind: abi::NULL_ZERO,
        row_count: (tokens * config.k_max()) as i32,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forward_call_takes_ten_launches() {
        let config = LayerConfig::da_moe(2048, 768, 128, 8);
        let all = forward(&config, 32768, DType::Bf16, Target::H100).unwrap();
        let kernels: Vec<_> = all.iter().map(|(stage, call)| (*stage, call.launch.kernel)).collect();
        let expected = [
            ("importance", "importance_query_key_bf16_128"),
            ("importance", "importance_reduce"),
            ("importance", "importance_normalize"),
            ("gate", "grouped_gemm_bf16_plain_packed_hopper"),
            ("gate", "gate_128"),
            ("permute", "permute_count"),
            ("permute", "permute_scatter"),
            ("experts", "grouped_gemm_bf16_gated_gathered_hopper"),
            ("experts", "grouped_gemm_bf16_plain_packed_hopper"),
            ("combine", "combine_bf16_wide"),
        ];
        assert_eq!(kernels, expected);
    }

    #[test]
    fn sequences_end_after_4096_tokens() {
        assert_eq!(pairs(64), 4096.0);
        assert_eq!(pairs(2 * SEQUENCE), 2.0 * 4096.0 * 4096.0);
        assert_eq!(pairs(SEQUENCE + 3), 4096.0 * 4096.0 + 9.0);
    }
}
