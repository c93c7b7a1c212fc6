//! A run as a whole: it learns, and interrupted anywhere it ends with the same bits.

use crate::common::{self, Scratch, TestResult, corpus};
use candle_core::Device;
use da_moe_train::{Folder, Line, Pace, RunConfig, TrainError, explain, run};
use serde_json::json;
use std::sync::Arc;

const PACE: Pace = Pace { line: 3, held_out: 2, checkpoint: 2, batches: 2 };

fn config(variant: serde_json::Value, causal: bool, steps: u64) -> RunConfig {
    common::config(common::variant(variant), causal, steps)
}

/// Everything that is carried between steps: a price, running statistics, moments, and random decisions.
fn carrying() -> [(serde_json::Value, bool); 3] {
    let policy = json!({ "policy": "budget-running", "mean_k": 2, "momentum": 0.5, "min": 1, "max": 3 });
    let running = json!({ "source": "given-entropy", "normalize": "running", "momentum": 0.5, "causal": true });
    [
        (
            json!({ "name": "random", "signal": "random", "rank": "groups", "layer": { "experts_per_token": policy } }),
            false,
        ),
        (
            json!({ "name": "ranked", "rank": "groups", "layer": { "experts_per_token": policy,
                 "importance": { "source": "received-sum" }, "losses": { "balance": 0.01, "z": 0.001 } } }),
            false,
        ),
        (json!({ "name": "running", "layer": { "experts_per_token": policy, "importance": running } }), true),
    ]
}

#[test]
fn interrupted_anywhere_a_run_ends_with_the_same_bits() -> TestResult {
    let corpus = Arc::new(corpus()?);
    for (variant, causal) in carrying() {
        let config = config(variant, causal, 20);
        let whole = Scratch::new()?;
        let whole = Folder(whole.path().join("whole"));
        run(&config, &corpus, PACE, &whole, &Device::Cpu, &mut |_| true)?;
        for stop in [1, 2, 3, 5, 6] {
            let parts = Scratch::new()?;
            let parts = Folder(parts.path().join("parts"));
            let mut lines = 0;
            let mut until = |_: &Line| {
                lines += 1;
                lines < stop
            };
            run(&config, &corpus, PACE, &parts, &Device::Cpu, &mut until)?;
            // What a power failure leaves of a line.
            let torn = std::fs::read_to_string(parts.metrics())? + "{\"step\":";
            std::fs::write(parts.metrics(), torn)?;
            run(&config, &corpus, PACE, &parts, &Device::Cpu, &mut |_| true)?;
            let same = std::fs::read(whole.checkpoint())? == std::fs::read(parts.checkpoint())?;
            assert!(same, "{}: stopped after line {stop}, the last checkpoint differs", config.variant.name);
            let without_times = |folder: &Folder| -> TestResult<Vec<Line>> {
                Ok(folder.lines()?.into_iter().map(|line| Line { seconds: 0.0, ..line }).collect())
            };
            assert_eq!(without_times(&whole)?, without_times(&parts)?, "stopped after line {stop}");
        }
    }
    Ok(())
}

#[test]
fn another_runs_folder_is_refused() -> TestResult {
    let (corpus, folder) = (Arc::new(corpus()?), Scratch::new()?);
    let folder = Folder(folder.path().join("run"));
    let fixed = |k| {
        config(json!({ "name": "fixed", "layer": { "experts_per_token": { "policy": "fixed", "k": k } } }), false, 6)
    };
    run(&fixed(1), &corpus, PACE, &folder, &Device::Cpu, &mut |_| true)?;
    let refusal = run(&fixed(2), &corpus, PACE, &folder, &Device::Cpu, &mut |_| true);
    let Err(TrainError::Contents { problem, .. }) = refusal else { return Err("not refused".into()) };
    assert!(problem.contains("another configuration"), "{problem}");
    std::fs::write(folder.checkpoint(), b"nonsense")?;
    assert!(run(&fixed(1), &corpus, PACE, &folder, &Device::Cpu, &mut |_| true).is_err());
    Ok(())
}

/// Nats a token that a model loses which knows frequencies and nothing else.
fn entropy(ids: &[u32]) -> f64 {
    let mut counts = std::collections::BTreeMap::new();
    ids.iter().for_each(|id| *counts.entry(id).or_insert(0.0) += 1.0);
    let total = ids.len() as f64;
    counts.values().map(|count: &f64| -count / total * (count / total).ln()).sum()
}

/// The text repeats a few words: whoever reads the neighbours knows more.
#[test]
fn a_model_learns_what_frequencies_alone_do_not_tell() -> TestResult {
    let corpus = Arc::new(corpus()?);
    let entropy = entropy(&corpus.tokenizer.encode(&common::text()));
    for causal in [false, true] {
        let folder = Scratch::new()?;
        let folder = Folder(folder.path().join("run"));
        let layer = json!({ "experts_per_token": { "policy": "fixed", "k": 1, "max": 2 } });
        let config = config(json!({ "name": "fixed", "layer": layer }), causal, 300);
        run(&config, &corpus, Pace { line: 100, ..PACE }, &folder, &Device::Cpu, &mut |_| true)?;
        let losses: Vec<f64> = folder.lines()?.iter().map(|line| line.loss).collect();
        assert!(losses[2] < 0.75 * entropy, "causal {causal}: {losses:?}, frequencies alone {entropy}");
    }
    Ok(())
}

#[test]
fn a_checkpoint_explains_a_text_of_any_length() -> TestResult {
    let (corpus, folder) = (Arc::new(corpus()?), Scratch::new()?);
    let folder = Folder(folder.path().join("run"));
    let [_, (ranked, causal), _] = carrying();
    run(&config(ranked, causal, 6), &corpus, PACE, &folder, &Device::Cpu, &mut |_| true)?;
    let checkpoint = da_moe_train::Checkpoint::read(&folder.checkpoint())?;
    for words in [1, 7, 40] {
        let text = "the red fox ".repeat(words);
        let explained = explain(&checkpoint, &text)?;
        assert_eq!(explained.pieces.len(), checkpoint.tokenizer.encode(&text).len());
        for given in explained.pieces.iter().flat_map(|piece| &piece.layers) {
            assert_eq!(given.experts.len(), given.k);
            assert!((1..=3).contains(&given.k) && (0.0..=1.0).contains(&given.importance), "{given:?}");
        }
    }
    assert!(explain(&checkpoint, "").is_err());
    Ok(())
}

#[test]
fn variants_of_a_seed_begin_alike() -> TestResult {
    let corpus = Arc::new(corpus()?);
    let (folder, mut seen) = (Scratch::new()?, Vec::new());
    for (k, seed) in [(1, 1), (2, 1), (1, 2)] {
        let place = Folder(folder.path().join(format!("{k}-{seed}")));
        let layer = json!({ "experts_per_token": { "policy": "fixed", "k": k, "max": 2 } });
        let config = RunConfig { seed, ..config(json!({ "name": "fixed", "layer": layer }), false, 0) };
        let trainer = run(&config, &corpus, PACE, &place, &Device::Cpu, &mut |_| true)?;
        trainer.save(&corpus.tokenizer, &place.checkpoint())?;
        let tensors = candle_core::safetensors::load(place.checkpoint(), &Device::Cpu)?;
        seen.push(tensors["embedding"].flatten_all()?.to_vec1::<f32>()?);
    }
    assert_eq!(seen[0], seen[1]);
    assert_ne!(seen[0], seen[2]);

    Ok(())
}
