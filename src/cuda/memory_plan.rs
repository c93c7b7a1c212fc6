//! How much memory calls need besides their tensors: pure functions of sizes, so that a plan needs no GPU.

use crate::cuda::device::Target;
use crate::cuda::launch::combine_backward;
use crate::cuda::launch::experts;
use crate::cuda::launch::experts_backward;
use crate::cuda::launch::gate;
use crate::cuda::launch::gate_backward;
use crate::cuda::launch::importance;
use crate::cuda::launch::permute;
use crate::cuda::stage::Options;
use crate::{Attention, DType, Inputs, Keep, LayerConfig, NullExpert, Result, Sizes, StepBytes};

/// The largest calls that a workspace is to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Most {
    /// T.
    pub tokens: usize,
    /// Storage type.
    pub dtype: DType,
    /// Heads of attention that importance is read off; 0 where it is not.
    pub heads: usize,
    /// What forward keeps; [`Keep::Nothing`] where there is no backward.
    pub keep: Keep,
}

impl Most {
    /// Calls like one with these inputs.
    pub fn of(inputs: &Inputs<'_>, keep: Keep) -> Self {
        let heads = match &inputs.attention {
            Some(Attention::QueryKey { q, .. }) => q.shape()[1],
            Some(Attention::Probabilities(p)) => p.shape()[1],
            None => 0,
        };
        Self { tokens: inputs.x.shape()[0], dtype: inputs.x.dtype(), heads, keep }
    }
}

/// The type of the experts' outputs and of `dx` of every row on their way between stages: bf16 for bf16, of which SPEC §8's bound
/// allows the rounding; f32 beside f16, whose range a row may leave that comes back into it when it is weighted and summed.
pub fn row_type(storage: DType) -> DType {
    if storage == DType::Bf16 { DType::Bf16 } else { DType::F32 }
}

/// Bytes of a layer's calls that are no larger than `most`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes {
    /// As [`Layer::step_bytes`](crate::Layer::step_bytes).
    pub step: StepBytes,
    /// As [`Kernels::workspace_bytes`](super::Kernels::workspace_bytes): of a stream, for all layers on it.
    pub workspace: usize,
}

impl Bytes {
    /// The largest at the same time: of a single layer between its forward and its backward.
    pub fn peak(&self) -> usize {
        self.step.total().saturating_add(self.workspace)
    }
}

/// Bytes that calls of a layer need of a device like `target`, without one to ask.
///
/// # Errors
/// [`Error::Overflow`](crate::Error::Overflow).
pub fn bytes(target: Target, config: &LayerConfig, most: Most) -> Result<Bytes> {
    let sizes = Sizes::new(config, most.tokens)?;
    Ok(Bytes {
        step: StepBytes::of(&sizes, most.dtype, row_type(most.dtype), 0, most.keep),
        workspace: workspace(target, config, most, Options::default())?,
    })
}

/// Enough for every stage.
pub(in crate::cuda) fn workspace(target: Target, config: &LayerConfig, most: Most, options: Options) -> Result<usize> {
    let stages = workspace_by_stage(target, config, most, options)?;
    Ok(stages.into_iter().map(|(_, bytes)| bytes).max().unwrap_or(0))
}

pub(in crate::cuda) fn workspace_by_stage(
    target: Target,
    config: &LayerConfig,
    most: Most,
    options: Options,
) -> Result<Vec<(&'static str, usize)>> {
    let Most { tokens, dtype, heads, keep } = most;
    let sizes = Sizes::new(config, tokens)?;
    let mut of_gate = gate::parameters(config, tokens, true);
    if let Some(chosen) = options.tokens_per_warp {
        of_gate.tokens_per_warp = chosen as i32;
    }
    let mut of_routing = gate::routing(tokens, config.candidates(), config.k_max());
    of_routing.tokens_per_warp = of_gate.tokens_per_warp;
    let budget = gate::budget(config, tokens).map_or(0, |mut p| gate::bind_budget(target, &mut p, 0).bytes);
    let gate =
        gate::bind(target, &mut of_gate, 0).bytes.max(gate::bind_routing(target, &mut of_routing, 0).bytes).max(budget);
    let forward = [
        ("importance", importance::largest_workspace(target, tokens, heads).bytes),
        ("gate", gate),
        ("permute", permute::bind(target, &mut permute::parameters(config, tokens), 0).bytes),
        ("experts", experts::workspace(target, &sizes, dtype).bytes),
    ];
    let backward = || {
        let learned = if config.null_expert == NullExpert::Constant { config.num_null_experts } else { 0 };
        [
            ("combine_backward", combine_backward::workspace(target, &sizes, learned).bytes),
            ("experts_backward", experts_backward::workspace(target, config, &sizes, dtype, keep).bytes),
            ("gate_backward", gate_backward::workspace(target, &sizes).bytes),
        ]
    };
    let backward = (keep != Keep::Nothing).then(backward);
    Ok(forward.into_iter().chain(backward.into_iter().flatten()).collect())
}
