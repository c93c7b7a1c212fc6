//! The layer of a benchmark: configuration, weights and inputs, all drawn from one seed.

use super::shapes::{Experts, ShapeArg};
use crate::draw::Draw;
use crate::{Result, memory};
use da_moe::{
    Activation, Buffer, DType, ExpertsPerToken, ImportanceConfig, Inputs, LayerConfig, Normalize, Policy, Source,
    TensorRef, Weights,
};

const SEED: u64 = 2024;

/// Everything that a call reads.
pub(super) struct Problem {
    pub(super) config: LayerConfig,
    pub(super) x: Buffer,
    pub(super) dy: Buffer,
    importance: Vec<f32>,
    pub(super) router: Buffer,
    pub(super) w_in: Buffer,
    pub(super) w_out: Buffer,
}

impl Problem {
    pub(super) fn draw(shape: &ShapeArg, experts: Experts, activation: Activation, dtype: DType) -> Result<Self> {
        let (t, d, f, e) = (shape.tokens, shape.hidden, shape.width, shape.experts);
        expect_room(shape, activation, dtype)?;
        let mut draw = Draw::new(SEED);
        let importance: Vec<f32> = (0..t).map(|_| draw.uniform()).collect();
        let config = LayerConfig {
            hidden_act: activation,
            importance: ImportanceConfig {
                source: Source::External,
                normalize: Normalize::None,
                ..ImportanceConfig::default()
            },
            experts_per_token: policy(experts, e, &importance)?,
            ..LayerConfig::da_moe(d, f, e, e)
        };
        config.validate()?;
        Ok(Self {
            x: draw.weights(dtype, t * d, 1),
            dy: draw.weights(dtype, t * d, 1),
            router: draw.weights(dtype, e * d, d),
            w_in: draw.weights(dtype, e * config.rows_in() * d, d),
            w_out: draw.weights(dtype, e * d * f, f),
            importance,
            config,
        })
    }

    pub(super) fn tokens(&self) -> usize {
        self.importance.len()
    }

    pub(super) fn inputs(&self) -> Result<Inputs<'_>> {
        let x = TensorRef::new(&self.x, [self.tokens(), self.config.hidden_size])?;
        Ok(Inputs::new(x).with_importance(TensorRef::new(&self.importance, [self.tokens()])?))
    }

    pub(super) fn weights(&self) -> Result<Weights<'_>> {
        let config = &self.config;
        let (d, e, f) = (config.hidden_size, config.num_experts, config.moe_intermediate_size);
        Ok(Weights::new(
            TensorRef::new(&self.router, [e, d])?,
            TensorRef::new(&self.w_in, [e, config.rows_in(), d])?,
            TensorRef::new(&self.w_out, [e, d, f])?,
        ))
    }
}

/// Refuses sizes that memory does not hold, before anything is drawn. What is drawn passes through f32 on its way to
/// its storage type.
fn expect_room(shape: &ShapeArg, activation: Activation, dtype: DType) -> Result<()> {
    let product = |sizes: [usize; 3]| sizes.into_iter().fold(1, usize::saturating_mul);
    let rows_in = shape.width.saturating_mul(activation.rows_in(1));
    let largest = product([shape.experts, rows_in, shape.hidden]);
    let elements = product([2, shape.tokens, shape.hidden]).saturating_add(largest).saturating_add(product([
        shape.experts,
        shape.hidden,
        shape.width,
    ]));
    let bytes = elements.saturating_mul(dtype.size()).saturating_add(largest.saturating_mul(4));
    memory::expect_room("weights and inputs", bytes)
}

/// The policy that gives the drawn tokens the wanted number of experts.
fn policy(experts: Experts, available: usize, importance: &[f32]) -> Result<ExpertsPerToken> {
    let most = experts.most(available)?;
    Ok(match experts {
        Experts::Fixed(k) => ExpertsPerToken::new(Policy::Fixed { k }),
        Experts::Mean(mean) => {
            let scale = Some(scale_for(mean, most, importance));
            ExpertsPerToken::between(Policy::Proportional { scale }, 1, most)
        }
    })
}

/// The `scale` with which `clamp(ceil(I · scale), 1, max)` has the wanted mean over these tokens, or just exceeds it:
/// the mean never falls as the scale grows.
fn scale_for(mean: f64, max: usize, importance: &[f32]) -> f64 {
    let wanted = mean * importance.len() as f64;
    let reaches = |scale: f64| {
        let total: f64 = importance.iter().map(|i| f64::from((i * scale as f32).ceil()).clamp(1.0, max as f64)).sum();
        total >= wanted
    };
    // No token of importance above 2⁻²⁴, the smallest that is drawn beside 0, gets fewer than `max` beyond this.
    let (mut low, mut high) = (0.0, max as f64 * f64::from(1 << 24));
    for _ in 0..64 {
        let middle = 0.5 * (low + high);
        if reaches(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_tokens_get_the_wanted_mean() {
        let mut draw = Draw::new(3);
        let importance: Vec<f32> = (0..4096).map(|_| draw.uniform()).collect();
        for (mean, max) in [(1.0, 2), (1.5, 3), (2.0, 4), (3.7, 8), (4.0, 4)] {
            let scale = scale_for(mean, max, &importance) as f32;
            let total: f32 = importance.iter().map(|i| (i * scale).ceil().clamp(1.0, max as f32)).sum();
            let found = f64::from(total) / 4096.0;
            // Ties between 24-bit draws and tokens of importance exactly 0 move a handful of tokens by one expert.
            assert!((found - mean).abs() < 0.002, "{mean}: {found}");
        }
    }
}
