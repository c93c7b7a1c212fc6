//! What a training loop does with graphs: backward twice, never, or late; views; weights that are held fast.

use crate::common::{D, bits, distance, external, layer, names, tensor, weight};
use candle_core::{DType, Device, IndexOp, Result, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use da_moe::{AttentionSource, ExpertsPerToken, ImportanceConfig, LayerConfig, Losses, Normalize, Policy};
use da_moe_candle::{DaMoe, Inputs};

const B: usize = 3;
const S: usize = 5;

fn config() -> LayerConfig {
    LayerConfig { shared_intermediate_size: 4, ..LayerConfig::da_moe(D, 8, 4, 3) }
}

fn with_heads(x: &Tensor, heads: &Tensor) -> Inputs {
    Inputs::new(x).with_query_key(heads, heads)
}

/// Of all weights, in the order of their names.
fn gradients(y: &Tensor, weights: &VarMap) -> Result<Vec<Tensor>> {
    let all = y.sqr()?.sum_all()?.backward()?;
    Ok(names(weights).iter().map(|name| all.get(&weight(weights, name)).expect(name).clone()).collect())
}

fn all_bits(tensors: &[Tensor]) -> Result<Vec<Vec<u32>>> {
    tensors.iter().map(bits).collect()
}

#[test]
fn the_same_call_twice_and_backward_twice_give_the_same_bits() -> Result<()> {
    let (layer, weights) = layer(&config(), DType::F32)?;
    let (x, heads) = (tensor(1, &[B, S, D])?, tensor(2, &[B, S, 2, 4])?);
    let first = layer.forward(&with_heads(&x, &heads), true)?;
    let second = layer.forward(&with_heads(&x, &heads), true)?;
    assert_eq!(bits(&first.y)?, bits(&second.y)?);
    let once = all_bits(&gradients(&first.y, &weights)?)?;
    assert_eq!(once, all_bits(&gradients(&first.y, &weights)?)?);
    assert_eq!(once, all_bits(&gradients(&second.y, &weights)?)?);
    Ok(())
}

#[test]
fn sequences_may_be_a_dimension_or_lengths() -> Result<()> {
    let (layer, weights) = layer(&config(), DType::F32)?;
    let (x, heads) = (tensor(1, &[B, S, D])?, tensor(2, &[B, S, 2, 4])?);
    let batch = layer.forward(&with_heads(&x, &heads), true)?;
    assert_eq!(batch.y.dims(), [B, S, D]);
    let (flat, heads) = (x.flatten_to(1)?, heads.flatten_to(1)?);
    let packed = layer.forward(&with_heads(&flat, &heads).with_lengths(&[S; B]), true)?;
    assert_eq!(packed.y.dims(), [B * S, D]);
    assert_eq!(bits(&batch.y)?, bits(&packed.y)?);
    assert_eq!(all_bits(&gradients(&batch.y, &weights)?)?, all_bits(&gradients(&packed.y, &weights)?)?);
    let one = layer.forward(&with_heads(&flat, &heads), true)?;
    assert_ne!(one.record.importance()?, packed.record.importance()?, "three sequences are not one");
    Ok(())
}

#[test]
fn rows_may_lie_anywhere() -> Result<()> {
    let (layer, _) = layer(&config(), DType::F32)?;
    let heads = tensor(2, &[B, S, 2, 4])?;
    // A part of each row of a transposed tensor.
    let wide = Var::from_tensor(&tensor(1, &[S, B, D + 3])?)?;
    let x = wide.transpose(0, 1)?.narrow(2, 2, D)?;
    let scattered = layer.forward(&with_heads(&x, &heads), true)?.y;
    let dense = layer.forward(&with_heads(&x.contiguous()?, &heads), true)?.y;
    assert_eq!(bits(&scattered)?, bits(&dense)?);
    let [through, directly] =
        [scattered, dense].map(|y| y.sqr()?.sum_all()?.backward()?.get(&wide).map(bits).transpose());
    assert_eq!(through?.expect("x has a gradient"), directly?.expect("x has a gradient"));
    Ok(())
}

#[test]
fn two_calls_before_one_backward_add_up() -> Result<()> {
    let (layer, weights) = layer(&config(), DType::F32)?;
    let heads = tensor(2, &[B, S, 2, 4])?;
    let call = |seed| layer.forward(&with_heads(&tensor(seed, &[B, S, D])?, &heads), true);
    let (first, second) = (call(1)?.y, call(3)?.y);
    let separate = [gradients(&first, &weights)?, gradients(&second, &weights)?];
    let both = (first.sqr()?.sum_all()? + second.sqr()?.sum_all()?)?.backward()?;
    for (i, name) in names(&weights).iter().enumerate() {
        let sum = (&separate[0][i] + &separate[1][i])?;
        assert_eq!(bits(both.get(&weight(&weights, name)).expect(name))?, bits(&sum)?, "{name}");
    }
    Ok(())
}

#[test]
fn a_call_without_backward_changes_no_other() -> Result<()> {
    let (layer, weights) = layer(&config(), DType::F32)?;
    let heads = tensor(2, &[B, S, 2, 4])?;
    let inputs = with_heads(&tensor(1, &[B, S, D])?, &heads);
    let expected = all_bits(&gradients(&layer.forward(&inputs, true)?.y, &weights)?)?;
    let kept = layer.forward(&inputs, true)?.y;
    drop(layer.forward(&with_heads(&tensor(5, &[B, S, D])?, &heads), true)?);
    layer.forward(&with_heads(&tensor(6, &[B, S, D])?, &heads), false)?;
    assert_eq!(all_bits(&gradients(&kept, &weights)?)?, expected);
    Ok(())
}

/// A layer of the same weights, those of these names as plain tensors.
fn with_plain(weights: &VarMap, plain: &[&str]) -> Result<DaMoe> {
    let tensors = names(weights).into_iter().map(|name| {
        let tensor = weight(weights, &name);
        let tensor = if plain.contains(&name.as_str()) { tensor.detach() } else { tensor };
        (name, tensor)
    });
    DaMoe::new(config(), VarBuilder::from_tensors(tensors.collect(), DType::F32, &Device::Cpu))
}

/// By their names, variables or not.
#[test]
fn weights_that_are_held_fast_have_no_gradient_and_the_others_have_the_same() -> Result<()> {
    let (whole, weights) = layer(&config(), DType::F32)?;
    let fixed = ["router.weight", "shared.w_in"];
    let inputs = with_heads(&tensor(1, &[B, S, D])?, &tensor(2, &[B, S, 2, 4])?);
    let expected = whole.forward(&inputs, true)?.y.sum_all()?.backward()?;
    for layer in [with_plain(&weights, &fixed)?, whole.clone()] {
        let all = layer.with_frozen(&fixed)?.forward(&inputs, true)?.y.sum_all()?.backward()?;
        for name in names(&weights) {
            let [found, expected] = [&all, &expected].map(|all| all.get(&weight(&weights, &name)));
            match found {
                Some(found) => assert_eq!(bits(found)?, bits(expected.expect(&name))?, "{name}"),
                None => assert!(fixed.contains(&name.as_str()), "{name} has no gradient"),
            }
            assert_eq!(found.is_none(), fixed.contains(&name.as_str()), "{name}");
        }
    }
    Ok(())
}

#[test]
fn weights_that_no_gradient_would_reach_are_told_in_training() -> Result<()> {
    let (_, weights) = layer(&config(), DType::F32)?;
    let inputs = with_heads(&tensor(1, &[B, S, D])?, &tensor(2, &[B, S, 2, 4])?);
    let layer = with_plain(&weights, &["router.weight", "shared.w_in"])?;
    layer.forward(&inputs, false)?;
    let refusals = [
        layer.forward(&inputs, true).err(),
        layer.forward_to_repeat(&inputs, true).err(),
        layer.clone().with_frozen(&["shared.w_in"])?.forward(&inputs, true).err(),
    ];
    for refusal in refusals {
        let refusal = refusal.expect("a refusal").to_string();
        assert!(refusal.contains("router.weight") && refusal.contains("with_frozen"), "{refusal}");
    }
    layer.clone().with_frozen(&["shared.w_in", "router.weight"])?.forward(&inputs, true)?;
    let unknown = layer.with_frozen(&["router"]).expect_err("no weight has that name").to_string();
    assert!(unknown.contains("`router`") && unknown.contains("experts.w_in"), "{unknown}");
    Ok(())
}

#[test]
fn importance_carries_no_gradient() -> Result<()> {
    let (layer, _) = layer(&config(), DType::F32)?;
    let heads = Var::from_tensor(&tensor(2, &[B, S, 2, 4])?)?;
    let y = layer.forward(&with_heads(&tensor(1, &[B, S, D])?, &heads), true)?.y;
    assert!(y.sum_all()?.backward()?.get(&heads).is_none());
    Ok(())
}

#[test]
fn inference_keeps_no_graph() -> Result<()> {
    let (_, weights) = layer(&config(), DType::F32)?;
    let tensors = names(&weights).into_iter().map(|name| (name.clone(), weight(&weights, &name).detach()));
    let vb = VarBuilder::from_tensors(tensors.collect(), DType::F32, &Device::Cpu);
    let y =
        DaMoe::new(config(), vb)?.forward(&with_heads(&tensor(1, &[B, S, D])?, &tensor(2, &[B, S, 2, 4])?), false)?.y;
    assert!(!y.track_op());
    Ok(())
}

/// `dW_r = dzᵀ x`, and each record has its own `dz`.
#[test]
fn the_routers_gradient_is_of_the_records_own_call() -> Result<()> {
    let (layer, weights) = layer(&external(), DType::F32)?;
    let importance = tensor(9, &[S])?.abs()?;
    let call = |seed| layer.forward(&Inputs::new(&tensor(seed, &[S, D])?).with_importance(&importance), true);
    let (first, second) = (call(1)?, call(2)?);
    assert!(first.record.router_gradient().is_err(), "before backward");
    let all = first.y.sum_all()?.backward()?;
    let dz = Tensor::from_vec(first.record.router_gradient()?, (S, external().candidates()), &Device::Cpu)?;
    let expected = dz.t()?.matmul(&tensor(1, &[S, D])?)?;
    let apart = distance(all.get(&weight(&weights, "router.weight")).expect("a gradient"), &expected)?;
    assert!(apart < 2e-6, "{apart:e}");
    assert!(second.record.router_gradient().is_err(), "backward was another call's");
    Ok(())
}

/// A causal attention's given-peak: importance, `k`, `y` and gradients of the first tokens, whatever comes later.
#[test]
fn a_causal_layer_shows_the_past_nothing_of_the_future() -> Result<()> {
    let config = LayerConfig {
        importance: ImportanceConfig {
            causal: true,
            normalize: Normalize::None,
            ..ImportanceConfig::attention(AttentionSource::GivenPeak)
        },
        experts_per_token: ExpertsPerToken::between(Policy::Proportional { scale: None }, 1, 3),
        losses: Losses::default(),
        ..LayerConfig::da_moe(D, 8, 4, 3)
    };
    let (layer, _) = layer(&config, DType::F32)?;
    let past = 3;
    let of = |seed| -> Result<_> {
        let join = |shape: &[usize], rest: &[usize]| Tensor::cat(&[tensor(1, shape)?, tensor(seed, rest)?], 0);
        let x = Var::from_tensor(&join(&[past, D], &[S - past, D])?)?;
        let heads = join(&[past, 2, 4], &[S - past, 2, 4])?;
        let out = layer.forward(&with_heads(&x, &heads), true)?;
        let y = out.y.i(..past)?;
        let all = y.sqr()?.sum_all()?.backward()?;
        let dx = all.get(&x).expect("x has a gradient");
        let later = dx.i(past..)?.abs()?.sum_all()?.to_scalar::<f32>()?;
        Ok((bits(&y)?, bits(&dx.i(..past)?)?, out.record.experts_per_token()?[..past].to_vec(), later))
    };
    let (first, second) = (of(7)?, of(8)?);
    assert_eq!(first, second);
    assert_eq!(first.3, 0.0);
    Ok(())
}
