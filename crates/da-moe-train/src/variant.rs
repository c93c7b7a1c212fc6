//! A way to allocate experts: fields of the layer's configuration, and where importance comes from.

use crate::allocation::{Allocation, Rank, Signal, external};
use crate::error::{Result, TrainError};
use crate::model_config::ModelConfig;
use da_moe::{LayerConfig, Source};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// One of the ways that are compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// What reports call it.
    pub name: String,
    /// What says how important a token is.
    #[serde(default)]
    pub signal: Signal,
    /// Whether that is replaced by ranks.
    #[serde(default)]
    pub rank: Rank,
    /// Fields of the layer's configuration (`experts_per_token`, `importance`, `router`, …); sizes and activation are the model's.
    #[serde(default)]
    pub layer: Map<String, Value>,
}

/// Fields that the model sets.
const SIZES: [&str; 4] = ["hidden_size", "num_experts", "moe_intermediate_size", "hidden_act"];

impl Variant {
    /// The layer's whole configuration in a model of this size, and how its importance is made. `rarity` has a number for each
    /// token of the vocabulary, larger for rarer ones; only the signal `frequency` reads it.
    ///
    /// # Errors
    /// [`TrainError::Config`] naming the field, or the layer's refusal, the leak rule's among them.
    pub(crate) fn layer(&self, model: &ModelConfig, rarity: &[f32]) -> Result<(LayerConfig, Allocation)> {
        if let Some(field) = SIZES.into_iter().find(|field| self.layer.contains_key(*field)) {
            return Err(TrainError::config(format!("variant.layer.{field}"), "is set by the model"));
        }
        let mut layer = self.layer.clone();
        let sizes = [json!(model.width), json!(model.experts), json!(model.expert_width), json!(model.activation)];
        layer.extend(SIZES.map(String::from).into_iter().zip(sizes));
        if model.causal {
            let importance = layer.entry("importance").or_insert_with(|| json!({}));
            if let Some(importance) = importance.as_object_mut() {
                importance.entry("causal").or_insert(json!(true));
            }
        }
        let mut layer = LayerConfig::from_json(&Value::Object(layer).to_string())?;
        if layer.importance.causal != model.causal {
            let problem = format!("is {}, the model's is {}", layer.importance.causal, model.causal);
            return Err(TrainError::config("variant.layer.importance.causal", problem));
        }
        let measured = layer.clone();
        let allocation = Allocation { signal: self.signal, rank: self.rank, measured, rarity: rarity.to_vec() };
        if allocation.is_external() {
            self.check_external(model, &layer)?;
            layer.importance = external(&layer.importance);
            layer.validate()?;
        }
        Ok((layer, allocation))
    }

    /// The leak rule for what is decided outside the layer, and signals without a meaning.
    fn check_external(&self, model: &ModelConfig, layer: &LayerConfig) -> Result<()> {
        let attention = |source: &Source| matches!(source, Source::Attention { .. });
        if self.signal == Signal::Layer && !attention(&layer.importance.source) {
            let problem = format!("only attention is ranked, not `{}`", layer.importance.source.name());
            return Err(TrainError::config("variant.rank", problem));
        }
        if model.causal && self.rank != Rank::None {
            let problem = "with causal attention a rank looks at later tokens, so k would leak the future";
            return Err(TrainError::config("variant.rank", problem));
        }
        if model.causal && matches!(self.signal, Signal::MaskFirst | Signal::MaskLast) {
            return Err(TrainError::config("variant.signal", "a causal model has no masked tokens"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(causal: bool) -> ModelConfig {
        let activation = da_moe::Activation::Swiglu;
        ModelConfig {
            vocabulary: 9,
            width: 8,
            layers: 1,
            heads: 2,
            length: 4,
            experts: 4,
            expert_width: 8,
            activation,
            causal,
        }
    }

    fn variant(json: Value) -> Variant {
        serde_json::from_value(json).unwrap()
    }

    fn refusal(json: Value, causal: bool) -> String {
        variant(json).layer(&model(causal), &[]).unwrap_err().to_string()
    }

    #[test]
    fn what_is_decided_outside_is_external_to_the_layer() {
        let own = variant(json!({ "name": "a", "layer": { "importance": { "source": "received-sum" } } }));
        assert_eq!(own.layer(&model(false), &[]).unwrap().0.importance.source.name(), "received-sum");
        let ranked = Variant { rank: Rank::Groups, ..own };
        let (layer, allocation) = ranked.layer(&model(false), &[]).unwrap();
        assert_eq!(layer.importance.source.name(), "external");
        assert_eq!(allocation.measured.importance.source.name(), "received-sum");
    }

    #[test]
    fn the_leak_rule_holds_for_ranks_and_sources() {
        assert!(refusal(json!({ "name": "a", "rank": "sequence" }), true).contains("leak"));
        let received = json!({ "name": "a", "layer": { "importance": { "source": "received-max" } } });
        assert!(refusal(received, true).contains("received-max"));
        assert!(refusal(json!({ "name": "a", "signal": "mask-first" }), true).contains("no masked tokens"));
        let bidirectional =
            json!({ "name": "a", "layer": { "importance": { "source": "given-peak", "causal": false } } });
        assert!(refusal(bidirectional, true).contains("the model's is true"));
    }

    #[test]
    fn fields_are_the_layers_own() {
        let unknown = json!({ "name": "a", "layer": { "experts_per_token": { "policy": "fixed", "k": 1, "p": 0.5 } } });
        assert!(refusal(unknown, false).contains('p'));
        assert!(refusal(json!({ "name": "a", "layer": { "num_experts": 3 } }), false).contains("set by the model"));
    }
}
