//! How large a model and a step of its training may be.
//!
//! Configurations come from files. What is larger than this is a mistake, or a file made to exhaust memory; it is refused before
//! anything is allocated for it.

use crate::error::{Result, TrainError};
use crate::model_config::{ModelConfig, Schedule};
use da_moe::LayerConfig;

/// Layers of a model.
const LAYERS: usize = 1 << 10;
/// Weights of a model: 4 GiB.
const WEIGHTS: usize = 1 << 30;
/// Numbers that a layer computes for a sequence: 2 GiB.
const SEQUENCE: usize = 1 << 29;
/// Numbers that a layer computes in a step: 32 GiB.
const STEP: usize = 1 << 33;
/// Steps of a training.
const STEPS: u64 = 1 << 32;

/// Refuses what is beyond them.
pub(crate) fn check(model: &ModelConfig, schedule: &Schedule, layer: &LayerConfig) -> Result<()> {
    let &Schedule { batch, steps, .. } = schedule;
    let sequence = numbers_of_sequence(model, layer);
    let sizes = [
        ("model.layers", "layers", model.layers, LAYERS),
        ("model", "weights", weights(model, layer), WEIGHTS),
        ("model.length", "numbers in a layer for one sequence", sequence, SEQUENCE),
        ("schedule.batch", "numbers in a layer for one step", sequence.saturating_mul(batch), STEP),
    ];
    if let Some((field, what, found, most)) = sizes.into_iter().find(|(_, _, found, most)| found > most) {
        return Err(TrainError::config(field, format!("makes {found} {what}, there may be {most}")));
    }
    if steps > STEPS {
        return Err(TrainError::config("schedule.steps", format!("is {steps}, there may be {STEPS}")));
    }
    Ok(())
}

/// Bytes that a forward call over one sequence takes at most, about: a few of its layers' tensors are there at the same time.
pub(crate) fn sequence_bytes(model: &ModelConfig, layer: &LayerConfig) -> usize {
    numbers_of_sequence(model, layer).saturating_mul(4 * size_of::<f32>())
}

/// Of all layers and embeddings; gains are few.
fn weights(model: &ModelConfig, layer: &LayerConfig) -> usize {
    let &ModelConfig { vocabulary, width, layers, length, .. } = model;
    // Rows and columns of `width` that a layer has.
    let experts = (layer.rows_in().saturating_add(layer.moe_intermediate_size)).saturating_mul(layer.num_experts);
    let shared = layer.shared_rows_in().saturating_add(layer.shared_intermediate_size);
    let attention = width.saturating_mul(4);
    let rows = [experts, shared, attention, layer.candidates()].into_iter().fold(0, usize::saturating_add);
    let all = rows.saturating_mul(layers).saturating_add(vocabulary).saturating_add(length);
    all.saturating_mul(width)
}

/// Scores of its attention, rows of its experts and logits of its tokens.
fn numbers_of_sequence(model: &ModelConfig, layer: &LayerConfig) -> usize {
    let &ModelConfig { vocabulary, width, heads, length, .. } = model;
    let row = layer.rows_in().saturating_add(width);
    let rows = row.saturating_mul(layer.k_max()).saturating_add(layer.shared_rows_in());
    let token = [heads.saturating_mul(length), rows, vocabulary, width.saturating_mul(4)];
    token.into_iter().fold(0, usize::saturating_add).saturating_mul(length)
}

#[cfg(test)]
mod tests {
    use crate::config::RunConfig;
    use serde_json::{Value, json};

    fn config() -> Value {
        json!({
            "model": { "vocabulary": 8192, "width": 256, "layers": 6, "heads": 8, "length": 256, "experts": 16, "expert_width": 256 },
            "schedule": { "batch": 64, "steps": 6000, "rate": 0.001, "warm_up": 300 },
            "variant": { "name": "x" },
            "seed": 1,
        })
    }

    fn refusal(config: &Value) -> Option<String> {
        let config: RunConfig = serde_json::from_value(config.clone()).unwrap();
        config.validate().err().map(|error| error.to_string())
    }

    #[test]
    fn what_nothing_could_hold_is_refused_by_name_and_number() {
        assert_eq!(refusal(&config()), None);
        for size in [1u64 << 31, 1 << 40, u64::MAX / 256 * 256] {
            for field in ["vocabulary", "width", "layers", "length", "experts", "expert_width"] {
                let mut config = config();
                config["model"][field] = json!(size);
                assert!(refusal(&config).is_some(), "{field} {size}");
            }
            let mut config = config();
            config["schedule"]["batch"] = json!(size);
            assert!(refusal(&config).unwrap().contains("`schedule.batch`: makes"));
        }
        let mut long = config();
        long["schedule"]["steps"] = json!((1u64 << 32) + 1);
        assert!(refusal(&long).unwrap().contains("`schedule.steps`: is 4294967297"));
        long = config();
        long["model"]["length"] = json!(1);
        assert!(refusal(&long).unwrap().contains("`model.length`"));
    }
}
