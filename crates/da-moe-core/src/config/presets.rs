//! Ready-made configurations of published layers.

use super::{
    Activation, AttentionSource, Drop, ExpertsPerToken, ImportanceConfig, LayerConfig, Losses, Normalize,
    NormalizeWeights, NullExpert, Policy, RouterConfig, Scoring,
};

impl LayerConfig {
    /// DA-MoE: importance is the strongest attention that a token receives, relative to its sequence's largest;
    /// `ceil(I · E)` SwiGLU experts held in `1 ..= k_max`, weights normalised over the candidates.
    pub fn da_moe(hidden_size: usize, moe_intermediate_size: usize, num_experts: usize, k_max: usize) -> Self {
        let policy = Policy::Proportional { scale: None };
        Self {
            importance: ImportanceConfig {
                normalize: Normalize::Max,
                ..ImportanceConfig::attention(AttentionSource::ReceivedMax)
            },
            experts_per_token: ExpertsPerToken::between(policy, 1, k_max),
            losses: Losses { balance: 0.01, z: 0.001 },
            ..Self::plain(hidden_size, moe_intermediate_size, num_experts)
        }
    }

    /// Switch Transformer: one ReLU expert per token, capacity factor 1.25 in token order, raw weights.
    pub fn switch(hidden_size: usize, moe_intermediate_size: usize, num_experts: usize) -> Self {
        Self {
            hidden_act: Activation::Relu,
            experts_per_token: ExpertsPerToken::new(Policy::Fixed { k: 1 }),
            router: RouterConfig {
                normalize: NormalizeWeights::None,
                capacity_factor: Some(1.25),
                drop: Drop::Token,
                ..RouterConfig::default()
            },
            losses: Losses { balance: 0.01, z: 0.0 },
            ..Self::plain(hidden_size, moe_intermediate_size, num_experts)
        }
    }

    /// GShard: two ReLU experts per token, capacity factor 2 in token order, weights normalised over the two.
    pub fn gshard(hidden_size: usize, moe_intermediate_size: usize, num_experts: usize) -> Self {
        Self {
            hidden_act: Activation::Relu,
            experts_per_token: ExpertsPerToken::new(Policy::Fixed { k: 2 }),
            router: RouterConfig {
                normalize: NormalizeWeights::Selected,
                capacity_factor: Some(2.0),
                drop: Drop::Token,
                ..RouterConfig::default()
            },
            losses: Losses { balance: 0.01, z: 0.0 },
            ..Self::plain(hidden_size, moe_intermediate_size, num_experts)
        }
    }

    /// Mixtral: two SwiGLU experts per token, dropless, weights normalised over the two.
    pub fn mixtral(hidden_size: usize, moe_intermediate_size: usize, num_experts: usize) -> Self {
        Self {
            experts_per_token: ExpertsPerToken::new(Policy::Fixed { k: 2 }),
            router: RouterConfig { normalize: NormalizeWeights::Selected, ..RouterConfig::default() },
            losses: Losses { balance: 0.02, z: 0.0 },
            ..Self::plain(hidden_size, moe_intermediate_size, num_experts)
        }
    }

    /// Top-p routing: as many SwiGLU experts as it takes to reach probability `p`.
    pub fn top_p(hidden_size: usize, moe_intermediate_size: usize, num_experts: usize, p: f64) -> Self {
        Self {
            experts_per_token: ExpertsPerToken::new(Policy::TopP { p }),
            router: RouterConfig { normalize: NormalizeWeights::None, ..RouterConfig::default() },
            losses: Losses { balance: 0.01, z: 0.0 },
            ..Self::plain(hidden_size, moe_intermediate_size, num_experts)
        }
    }

    fn plain(hidden_size: usize, moe_intermediate_size: usize, num_experts: usize) -> Self {
        Self {
            hidden_size,
            num_experts,
            num_null_experts: 0,
            null_expert: NullExpert::Zero,
            moe_intermediate_size,
            shared_intermediate_size: 0,
            hidden_act: Activation::Swiglu,
            importance: ImportanceConfig::default(),
            experts_per_token: ExpertsPerToken::default(),
            router: RouterConfig { scoring: Scoring::Softmax, ..RouterConfig::default() },
            losses: Losses::default(),
        }
    }
}
