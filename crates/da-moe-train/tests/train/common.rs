//! A small text, a small model, and a folder for a test's files.

use da_moe_train::data::prose_from_text;
use da_moe_train::{Corpus, ModelConfig, Result, RunConfig, Schedule, Variant};
use std::path::Path;

pub type TestResult<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// `S`.
pub const LENGTH: usize = 16;

/// Paragraphs of a few words, no two of them the same.
pub fn text() -> String {
    let paragraph = |n: usize| {
        let who = ["red fox", "grey fox", "old dog", "young cat"][n % 4];
        let what = ["runs over", "walks around", "sleeps under"][n / 4 % 3];
        let place = ["hill", "bridge", "house", "tree", "river"][n / 12 % 5];
        format!("the {who} {what} the {place} and all the others wait until the day is over\n\n")
    };
    (0..60).map(paragraph).collect()
}

pub fn corpus() -> Result<Corpus> {
    Corpus::new(&prose_from_text(&text()), 280, LENGTH)
}

pub fn variant(json: serde_json::Value) -> Variant {
    serde_json::from_value(json).expect("a variant of this test")
}

pub fn model(causal: bool) -> ModelConfig {
    ModelConfig {
        vocabulary: 280,
        width: 16,
        layers: 2,
        heads: 2,
        length: LENGTH,
        experts: 4,
        expert_width: 8,
        activation: Default::default(),
        causal,
    }
}

pub fn config(variant: Variant, causal: bool, steps: u64) -> RunConfig {
    let schedule = Schedule { batch: 4, steps, rate: 0.02, warm_up: 5, weight_decay: 0.01, clip: 1.0, mask_rate: 0.3 };
    RunConfig { model: model(causal), schedule, variant, seed: 7 }
}

/// A folder that goes away with the test.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    pub fn new() -> std::io::Result<Self> {
        tempfile::tempdir().map(Self)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}
