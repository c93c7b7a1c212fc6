//! Activation checkpointing: a call made again with what the layer carried has the bits of the first, whatever came in between.

use crate::common::{D, bits, layer, names, tensor, weight};
use candle_core::backprop::GradStore;
use candle_core::{DType, Result, Tensor, Var};
use candle_nn::VarMap;
use da_moe::{ExpertsPerToken, ImportanceConfig, LayerConfig, Losses, Normalize, Policy, Source};
use da_moe_candle::{Carried, DaMoe, How, Inputs};

const T: usize = 24;

/// Everything that is carried decides about `k`: running statistics and a price, both moving fast.
fn config() -> LayerConfig {
    LayerConfig {
        shared_intermediate_size: 4,
        importance: ImportanceConfig {
            source: Source::External,
            normalize: Normalize::Running { momentum: 0.5 },
            ..ImportanceConfig::default()
        },
        experts_per_token: ExpertsPerToken::between(Policy::BudgetRunning { mean_k: 2.0, momentum: 0.1 }, 1, 4),
        losses: Losses { balance: 0.5, z: 0.25 },
        ..LayerConfig::da_moe(D, 8, 4, 4)
    }
}

fn inputs(seed: u64, x: &Tensor) -> Result<Inputs> {
    Ok(Inputs::new(x).with_importance(&(tensor(seed + 50, &[T])?.abs()? * (1.0 + seed as f64))?))
}

/// A layer that has taken a few steps.
fn trained() -> Result<(DaMoe, VarMap)> {
    let (layer, weights) = layer(&config(), DType::F32)?;
    for seed in 0..3 {
        layer.forward(&inputs(seed, &tensor(seed, &[T, D])?)?, true)?;
    }
    Ok((layer, weights))
}

fn all_bits(gradients: &GradStore, weights: &VarMap, x: &Var) -> Result<Vec<Vec<u32>>> {
    let of_weights = names(weights).into_iter().map(|name| bits(gradients.get(&weight(weights, &name)).expect(&name)));
    of_weights.chain([bits(gradients.get(x).expect("x"))]).collect()
}

#[test]
fn a_call_made_again_has_the_bits_of_the_first_in_training_and_in_evaluation() -> Result<()> {
    for training in [true, false] {
        let (layer, weights) = trained()?;
        let x = Var::from_tensor(&tensor(7, &[T, D])?)?;
        let inputs = inputs(7, &x)?;
        let carried = Carried::try_from(&layer.state()?[..])?;
        let once = layer.forward(&inputs, training)?;
        let expected = all_bits(&once.y.sqr()?.sum_all()?.backward()?, &weights, &x)?;
        layer.set_state(&carried.values())?;

        let (y, told) = layer.forward_to_repeat(&inputs, training)?;
        assert!(!y.track_op(), "nothing is kept for backward");
        assert_eq!(told, carried);
        assert_eq!(bits(&y)?, bits(&once.y)?);
        let moved = layer.state()?;
        assert_eq!(moved != carried.values(), training);
        // Other layers' steps, and this one's, before the gradients are due.
        layer.forward(&self::inputs(8, &tensor(8, &[T, D])?)?, true)?;
        let later = layer.state()?;
        for _ in 0..2 {
            let again = layer.call(&inputs, &How::again(told))?;
            assert_eq!(again.record.experts_per_token()?, once.record.experts_per_token()?);
            assert_eq!(bits(&again.y)?, bits(&y)?);
            assert_eq!(all_bits(&again.y.sqr()?.sum_all()?.backward()?, &weights, &x)?, expected);
            assert_eq!(layer.state()?, later, "nothing moves again");
        }
    }
    Ok(())
}

/// What happens without it, so that the test above says something.
#[test]
fn a_call_that_is_simply_made_twice_gives_other_numbers_of_experts() -> Result<()> {
    for training in [true, false] {
        let (layer, _) = trained()?;
        let inputs = inputs(7, &tensor(7, &[T, D])?)?;
        let first = layer.forward(&inputs, true)?;
        let second = layer.forward(&inputs, training)?;
        assert_ne!(first.record.experts_per_token()?, second.record.experts_per_token()?);
    }
    Ok(())
}

#[test]
fn what_a_layer_never_carries_is_refused() -> Result<()> {
    let (layer, _) = trained()?;
    let sound = layer.state()?;
    for (index, wrong, word) in [
        (0, f32::NAN, "finite"),
        (1, f32::INFINITY, "finite"),
        (0, sound[1] + 1.0, "minimum"),
        (0, -0.5, "minimum"),
        (2, -0.5, "price"),
        (3, -1.0, "steps"),
        (3, 1.5, "steps"),
    ] {
        let mut values = sound.clone();
        values[index] = wrong;
        for refusal in [layer.set_state(&values).err(), Carried::try_from(&values[..]).err()] {
            assert!(refusal.is_some_and(|error| error.to_string().contains(word)), "{values:?}");
        }
        assert_eq!(layer.state()?, sound);
    }
    Ok(())
}
