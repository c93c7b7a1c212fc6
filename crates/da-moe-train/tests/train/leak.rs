//! The leak rule in a whole model: a later token changes nothing of what came before it.

use crate::common::{LENGTH, TestResult, model, variant};
use candle_core::{Device, Tensor, Var};
use da_moe_train::{Tokens, Transformer, Variables};
use serde_json::{Value, json};

/// Every way to measure, normalise and allocate that a causal model is allowed.
fn accepted() -> Vec<Value> {
    let sources = [
        json!({ "source": "given-peak" }),
        json!({ "source": "given-entropy" }),
        json!({ "source": "given-self", "heads": "max" }),
        json!({ "source": "router-entropy" }),
        json!({ "source": "mix", "parts": [{ "weight": 0.5, "source": "given-peak" }, { "weight": 0.5, "source": "router-entropy" }] }),
    ];
    let normalised = |source: &Value| {
        let with = |fields: Value| {
            let mut source = source.clone();
            for (name, value) in fields.as_object().into_iter().flatten() {
                source[name] = value.clone();
            }
            source
        };
        [
            with(json!({})),
            with(json!({ "normalize": "affine", "a": 2.0, "b": -0.5 })),
            with(json!({ "normalize": "running", "momentum": 0.9 })),
        ]
    };
    let policies = [
        json!({ "policy": "proportional", "min": 1, "max": 3 }),
        json!({ "policy": "thresholds", "thresholds": [0.3, 0.5, 0.7], "min": 1, "max": 3 }),
        json!({ "policy": "budget-running", "mean_k": 2, "momentum": 0.5, "min": 1, "max": 3 }),
    ];
    let mut accepted = Vec::new();
    for importance in sources.iter().flat_map(normalised) {
        for policy in &policies {
            accepted
                .push(json!({ "name": "layer", "layer": { "importance": importance, "experts_per_token": policy } }));
        }
    }
    for policy in [
        json!({ "policy": "fixed", "k": 2 }),
        json!({ "policy": "top-p", "p": 0.6, "max": 3 }),
        json!({ "policy": "score-threshold", "threshold": 0.26, "max": 3 }),
    ] {
        accepted.push(json!({ "name": "router", "layer": { "experts_per_token": policy } }));
        accepted.push(json!({ "name": "null", "layer": { "experts_per_token": policy, "num_null_experts": 2, "null_expert": "copy" } }));
    }
    for signal in ["random", "type", "frequency"] {
        accepted.push(json!({ "name": "control", "signal": signal, "layer": { "experts_per_token": policies[2] } }));
    }
    let capacity = json!({ "capacity_factor": 1.0, "drop": "token", "normalize": "none" });
    accepted.push(json!({ "name": "switch", "layer": { "experts_per_token": { "policy": "fixed", "k": 1 }, "router": capacity } }));
    accepted
}

/// What a model says and learns of the first `seen` tokens.
struct Past {
    k: Vec<Vec<i32>>,
    logits: Vec<f32>,
    gradients: Vec<(String, Vec<f32>)>,
}

fn past(model: &Transformer, variables: &[(String, Var)], ids: &[u32], seen: usize) -> candle_core::Result<Past> {
    let tokens = Tokens::new(ids, LENGTH, 5, &Device::Cpu)?;
    let pass = model.forward(&tokens, false)?;
    let logits = model.logits(&pass.hidden.flatten_to(1)?.narrow(0, 0, seen)?)?;
    let targets = Tensor::from_vec(vec![9u32; seen], seen, &Device::Cpu)?;
    let gradients = candle_nn::loss::cross_entropy(&logits, &targets)?.backward()?;
    let k = pass.records.iter().map(|record| Ok(record.experts_per_token()?[..seen].to_vec()));
    let named = variables.iter().map(|(name, var)| {
        let gradient = gradients.get(var).map(|gradient| gradient.flatten_all()?.to_vec1()).transpose()?;
        Ok((name.clone(), gradient.unwrap_or_default()))
    });
    Ok(Past {
        k: k.collect::<candle_core::Result<_>>()?,
        logits: logits.flatten_all()?.to_vec1()?,
        gradients: named.collect::<candle_core::Result<_>>()?,
    })
}

/// Equal but for rounding: a token's rows are multiplied together with other tokens' rows, and where in a block of rows one stands
/// decides in which order its products are added.
fn assert_alike(one: &[f32], two: &[f32], what: &str) {
    const ROUNDING: f32 = 16.0 * f32::EPSILON;
    let largest = one.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let worst = one.iter().zip(two).fold(0.0f32, |worst, (one, two)| worst.max((one - two).abs()));
    assert!(
        one.len() == two.len() && worst <= ROUNDING * largest,
        "{what}: differ by {worst}, the largest is {largest}"
    );
}

#[test]
fn later_tokens_change_nothing_of_the_past() -> TestResult {
    let rarity: Vec<f32> = (0..280).map(|id| (id % 17) as f32 / 17.0).collect();
    for json in accepted() {
        let variables = Variables::new(3);
        let model = Transformer::new(&model(true), &variant(json.clone()), &rarity, variables.builder(&Device::Cpu))?;
        let variables = variables.all();
        let ids: Vec<u32> = (0..LENGTH as u32).map(|t| 10 + (t * t * 7) % 250).collect();
        // What is carried between steps comes from earlier batches.
        model.forward(&Tokens::new(&ids, LENGTH, 1, &Device::Cpu)?, true)?;
        for seen in [1, 5, LENGTH - 1] {
            let mut other = ids.clone();
            other[seen..].iter_mut().for_each(|id| *id = 4 + (*id * 31) % 270);
            let (one, two) = (past(&model, &variables, &ids, seen)?, past(&model, &variables, &other, seen)?);
            assert_eq!(one.k, two.k, "{json}: k of the first {seen}");
            assert_alike(&one.logits, &two.logits, &format!("{json}: logits of the first {seen}"));
            for ((name, one), (_, two)) in one.gradients.iter().zip(&two.gradients) {
                assert_alike(one, two, &format!("{json}: gradient of {name} for the first {seen}"));
            }
        }
    }
    Ok(())
}

/// The check can fail: with the rule overridden, what attention gives to a token depends on later queries.
#[test]
fn an_overridden_rule_shows() -> TestResult {
    let importance = json!({ "source": "received-sum", "normalize": "rank", "allow_future": true });
    let policy = json!({ "policy": "proportional", "min": 1, "max": 4 });
    let json = json!({ "name": "leaks", "layer": { "importance": importance, "experts_per_token": policy } });
    let variables = Variables::new(3);
    let model = Transformer::new(&model(true), &variant(json), &[], variables.builder(&Device::Cpu))?;
    let ids: Vec<u32> = (0..LENGTH as u32).map(|t| 10 + (t * t * 7) % 250).collect();
    let mut other = ids.clone();
    other[8..].iter_mut().for_each(|id| *id = 4 + (*id * 31) % 270);
    let variables = variables.all();
    assert_ne!(past(&model, &variables, &ids, 8)?.k, past(&model, &variables, &other, 8)?.k);
    Ok(())
}
