//! Gradients that are collected beside candle's graph are those that pass through it.

use crate::common::{D, distance, layer, names, tensor, weight};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{VarBuilder, VarMap};
use da_moe::LayerConfig;
use da_moe_candle::{DaMoe, Inputs, Output};

fn config() -> LayerConfig {
    LayerConfig { shared_intermediate_size: 4, ..LayerConfig::da_moe(D, 8, 4, 3) }
}

fn call(layer: &DaMoe, seed: u64) -> Result<Output> {
    let heads = tensor(seed + 100, &[6, 2, 4])?;
    layer.forward(&Inputs::new(&tensor(seed, &[6, D])?).with_query_key(&heads, &heads), true)
}

fn backward(outputs: &[&Output]) -> Result<GradStore> {
    let losses = outputs.iter().map(|output| output.y.sqr()?.sum_all()).collect::<Result<Vec<_>>>()?;
    Tensor::stack(&losses, 0)?.sum_all()?.backward()
}

fn expect_equal(found: &GradStore, expected: &GradStore, weights: &VarMap) -> Result<()> {
    for name in names(weights) {
        let [found, expected] = [found, expected].map(|all| all.get(&weight(weights, &name)).expect(&name));
        assert_eq!(distance(found, expected)?, 0.0, "{name}");
    }
    Ok(())
}

#[test]
fn of_one_call_and_of_two_before_one_backward() -> Result<()> {
    let (layer, weights) = layer(&config(), DType::F32)?;
    let beside = layer.clone().with_collected_gradients();
    for seeds in [&[1][..], &[1, 2]] {
        let calls = |layer: &DaMoe| seeds.iter().map(|&seed| call(layer, seed)).collect::<Result<Vec<_>>>();
        let (linked, collected) = (calls(&layer)?, calls(&beside)?);
        let expected = backward(&linked.iter().collect::<Vec<_>>())?;
        let mut found = backward(&collected.iter().collect::<Vec<_>>())?;
        assert!(found.get(&weight(&weights, "experts.w_in")).is_none());
        collected.iter().try_for_each(|output| output.record.collect_gradients(&mut found))?;
        expect_equal(&found, &expected, &weights)?;
    }
    Ok(())
}

#[test]
fn with_a_router_that_is_held_fast_and_weights_made_of_variables() -> Result<()> {
    let (_, weights) = layer(&config(), DType::F32)?;
    let with = |change: fn(&str, Tensor) -> Result<Tensor>| {
        let tensors = names(&weights).into_iter().map(|name| {
            let tensor = change(&name, weight(&weights, &name))?;
            Ok((name, tensor))
        });
        let vb = VarBuilder::from_tensors(tensors.collect::<Result<_>>()?, DType::F32, &Device::Cpu);
        DaMoe::new(config(), vb)
    };
    let held_fast = with(|name, tensor| Ok(if name == "router.weight" { tensor.detach() } else { tensor }))?
        .with_frozen(&["router.weight"])?;
    let halved = with(|_, tensor| tensor * 0.5)?;
    for layer in [held_fast, halved] {
        let (linked, collected) = (call(&layer, 1)?, call(&layer.with_collected_gradients(), 1)?);
        let (expected, mut found) = (backward(&[&linked])?, backward(&[&collected])?);
        collected.record.collect_gradients(&mut found)?;
        for name in names(&weights) {
            let [found, expected] = [&found, &expected].map(|all| all.get(&weight(&weights, &name)));
            assert_eq!(found.is_some(), expected.is_some(), "{name}");
            if let (Some(found), Some(expected)) = (found, expected) {
                assert_eq!(distance(found, expected)?, 0.0, "{name}");
            }
        }
    }
    Ok(())
}

#[test]
fn once_for_each_backward() -> Result<()> {
    let (layer, weights) = layer(&config(), DType::F32)?;
    let linked = call(&layer, 1)?;
    let expected = backward(&[&linked])?;
    let mut none_added = backward(&[&linked])?;
    linked.record.collect_gradients(&mut none_added)?;
    expect_equal(&none_added, &expected, &weights)?;

    let collected = call(&layer.with_collected_gradients(), 1)?;
    let mut early = backward(&[&linked])?;
    let refused = collected.record.collect_gradients(&mut early).unwrap_err().to_string();
    assert!(refused.contains("asked for its gradient before"), "{refused}");
    expect_equal(&early, &expected, &weights)?;
    for _ in 0..2 {
        let mut found = backward(&[&collected])?;
        collected.record.collect_gradients(&mut found)?;
        assert!(collected.record.collect_gradients(&mut found).is_err());
        expect_equal(&found, &expected, &weights)?;
    }
    Ok(())
}
