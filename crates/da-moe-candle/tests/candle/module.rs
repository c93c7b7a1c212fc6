//! Weights are candle's: drawn, saved, loaded and trained by its own means.

use crate::common::{D, bits, layer, names, tensor, weight};
use candle_core::{DType, Device, Result};
use candle_nn::{AdamW, Optimizer, VarBuilder, VarMap};
use da_moe::{ExpertsPerToken, ImportanceConfig, LayerConfig, Normalize, NullExpert, Policy, Source};
use da_moe_candle::{DaMoe, Inputs};

const T: usize = 32;

fn config() -> LayerConfig {
    LayerConfig {
        num_null_experts: 2,
        null_expert: NullExpert::Constant,
        shared_intermediate_size: 6,
        importance: ImportanceConfig {
            source: Source::RouterEntropy,
            normalize: Normalize::Running { momentum: 0.9 },
            ..ImportanceConfig::default()
        },
        experts_per_token: ExpertsPerToken::between(Policy::BudgetRunning { mean_k: 2.0, momentum: 0.5 }, 1, 4),
        ..LayerConfig::da_moe(D, 16, 4, 4)
    }
}

#[test]
fn weights_have_the_documented_names_and_shapes() -> Result<()> {
    let (_, weights) = layer(&config(), DType::F32)?;
    let found: Vec<_> =
        names(&weights).into_iter().map(|name| (weight(&weights, &name).dims().to_vec(), name)).collect();
    let expected = [
        (vec![4, 32, D], "experts.w_in"),
        (vec![4, D, 16], "experts.w_out"),
        (vec![2, D], "null.constants"),
        (vec![6, D], "router.weight"),
        (vec![1, 12, D], "shared.w_in"),
        (vec![1, D, 6], "shared.w_out"),
    ];
    assert_eq!(found, expected.map(|(shape, name)| (shape, name.to_string())));
    Ok(())
}

/// Of 4096 normal numbers, the deviation is within 6 % but for one in a hundred million draws.
#[test]
fn new_weights_have_the_deviation_of_their_fan_in() -> Result<()> {
    let weights = VarMap::new();
    DaMoe::new(LayerConfig::da_moe(16, 64, 8, 2), VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu))?;
    for (name, fan_in) in [("experts.w_in", 16.0), ("experts.w_out", 64.0)] {
        let deviation = weight(&weights, name).sqr()?.mean_all()?.to_scalar::<f32>()?.sqrt();
        let expected = 1.0 / f32::sqrt(fan_in);
        assert!((deviation / expected - 1.0).abs() < 0.07, "{name}: {deviation}, expected about {expected}");
    }
    Ok(())
}

#[test]
fn a_checkpoint_goes_on_with_the_same_bits() -> Result<()> {
    let (layer, weights) = layer(&config(), DType::F32)?;
    let x = tensor(1, &[T, D])?;
    for seed in 0..3 {
        layer.forward(&Inputs::new(&tensor(seed, &[T, D])?), true)?;
    }
    let state = layer.state()?;
    assert_ne!(state, [0.0; 4], "something is carried");
    let path = std::env::temp_dir().join(format!("da-moe-candle-{}.safetensors", std::process::id()));
    weights.save(&path)?;

    let mut loaded = VarMap::new();
    let again = DaMoe::new(config(), VarBuilder::from_varmap(&loaded, DType::F32, &Device::Cpu))?;
    loaded.load(&path)?;
    std::fs::remove_file(&path)?;
    again.set_state(&state)?;
    for training in [true, false, true] {
        let [before, after] = [&layer, &again].map(|layer| layer.forward(&Inputs::new(&x), training));
        assert_eq!(bits(&before?.y)?, bits(&after?.y)?);
        assert_eq!(layer.state()?, again.state()?);
    }
    Ok(())
}

#[test]
fn what_is_carried_moves_in_training_alone_and_clones_share_it() -> Result<()> {
    let (layer, _) = layer(&config(), DType::F32)?;
    let inputs = Inputs::new(&tensor(1, &[T, D])?);
    layer.forward(&inputs, false)?;
    assert_eq!(layer.state()?, [0.0; 4]);
    layer.clone().forward(&inputs, true)?;
    assert_ne!(layer.state()?, [0.0; 4]);
    Ok(())
}

#[test]
fn an_optimiser_reduces_a_loss() -> Result<()> {
    let (layer, weights) = layer(&config(), DType::F32)?;
    let (inputs, target) = (Inputs::new(&tensor(1, &[T, D])?), tensor(2, &[T, D])?);
    let mut optimiser = AdamW::new_lr(weights.all_vars(), 1e-2)?;
    let mut losses = Vec::new();
    for _ in 0..40 {
        let loss = (layer.forward(&inputs, true)?.y - &target)?.sqr()?.mean_all()?;
        optimiser.backward_step(&loss)?;
        losses.push(loss.to_scalar::<f32>()?);
    }
    assert!(losses[39] < 0.5 * losses[0], "{losses:?}");
    Ok(())
}

#[test]
fn a_record_tells_what_the_call_decided() -> Result<()> {
    let (layer, _) = layer(&config(), DType::F32)?;
    let record = layer.forward(&Inputs::new(&tensor(1, &[T, D])?), true)?.record;
    let (k, experts, weights) = (record.experts_per_token()?, record.experts()?, record.weights()?);
    assert_eq!((k.len(), experts.len(), weights.len()), (T, T * 4, T * 4));
    assert_eq!((record.importance()?.len(), record.logits()?.len()), (T, T * 6));
    for (k, (experts, weights)) in k.iter().zip(experts.chunks(4).zip(weights.chunks(4))) {
        assert_eq!(experts.iter().filter(|&&expert| expert >= 0).count() as i32, *k);
        assert!(weights.is_sorted_by(|a, b| a >= b));
    }
    let report = record.report()?;
    assert_eq!(report.tokens, T);
    assert_eq!(report.load.iter().sum::<i32>(), k.iter().sum::<i32>());
    Ok(())
}

#[test]
fn no_tokens_are_a_batch_too() -> Result<()> {
    let (layer, _) = layer(&config(), DType::F32)?;
    for shape in [vec![0, D], vec![0, 7, D], vec![3, 0, D]] {
        let out = layer.forward(&Inputs::new(&tensor(1, &shape)?), true)?;
        assert_eq!(out.y.dims(), shape);
        assert_eq!(out.record.report()?.rows, 0);
    }
    Ok(())
}

#[test]
fn threads_may_share_a_layer() -> Result<()> {
    let (layer, weights) = layer(&config(), DType::F32)?;
    let call = |seed| -> Result<_> {
        let y = layer.forward(&Inputs::new(&tensor(seed, &[T, D])?), false)?.y;
        let all = y.sqr()?.sum_all()?.backward()?;
        bits(all.get(&weight(&weights, "experts.w_in")).expect("a gradient"))
    };
    let alone: Vec<_> = (0..4).map(call).collect::<Result<_>>()?;
    let together: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|seed| scope.spawn(move || call(seed))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Result<_>>()
    })?;
    assert_eq!(alone, together);
    Ok(())
}
