//! `y` and every gradient are what candle's own autograd says of the same layer written with candle's operations.

use crate::common::{D, E, F, distance, external, layer, names, numbers, tensor, weight};
use crate::dense::Dense;
use candle_core::{DType, Device, Result, Tensor, Var};
use da_moe::{
    Activation, ExpertsPerToken, LayerConfig, Losses, NormalizeWeights, NullExpert, Policy, RouterConfig, Scoring,
};
use da_moe_candle::Inputs;

const T: usize = 14;

/// Both sides round their own sums of some dozens of f32 products; together they may be a few times SPEC §8's 2e-6 apart.
const F32: f32 = 6e-6;

fn importance() -> Result<Tensor> {
    let values = numbers(9, T).into_iter().map(|value| value.abs().min(1.0)).collect();
    Tensor::from_vec(values, T, &Device::Cpu)
}

/// Compares one call, of storage type `dtype`, within `bound`.
fn compare(config: &LayerConfig, inputs: impl Fn(Inputs) -> Result<Inputs>, dtype: DType, bound: f32) -> Result<()> {
    compare_masked(config, inputs, None, dtype, bound)
}

fn compare_masked(
    config: &LayerConfig,
    inputs: impl Fn(Inputs) -> Result<Inputs>,
    mask: Option<&Tensor>,
    dtype: DType,
    bound: f32,
) -> Result<()> {
    let (layer, weights) = layer(config, dtype)?;
    let x = Var::from_tensor(&tensor(1, &[T, D])?.to_dtype(dtype)?)?;
    let dy = tensor(2, &[T, D])?.to_dtype(dtype)?;

    let out = layer.forward(&inputs(Inputs::new(&x))?, true)?;
    let found = out.y.mul(&dy)?.sum_all()?.backward()?;

    let wide = x.to_dtype(DType::F32)?;
    let dense = Dense { config, weights: &weights, mask };
    let y = dense.forward(&wide, &out.record)?;
    let loss = (y.mul(&dy.to_dtype(DType::F32)?)?.sum_all()? + dense.losses(&wide, &out.record)?)?;
    let expected = loss.backward()?;

    let near = |name: &str, found: Option<&Tensor>, expected: Option<&Tensor>| -> Result<()> {
        let (found, expected) = (found.expect(name), expected.expect(name));
        let distance = distance(found, expected)?;
        assert!(distance <= bound, "{name} is {distance:e} away, {bound:e} are allowed: {config:?}");
        Ok(())
    };
    near("y", Some(&out.y), Some(&y))?;
    near("dx", found.get(&x), expected.get(&x))?;
    for name in names(&weights) {
        let weight = weight(&weights, &name);
        near(&name, found.get(&weight), expected.get(&weight))?;
    }
    Ok(())
}

fn with_importance(inputs: Inputs) -> Result<Inputs> {
    Ok(inputs.with_importance(&importance()?))
}

fn plain(inputs: Inputs) -> Result<Inputs> {
    Ok(inputs)
}

/// Without losses, as most comparisons are.
fn without_losses(config: LayerConfig) -> LayerConfig {
    LayerConfig { losses: Losses::default(), ..config }
}

#[test]
fn of_every_scoring_and_normalisation() -> Result<()> {
    for scoring in [Scoring::Softmax, Scoring::Sigmoid, Scoring::Relu] {
        for normalize in [NormalizeWeights::None, NormalizeWeights::Selected, NormalizeWeights::Candidates] {
            let router = RouterConfig { scoring, normalize, routed_scaling: 1.5, ..RouterConfig::default() };
            let config = LayerConfig { router, ..without_losses(external()) };
            compare(&config, with_importance, DType::F32, F32)?;
        }
    }
    Ok(())
}

#[test]
fn of_the_losses() -> Result<()> {
    for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
        let router = RouterConfig { scoring, ..RouterConfig::default() };
        let config = LayerConfig { router, losses: Losses { balance: 3.0, z: 2.0 }, ..external() };
        compare(&config, with_importance, DType::F32, F32)?;
    }
    Ok(())
}

#[test]
fn of_every_activation() -> Result<()> {
    for hidden_act in Activation::ALL {
        compare(&LayerConfig { hidden_act, ..without_losses(external()) }, with_importance, DType::F32, F32)?;
    }
    Ok(())
}

#[test]
fn with_any_number_of_experts_per_token() -> Result<()> {
    let between = |policy, min, max| LayerConfig {
        experts_per_token: ExpertsPerToken::between(policy, min, max),
        ..without_losses(external())
    };
    compare(&between(Policy::Budget { mean_k: 2.0 }, 1, 4), with_importance, DType::F32, F32)?;
    compare(&between(Policy::Proportional { scale: None }, 0, E), with_importance, DType::F32, F32)?;
    compare(&between(Policy::TopP { p: 0.6 }, 1, E), plain, DType::F32, F32)?;
    compare(&between(Policy::Fixed { k: 2 }, 2, 2), plain, DType::F32, F32)?;
    let given = Tensor::from_vec((0..T as i32).map(|t| t % 4).collect(), T, &Device::Cpu)?;
    compare(&between(Policy::Given, 0, 3), |inputs| Ok(inputs.with_k(&given)), DType::F32, F32)
}

#[test]
fn with_null_experts() -> Result<()> {
    for null_expert in [NullExpert::Zero, NullExpert::Copy, NullExpert::Constant] {
        let config = LayerConfig { num_null_experts: 2, null_expert, ..without_losses(external()) };
        compare(&config, with_importance, DType::F32, F32)?;
    }
    Ok(())
}

#[test]
fn with_a_shared_expert_and_everything_else() -> Result<()> {
    let config = LayerConfig {
        shared_intermediate_size: F + 3,
        num_null_experts: 1,
        null_expert: NullExpert::Constant,
        losses: Losses { balance: 0.5, z: 0.25 },
        ..external()
    };
    compare(&config, with_importance, DType::F32, F32)
}

#[test]
fn with_padding() -> Result<()> {
    let marks: Vec<u8> = (0..T).map(|t| u8::from(t % 5 != 3)).collect();
    let mask = Tensor::from_vec(marks, T, &Device::Cpu)?;
    let config = LayerConfig { losses: Losses { balance: 0.5, z: 0.25 }, ..external() };
    let masked = |inputs| Ok(with_importance(inputs)?.with_mask(&mask));
    compare_masked(&config, masked, Some(&mask.to_dtype(DType::F32)?), DType::F32, F32)
}

/// SPEC §8's bounds, on weights and activations that were rounded before either side began.
#[test]
fn in_half_precision() -> Result<()> {
    for (dtype, bound) in [(DType::BF16, 8e-3), (DType::F16, 1e-3)] {
        let config = LayerConfig { shared_intermediate_size: F, ..external() };
        compare(&config, with_importance, dtype, bound)?;
    }
    Ok(())
}
