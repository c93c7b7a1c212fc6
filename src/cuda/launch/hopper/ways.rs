//! Other ways in which a product may be run, for who measures (`kernels/experts/hopper/kind.cuh`).

use crate::cuda::abi;
use crate::cuda::device::{Call, Launch};

/// Another way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Telling where its clocks go: `[blocks, HOPPER_CLOCKS]` i64 at this address.
    Clocked(u64),
    /// Without clusters: a block has a unit, and fetches all of its weights.
    Alone,
    /// The second warpgroup a step behind the first.
    Skewed,
}

/// The same call in another way, if there is a kernel for it.
pub fn in_another_way(call: &Call, way: Way) -> Option<Call> {
    let (kernel, cluster, clocks) = match (way, call.launch.kernel) {
        (Way::Clocked(clocks), kernel) => (clocked(kernel)?, call.launch.cluster, clocks),
        (Way::Alone, "grouped_gemm_bf16_gated_gathered_hopper") => {
            ("grouped_gemm_bf16_gated_gathered_hopper_alone", 1, 0)
        }
        (Way::Alone, "grouped_gemm_bf16_plain_packed_hopper") => ("grouped_gemm_bf16_plain_packed_hopper_alone", 1, 0),
        (Way::Skewed, "grouped_gemm_bf16_gated_gathered_hopper") => {
            ("grouped_gemm_bf16_gated_gathered_hopper_skewed", call.launch.cluster, 0)
        }
        (Way::Skewed, "grouped_gemm_bf16_plain_packed_hopper") => {
            ("grouped_gemm_bf16_plain_packed_hopper_skewed", call.launch.cluster, 0)
        }
        _ => return None,
    };
    let (launch, clocks) = (Launch { kernel, cluster, ..call.launch }, clocks as *mut i64);
    let (gemm, hidden, weight) = (call.parameters(), call.parameters(), call.parameters());
    let gemm =
        gemm.map(|p: &abi::HopperGemm| Call::with_maps(launch, abi::HopperGemm { clocks, ..*p }, call.all_maps()));
    let hidden = hidden.map(|p: &abi::HopperHiddenGradient| {
        Call::with_maps(launch, abi::HopperHiddenGradient { clocks, ..*p }, call.all_maps())
    });
    let weight = weight.map(|p: &abi::HopperWeightGradient| {
        Call::with_maps(launch, abi::HopperWeightGradient { clocks, ..*p }, call.all_maps())
    });
    gemm.or(hidden).or(weight)
}

fn clocked(kernel: &str) -> Option<&'static str> {
    Some(match kernel {
        "grouped_gemm_bf16_gated_gathered_hopper" => "grouped_gemm_bf16_gated_gathered_hopper_clocked",
        "grouped_gemm_bf16_plain_packed_hopper" => "grouped_gemm_bf16_plain_packed_hopper_clocked",
        "grouped_gemm_bf16_dh_plain_hopper" => "grouped_gemm_bf16_dh_plain_hopper_clocked",
        "grouped_gemm_bf16_dh_gated_hopper" => "grouped_gemm_bf16_dh_gated_hopper_clocked",
        "grouped_gemm_bf16_nn_hopper" => "grouped_gemm_bf16_nn_hopper_clocked",
        "grouped_gemm_bf16_tn_hopper" => "grouped_gemm_bf16_tn_hopper_clocked",
        "grouped_gemm_bf16_tn_turned_hopper" => "grouped_gemm_bf16_tn_turned_hopper_clocked",
        _ => return None,
    })
}
