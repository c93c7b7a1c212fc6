//! Random problems for the tests of this crate.

use da_moe_core::{ExpertsPerToken, ImportanceConfig, LayerConfig, Losses, NullExpert, Policy, RouterConfig, Source};
use da_moe_reference::{Experts, Problem};

/// A linear congruential generator: the same numbers everywhere, without a dependency.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f64 / (1u64 << 24) as f64
    }

    /// Uniform in [−1, 1), every value an f32.
    pub fn vector(&mut self, len: usize) -> Vec<f64> {
        (0..len).map(|_| 2.0 * self.unit() - 1.0).collect()
    }
}

/// `D` 6, `F` 4, importance from outside, `ceil(I · E)` experts in 1 ..= 3.
pub fn config(experts: usize) -> LayerConfig {
    LayerConfig {
        hidden_size: 6,
        num_experts: experts,
        num_null_experts: 0,
        null_expert: NullExpert::Zero,
        moe_intermediate_size: 4,
        shared_intermediate_size: 0,
        hidden_act: da_moe_core::Activation::Swiglu,
        importance: ImportanceConfig::new(Source::External),
        experts_per_token: ExpertsPerToken::between(Policy::Proportional { scale: None }, 1, 3.min(experts)),
        router: RouterConfig::default(),
        losses: Losses::default(),
    }
}

fn experts(random: &mut Random, config: &LayerConfig, count: usize, width: usize, bias: bool) -> Experts {
    let (d, rows_in) = (config.hidden_size, config.hidden_act.rows_in(width));
    Experts {
        w_in: random.vector(count * rows_in * d),
        w_out: random.vector(count * d * width),
        b_in: bias.then(|| random.vector(count * rows_in)),
        b_out: bias.then(|| random.vector(count * d)),
        count,
        width,
    }
}

/// Random weights and inputs for everything that the configuration may need, except attention and routing.
pub fn problem(config: LayerConfig, tokens: usize, bias: bool, seed: u64) -> Problem {
    let mut random = Random::new(seed);
    let (d, candidates) = (config.hidden_size, config.candidates());
    let constant = config.null_expert == NullExpert::Constant && config.num_null_experts > 0;
    let shared = config.shared_intermediate_size;
    Problem {
        tokens,
        x: random.vector(tokens * d),
        cu_seqlens: vec![0, tokens],
        mask: vec![true; tokens],
        attention: None,
        importance: Some((0..tokens).map(|_| random.unit()).collect()),
        token_ids: None,
        token_frequency: None,
        k_given: None,
        routing: None,
        training: false,
        state: [0.0; 4],
        router: random.vector(candidates * d),
        router_bias: bias.then(|| random.vector(candidates).into_iter().map(|b| 0.1 * b).collect()),
        experts: experts(&mut random, &config, config.num_experts, config.moe_intermediate_size, bias),
        shared: (shared > 0).then(|| experts(&mut random, &config, 1, shared, bias)),
        constants: constant.then(|| random.vector(config.num_null_experts * d)),
        config,
    }
}

pub fn assert_close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{found:?} against {expected:?}");
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= 1e-12 * (1.0 + expected.abs()), "[{at}]: {found} against {expected}");
    }
}
