//! The launches of a backward call, as [`launches`](super::launches) has those of forward. Forward kept the hidden rows.

use super::launches::ADDRESS;
use da_moe::cuda::launch::experts::{Factors, Operands};
use da_moe::cuda::launch::experts_backward::{Backward, Stack};
use da_moe::cuda::launch::{combine_backward, gate_backward, gradient_products, permute_backward};
use da_moe::cuda::{Call, Target, abi, row_type};
use da_moe::{DType, LayerConfig};
use std::ffi::c_void;
use std::ptr::{without_provenance, without_provenance_mut};

/// Every launch with its stage, in order.
pub(super) fn backward(
    config: &LayerConfig,
    tokens: usize,
    storage: DType,
    target: Target,
) -> Vec<(&'static str, Call)> {
    let of_nulls = combine_backward::calls(target, storage, nulls(config, tokens));
    let of_experts = experts(target, config, tokens, storage).calls(target, Default::default());
    let to_tokens = permute_backward::calls(target, storage, row_type(storage), sum(config, tokens));
    let (d_weight, product) = router(config, tokens);
    let operands = Operands { rows: DType::F32, weights: storage };
    let of_gate = gate_backward::calls(target, gate_backward::parameters(config, tokens, 1.0))
        .chain(gradient_products::divided_weight_gradient(target, storage, d_weight, without_provenance_mut(ADDRESS)))
        .chain(gradient_products::across(target, operands, Factors::F32, product))
        .chain(gate_backward::dx_calls(target, storage, dx(config, tokens)));
    let stages = [
        of_nulls.map(|call| ("combine", call)).collect::<Vec<_>>(),
        of_experts.map(|call| ("experts", call)).collect(),
        to_tokens.map(|call| ("permute", call)).collect(),
        of_gate.map(|call| ("gate", call)).collect(),
    ];
    stages.into_iter().flatten().collect()
}

fn nulls(config: &LayerConfig, tokens: usize) -> abi::CombineBackward {
    let width = config.hidden_size as i64;
    abi::CombineBackward {
        x_stride: width,
        dy_stride: width,
        tokens: tokens as i32,
        width: width as i32,
        slots: config.k_max() as i32,
        routed: config.num_experts as i32,
        null_kind: abi::NULL_ZERO,
        ..Default::default()
    }
}

fn experts(target: Target, config: &LayerConfig, tokens: usize, storage: DType) -> Backward {
    let (hidden, width, count) = (config.hidden_size, config.moe_intermediate_size, config.num_experts);
    let rows = tokens * config.k_max();
    let there = without_provenance::<c_void>(ADDRESS);
    let mut p = Backward::new(storage, config.hidden_act, [tokens, rows, hidden, width, count]);
    (p.x.0, p.dy.0, p.kept) = (there, there, there);
    (p.offsets, p.row_token, p.row_weight) =
        (without_provenance(ADDRESS), without_provenance(ADDRESS), without_provenance(ADDRESS));
    p.w_in = Stack { at: there, ..p.w_in };
    p.w_out = Stack { at: there, ..p.w_out };
    (p.dx_rows, p.d_row_weight) = (without_provenance_mut(ADDRESS), without_provenance_mut(ADDRESS));
    (p.d_w_in, p.d_w_out) = (without_provenance_mut(ADDRESS), without_provenance_mut(ADDRESS));
    p.dx_rows_f32 = row_type(storage) == DType::F32;
    p.bind(target, ADDRESS as u64);
    p
}

fn sum(config: &LayerConfig, tokens: usize) -> abi::PermuteBackward {
    let width = config.hidden_size as i64;
    abi::PermuteBackward {
        dx_rows_stride: width,
        dy_stride: width,
        tokens: tokens as i32,
        width: width as i32,
        slots: config.k_max() as i32,
        routed: config.num_experts as i32,
        null_kind: abi::NULL_ZERO,
        row_count: (tokens * config.k_max()) as i32,
        ..Default::default()
    }
}

/// `dW_r = dzᵀ x` and `dz W_r`.
fn router(config: &LayerConfig, tokens: usize) -> (abi::WeightGradient, abi::GroupedGemm) {
    let (width, candidates) = (config.hidden_size, config.candidates());
    let of = |columns: usize| abi::RoutedOperand {
        rows: without_provenance(ADDRESS),
        stride: columns as i64,
        sources: tokens as i32,
        columns: columns as i32,
        ..Default::default()
    };
    let gradient = abi::WeightGradient {
        left: of(candidates),
        right: of(width),
        out_expert_stride: (candidates * width) as i64,
        out_stride: width as i64,
        rows: tokens as i32,
        experts: 1,
        ..Default::default()
    };
    let product = abi::GroupedGemm {
        a: without_provenance(ADDRESS),
        b: without_provenance(ADDRESS),
        a_stride: candidates as i64,
        b_stride: width as i64,
        out_stride: width as i64,
        rows: tokens as i32,
        a_rows: tokens as i32,
        experts: 1,
        depth: candidates as i32,
        columns: width as i32,
        activation: abi::ACTIVATION_NONE,
        out_f32: 1,
        ..Default::default()
    };
    (gradient, product)
}

fn dx(config: &LayerConfig, tokens: usize) -> abi::GateDx {
    let width = config.hidden_size as i64;
    abi::GateDx {
        dx_rows_stride: width,
        of_router: without_provenance(ADDRESS),
        of_router_stride: width,
        tokens: tokens as i32,
        width: width as i32,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backward_call_takes_twelve_launches() {
        let config = LayerConfig::da_moe(2048, 768, 128, 8);
        let all = backward(&config, 32768, DType::Bf16, Target::H100);
        let kernels: Vec<_> = all.iter().map(|(stage, call)| (*stage, call.launch.kernel)).collect();
        let expected = [
            ("combine", "combine_backward_bf16_wide"),
            ("experts", "grouped_gemm_bf16_dh_gated_hopper"),
            ("experts", "row_weight_gradient_bf16"),
            ("experts", "grouped_gemm_bf16_nn_hopper"),
            ("experts", "grouped_gemm_bf16_tn_turned_hopper"),
            ("experts", "grouped_gemm_bf16_tn_hopper"),
            ("permute", "permute_backward_bf16_wide"),
            ("gate", "gate_backward_128"),
            ("gate", "grouped_gemm_f32_tn_bf16_rows"),
            ("gate", "weight_gradient_sum_bf16"),
            ("gate", "grouped_gemm_f32_nn_bf16_weights"),
            ("gate", "gate_dx_bf16_wide"),
        ];
        assert_eq!(kernels, expected);
    }
}
