//! What does not fit is an error that names it.

use crate::common::{D, E, bits, external, layer, names, tensor, weight};
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{VarBuilder, VarMap};
use da_moe::{AttentionSource, ExpertsPerToken, ImportanceConfig, LayerConfig, Policy, Source};
use da_moe_candle::{DaMoe, Inputs};
use std::collections::HashMap;

const T: usize = 6;

fn new(config: LayerConfig) -> Result<DaMoe> {
    DaMoe::new(config, VarBuilder::from_varmap(&VarMap::new(), DType::F32, &Device::Cpu))
}

fn refused<T>(result: Result<T>, words: &[&str]) {
    let message = result.err().expect("is refused").to_string();
    for word in words {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
}

#[test]
fn inputs_that_do_not_fit() -> Result<()> {
    let layer = new(external())?;
    let x = tensor(1, &[T, D])?;
    let importance = tensor(2, &[T])?;
    let good = Inputs::new(&x).with_importance(&importance);
    layer.forward(&good, true)?;
    let call = |inputs: Inputs| layer.forward(&inputs, true);

    refused(call(Inputs::new(&x)), &["importance", "missing"]);
    refused(call(Inputs::new(&tensor(1, &[T, D + 1])?).with_importance(&importance)), &["`x`", "13", "12"]);
    refused(call(Inputs::new(&tensor(1, &[D])?)), &["`x`", "[12]"]);
    refused(call(Inputs::new(&x.to_dtype(DType::F64)?).with_importance(&importance)), &["`x`", "F64"]);
    refused(
        call(Inputs::new(&x.to_dtype(DType::BF16)?).with_importance(&importance)),
        &["experts.w_in", "f32", "bf16"],
    );
    refused(call(good.clone().with_importance(&tensor(2, &[T + 1])?)), &["`importance`", "[7]"]);
    refused(call(good.clone().with_importance(&importance.to_dtype(DType::F64)?)), &["`importance`", "F64"]);
    refused(call(good.clone().with_mask(&tensor(2, &[T])?)), &["`mask`", "f32", "u8"]);
    refused(call(good.clone().with_lengths(&[2, 3])), &["[2, 3]", "6 tokens"]);
    refused(call(good.clone().with_lengths(&[usize::MAX, 7])), &["lengths"]);
    refused(call(Inputs::new(&x.reshape((2, 3, D))?).with_lengths(&[3, 3])), &["`x`", "[2, 3, 12]"]);
    Ok(())
}

#[test]
fn inputs_that_the_policy_or_the_source_needs() -> Result<()> {
    let x = tensor(1, &[T, D])?;
    let given = LayerConfig { experts_per_token: ExpertsPerToken::between(Policy::Given, 0, E), ..external() };
    refused(new(given)?.forward(&Inputs::new(&x), true), &["k_given", "missing"]);
    let attention = new(LayerConfig::da_moe(D, 8, 4, 2))?;
    refused(attention.forward(&Inputs::new(&x), true), &["q and k", "missing"]);
    let heads = tensor(2, &[T, 2, 4])?;
    let probabilities = tensor(2, &[1, 2, T, T])?;
    let both = Inputs::new(&x).with_query_key(&heads, &heads).with_probabilities(&probabilities);
    refused(attention.forward(&both, true), &["`q`", "`attn_probs`"]);
    refused(attention.forward(&Inputs::new(&x).with_query_key(&heads, &tensor(2, &[T, 8])?), true), &["`k`", "[6, 8]"]);
    refused(
        attention.forward(&Inputs::new(&x).with_query_key(&heads, &tensor(2, &[T, 3, 4])?), true),
        &["3 key heads"],
    );
    Ok(())
}

#[test]
fn masks_of_anything_but_0_and_1() -> Result<()> {
    let layer = new(external())?;
    let inputs = |mask: &Tensor| -> Result<Inputs> {
        Ok(Inputs::new(&tensor(1, &[T, D])?).with_importance(&tensor(2, &[T])?.abs()?).with_mask(mask))
    };
    let mask = Tensor::new(&[1u8, 1, 0, 1, 1, 0], &Device::Cpu)?;
    let expected = bits(&layer.forward(&inputs(&mask)?, false)?.y)?;
    for dtype in [DType::U8, DType::U32, DType::I32, DType::I64] {
        assert_eq!(bits(&layer.forward(&inputs(&mask.to_dtype(dtype)?)?, false)?.y)?, expected);
        let twos = (&mask * 2.0)?.to_dtype(dtype)?;
        refused(layer.forward(&inputs(&twos)?, false), &["`mask`", "2 at 0", "0 or 1"]);
    }
    let negative = Tensor::new(&[1i64, 1, 0, -1, 1, 0], &Device::Cpu)?;
    refused(layer.forward(&inputs(&negative)?, false), &["`mask`", "-1 at 3"]);
    Ok(())
}

/// Ids are U32 in candle, and I64 where they come from other libraries.
#[test]
fn ids_and_numbers_of_any_integers_but_those_that_do_not_fit() -> Result<()> {
    let frequency = LayerConfig {
        importance: ImportanceConfig { source: Source::TokenFrequency, ..external().importance },
        ..external()
    };
    let given = LayerConfig { experts_per_token: ExpertsPerToken::between(Policy::Given, 0, E), ..external() };
    let x = tensor(1, &[T, D])?;
    let table = Tensor::new(&[0.1f32, 0.5, 0.9], &Device::Cpu)?;
    let integers = Tensor::new(&[0u32, 1, 2, 2, 1, 0], &Device::Cpu)?;
    let ids = |ids: &Tensor| Inputs::new(&x).with_token_frequency(ids, &table);
    let numbers = |numbers: &Tensor| Inputs::new(&x).with_k(numbers);
    for (config, name, inputs) in
        [(frequency, "token_ids", &ids as &dyn Fn(&Tensor) -> Inputs), (given, "k_given", &numbers)]
    {
        let layer = new(config)?;
        let expected = bits(&layer.forward(&inputs(&integers.to_dtype(DType::I32)?), false)?.y)?;
        for dtype in [DType::U32, DType::I64] {
            assert_eq!(bits(&layer.forward(&inputs(&integers.to_dtype(dtype)?), false)?.y)?, expected, "{name}");
        }
        let large = Tensor::new(&[0u32, 1, 2, u32::MAX, 1, 0], &Device::Cpu)?;
        refused(layer.forward(&inputs(&large), false), &[&format!("`{name}`"), "4294967295 at 3"]);
        refused(layer.forward(&inputs(&integers.to_dtype(DType::F32)?), false), &[name, "f32"]);
    }
    Ok(())
}

#[test]
fn a_policy_that_would_leak_the_future() {
    let causal = ImportanceConfig { causal: true, ..ImportanceConfig::attention(AttentionSource::ReceivedMax) };
    refused(new(LayerConfig { importance: causal, ..external() }), &["leak", "received-max", "given-peak"]);
}

#[test]
fn configurations_and_weights_that_do_not_fit() -> Result<()> {
    refused(new(LayerConfig { num_experts: 0, ..external() }), &["num_experts"]);
    let (_, weights) = layer(&external(), DType::F32)?;
    let mut tensors: HashMap<String, Tensor> = HashMap::new();
    for name in names(&weights) {
        tensors.insert(name.clone(), weight(&weights, &name));
    }
    tensors.insert("experts.w_out".into(), tensor(1, &[E, D, 3])?);
    let vb = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    refused(DaMoe::new(external(), vb), &["experts.w_out"]);
    Ok(())
}

#[test]
fn a_state_of_another_length() -> Result<()> {
    refused(new(external())?.set_state(&[0.0; 3]), &["4 values", "3 were given"]);
    Ok(())
}
