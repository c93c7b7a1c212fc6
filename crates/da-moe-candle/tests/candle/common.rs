//! Layers and inputs that are the same in every run: candle's generator on the CPU cannot be seeded.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{VarBuilder, VarMap};
use da_moe::{ImportanceConfig, LayerConfig, Normalize, Source};
use da_moe_candle::DaMoe;

pub const D: usize = 12;
pub const F: usize = 10;
pub const E: usize = 5;

/// `count` numbers of about a standard normal distribution; others for another `seed`.
pub fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut uniform = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(|_| 2.0 * (uniform() + uniform() + uniform())).collect()
}

pub fn tensor(seed: u64, shape: &[usize]) -> Result<Tensor> {
    Tensor::from_vec(numbers(seed, shape.iter().product()), shape, &Device::Cpu)
}

/// A layer and its weights, which are the same in every run.
pub fn layer(config: &LayerConfig, dtype: DType) -> Result<(DaMoe, VarMap)> {
    let weights = VarMap::new();
    let layer = DaMoe::new(config.clone(), VarBuilder::from_varmap(&weights, dtype, &Device::Cpu))?;
    for (seed, name) in names(&weights).iter().enumerate() {
        let all = weights.data().lock().expect("nobody panicked");
        let values = tensor(100 + seed as u64, all[name].dims())?.affine(0.5, 0.0)?;
        all[name].set(&values.to_dtype(dtype)?)?;
    }
    Ok((layer, weights))
}

/// In alphabetical order.
pub fn names(weights: &VarMap) -> Vec<String> {
    let mut names: Vec<_> = weights.data().lock().expect("nobody panicked").keys().cloned().collect();
    names.sort();
    names
}

pub fn weight(weights: &VarMap, name: &str) -> Tensor {
    weights.data().lock().expect("nobody panicked")[name].as_tensor().clone()
}

/// DA-MoE whose importance comes from the caller, so that it differs from token to token.
pub fn external() -> LayerConfig {
    LayerConfig {
        importance: ImportanceConfig {
            source: Source::External,
            normalize: Normalize::None,
            ..ImportanceConfig::default()
        },
        ..LayerConfig::da_moe(D, F, E, 3)
    }
}

/// `‖found − expected‖ / ‖expected‖`.
pub fn distance(found: &Tensor, expected: &Tensor) -> Result<f32> {
    let (found, expected) = (found.to_dtype(DType::F32)?, expected.to_dtype(DType::F32)?);
    let norm = |tensor: &Tensor| tensor.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>();
    Ok(norm(&(found - &expected)?)? / norm(&expected)?)
}

pub fn bits(tensor: &Tensor) -> Result<Vec<u32>> {
    Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
}
