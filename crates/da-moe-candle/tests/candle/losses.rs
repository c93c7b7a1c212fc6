//! The balance and z losses follow the factor that the task's loss is multiplied by.

use crate::common::{D, bits, distance, external, layer, names, tensor, weight};
use candle_core::backprop::GradStore;
use candle_core::{DType, Result, Tensor, Var};
use candle_nn::VarMap;
use da_moe::{LayerConfig, Losses};
use da_moe_candle::{How, Inputs};

const T: usize = 16;

fn config() -> LayerConfig {
    LayerConfig { shared_intermediate_size: 4, losses: Losses { balance: 3.0, z: 2.0 }, ..external() }
}

fn inputs(seed: u64, x: &Tensor) -> Result<Inputs> {
    Ok(Inputs::new(x).with_importance(&tensor(seed + 50, &[T])?.abs()?))
}

fn gradient(gradients: &GradStore, weights: &VarMap, name: &str) -> Tensor {
    gradients.get(&weight(weights, name)).expect(name).clone()
}

#[test]
fn scaled_by_a_power_of_two_every_gradient_is_scaled_exactly() -> Result<()> {
    for collected in [false, true] {
        let (layer, weights) = layer(&config(), DType::F32)?;
        let layer = if collected { layer.with_collected_gradients() } else { layer };
        let x = Var::from_tensor(&tensor(1, &[T, D])?)?;
        let scaled = |scale: f64| -> Result<GradStore> {
            let out = layer.call(&inputs(1, &x)?, &How::training().with_loss_scale(scale as f32))?;
            let mut all = (out.y.sqr()?.sum_all()? * scale)?.backward()?;
            out.record.collect_gradients(&mut all)?;
            Ok(all)
        };
        let once = scaled(1.0)?;
        for scale in [1024.0, 0.125] {
            let all = scaled(scale)?;
            for name in names(&weights) {
                let expected = (gradient(&once, &weights, &name) * scale)?;
                assert_eq!(bits(&gradient(&all, &weights, &name))?, bits(&expected)?, "{name} scaled by {scale}");
            }
            let expected = (once.get(&x).expect("x") * scale)?;
            assert_eq!(bits(all.get(&x).expect("x"))?, bits(&expected)?, "x scaled by {scale}");
        }
    }
    Ok(())
}

/// Without the factor the losses of two micro-batches would weigh twice what they do in one batch.
#[test]
fn two_micro_batches_of_half_the_loss_accumulate_to_the_mean() -> Result<()> {
    let (layer, weights) = layer(&config(), DType::F32)?;
    let call = |seed: u64, scale: f64| -> Result<Tensor> {
        let how = How::training().with_loss_scale(scale as f32);
        layer.call(&inputs(seed, &tensor(seed, &[T, D])?)?, &how)?.y.sqr()?.sum_all()? * scale
    };
    let [first, second] = [call(1, 1.0)?.backward()?, call(2, 1.0)?.backward()?];
    let accumulated = (call(1, 0.5)? + call(2, 0.5)?)?.backward()?;
    for name in names(&weights) {
        let [first, second] = [&first, &second].map(|all| gradient(all, &weights, &name));
        let mean = ((first + second)? * 0.5)?;
        let apart = distance(&gradient(&accumulated, &weights, &name), &mean)?;
        assert!(apart < 1e-6, "{name}: {apart:e}");
    }
    Ok(())
}

#[test]
fn a_factor_that_is_no_number_is_refused() -> Result<()> {
    let (layer, _) = layer(&config(), DType::F32)?;
    for factor in [f32::NAN, f32::INFINITY] {
        let refusal = layer.call(&inputs(1, &tensor(1, &[T, D])?)?, &How::training().with_loss_scale(factor));
        assert!(refusal.is_err_and(|error| error.to_string().contains("not a finite number")));
    }
    Ok(())
}
