//! Which kernels go from weights back to logits and put `dx` together, and with how many threads
//! (`kernels/gate/gate_backward.cu`, `kernels/gate/gate_dx.cu`).

use crate::cuda::abi;
use crate::cuda::cost::{Contents, Work, element_size};
use crate::cuda::device::workspace::Workspace;
use crate::cuda::device::{Call, Launch, Parameters, Target};
use crate::cuda::launch::gate;
use crate::cuda::launch::gradient_products::parts;
use crate::cuda::launch::vectorized::{self, are_aligned, are_whole, of_type};
use crate::{DType, LayerConfig, Sizes};

/// Everything but pointers over `tokens` tokens, the losses' gradients times `loss_scale`; all rows are dense.
pub fn parameters(config: &LayerConfig, tokens: usize, loss_scale: f32) -> abi::GateBackward {
    let (candidates, slots) = (config.candidates(), config.k_max());
    let loss_scale = f64::from(loss_scale);
    abi::GateBackward {
        logits_stride: candidates as i64,
        experts_stride: slots as i64,
        ranked_stride: slots as i64,
        d_weights_stride: slots as i64,
        balance: loss_scale * config.losses.balance * config.num_experts as f64,
        tokens: tokens as i32,
        candidates: candidates as i32,
        slots: slots as i32,
        scoring: gate::scoring(config),
        divisor: gate::divisor(config),
        routed_scaling: config.router.routed_scaling as f32,
        z: (loss_scale * config.losses.z) as f32,
        tokens_per_warp: gate::tokens_per_warp(tokens) as i32,
        ..Default::default()
    }
}

/// One launch; none without tokens.
pub fn calls(_: Target, p: abi::GateBackward) -> impl Iterator<Item = Call> {
    let kernels =
        ["gate_backward_32", "gate_backward_64", "gate_backward_128", "gate_backward_256", "gate_backward_512"];
    let blocks = gate::grid(p.tokens, p.tokens_per_warp);
    let launch = Launch::linear(gate::of_size(kernels, p.candidates), blocks, gate::THREADS);
    (p.tokens > 0).then(|| Call::new(launch, p)).into_iter()
}

/// The one launch that rounds `dx` to `storage`; none where there is nothing to write.
pub fn dx_calls(_: Target, storage: DType, p: abi::GateDx) -> impl Iterator<Item = Call> {
    let is_wide = are_whole(storage, [i64::from(p.width)])
        && are_whole(DType::F32, [p.dx_rows_stride, p.of_router_stride])
        && are_aligned([p.dx_rows as usize, p.of_router as usize, p.dx as usize]);
    let vector = if is_wide { vectorized::wide(storage) } else { 1 };
    let launch = vectorized::launch(of_type(DX, storage, is_wide), p.tokens, p.width, vector);
    (p.tokens > 0 && p.width > 0).then(|| Call::new(launch, p)).into_iter()
}

const DX: [[&str; 2]; 3] =
    [["gate_dx_f32", "gate_dx_f32_wide"], ["gate_dx_bf16", "gate_dx_bf16_wide"], ["gate_dx_f16", "gate_dx_f16_wide"]];

/// Room for the router's part of `dx`, and for the parts of its gradient.
pub fn workspace(target: Target, sizes: &Sizes) -> Workspace {
    let rows = sizes.tokens.saturating_mul(sizes.hidden);
    let elements = rows.saturating_add(parts(target, sizes.tokens, [sizes.candidates, sizes.hidden]));
    Workspace::scratch(elements.saturating_mul(size_of::<f32>()).saturating_add(2 * 256))
}

impl Parameters for abi::GateBackward {
    fn work(&self, launch: &Launch, _: &Contents) -> Work {
        let reads = if self.divisor == abi::DIVISOR_CANDIDATES { 12.0 } else { 8.0 };
        let of_token = 8.0 * f64::from(self.candidates) + reads * f64::from(self.slots);
        Work::moved(f64::from(self.tokens) * of_token, launch.blocks())
    }
}

impl Parameters for abi::GateDx {
    fn work(&self, launch: &Launch, _: &Contents) -> Work {
        let reads = if self.of_router.is_null() { 4.0 } else { 8.0 };
        let of_element = reads + element_size(launch.kernel);
        Work::moved(f64::from(self.tokens) * f64::from(self.width) * of_element, launch.blocks())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_choose_the_kernel_and_tokens_the_blocks() {
        let launch = |candidates, tokens| {
            let config = LayerConfig::da_moe(64, 64, candidates, 4);
            calls(Target::H100, parameters(&config, tokens, 1.0))
                .next()
                .map(|call| (call.launch.kernel, call.launch.grid[0]))
        };
        assert_eq!(launch(32, 9), Some(("gate_backward_32", 2)));
        assert_eq!(launch(33, 4096), Some(("gate_backward_64", 512)));
        // Two tokens a warp, as in the gate.
        assert_eq!(launch(512, 4097), Some(("gate_backward_512", 257)));
        assert_eq!(launch(8, 0), None);
    }

    #[test]
    fn coefficients_are_those_of_the_losses() {
        let mut config = LayerConfig::da_moe(64, 64, 8, 4);
        (config.losses.balance, config.losses.z, config.router.routed_scaling) = (0.25, 0.5, 2.5);
        let coefficients = |loss_scale| {
            let p = parameters(&config, 3, loss_scale);
            (p.balance, p.z, p.routed_scaling)
        };
        assert_eq!(coefficients(1.0), (2.0, 0.5, 2.5));
        assert_eq!(coefficients(1024.0), (2048.0, 512.0, 2.5));
    }

    #[test]
    fn whole_rows_of_128_bits_are_moved_at_once() {
        let p = abi::GateDx { tokens: 3, width: 24, dx_rows_stride: 24, ..Default::default() };
        let kernel = |storage, p| dx_calls(Target::H100, storage, p).next().map(|call| call.launch.kernel);
        assert_eq!(kernel(DType::Bf16, p), Some("gate_dx_bf16_wide"));
        assert_eq!(kernel(DType::F16, abi::GateDx { width: 20, ..p }), Some("gate_dx_f16"));
        assert_eq!(kernel(DType::F32, abi::GateDx { of_router_stride: 22, ..p }), Some("gate_dx_f32"));
        assert_eq!(kernel(DType::F32, abi::GateDx { tokens: 0, ..p }), None);
    }
}
