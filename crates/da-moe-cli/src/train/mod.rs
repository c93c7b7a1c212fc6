//! `da-moe train`: a small model on a text, and what it learned about which tokens matter, beside a model that gives every
//! token as many experts.

mod show;

use crate::args::TrainArgs;
use crate::demo::read;
use crate::run::output::replace;
use crate::{Error, Result, ahead, single};
use anstream::AutoStream;
use da_moe_train::data::{Prose, own_documentation, prose_from_text};
use da_moe_train::{
    Corpus, Explained, Folder, Line, ModelConfig, Owner, Pace, Run, RunConfig, Schedule, TrainError, Trainer, Variant,
};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::json;
use std::io::{self, Write};
use std::sync::Arc;

/// Mean experts of a token, dynamic or fixed.
const MEAN_K: usize = 2;
/// Held-out sentences that are shown.
const SENTENCES: usize = 3;

/// What the two models have come to.
struct Trained {
    dynamic: Vec<Line>,
    fixed: Vec<Line>,
    sentences: Vec<Explained>,
    parameters: usize,
}

pub(crate) fn execute(arguments: &TrainArgs) -> Result<()> {
    single::ensure()?;
    let text = match &arguments.text {
        Some(path) => prose_from_text(&read(path)?),
        None => own_documentation(),
    };
    let corpus = Arc::new(Corpus::new(&text, arguments.vocabulary, LENGTH)?);
    let vocabulary = corpus.tokenizer.vocabulary();
    let config = |variant| config(arguments, vocabulary, variant);
    let (dynamic, fixed) = (config(dynamic(arguments.causal)?)?, config(fixed()?)?);
    let device = arguments.device.for_training()?;
    if let Some(path) = &arguments.svg {
        ahead::is_another("--svg", path, arguments.text.as_deref())?;
        ahead::can_write("--svg", path)?;
    }
    // Nobody else writes there until the result is shown.
    let _owner = Owner::of(&arguments.model)?;
    let folder = |name: &str| Folder(arguments.model.join(name));
    let open = |config: &RunConfig, name| Run::open(config, &corpus, pace(config), &folder(name), &device);
    let (dynamic, fixed) = (open(&dynamic, "dynamic")?, open(&fixed, "fixed")?);
    let bars = MultiProgress::new();
    let (dynamic_bar, fixed_bar) = (bar(&bars, "dynamic", arguments.steps), bar(&bars, "fixed", arguments.steps));
    // Both at once, each on a thread of its own.
    let (first, second) = std::thread::scope(|scope| {
        let second = scope.spawn(|| train(fixed, &fixed_bar));
        let first = train(dynamic, &dynamic_bar);
        (first, second.join())
    });
    let dynamic = first?;
    let fixed = second.map_err(|_| Error::Check("training of the fixed model stopped".into()))??;
    let trained = Trained {
        dynamic: dynamic.lines().to_vec(),
        fixed: fixed.lines().to_vec(),
        sentences: sentences(&dynamic, &text)?,
        parameters: dynamic.parameters(),
    };
    if let Some(path) = &arguments.svg {
        replace(path, show::picture(&trained).as_bytes())?;
    }
    let page = show::page(&trained, &folder("dynamic").checkpoint());
    AutoStream::auto(io::stdout()).write_all(page.as_bytes()).map_err(Error::Stdout)
}

/// `S`.
const LENGTH: usize = 64;

fn config(arguments: &TrainArgs, vocabulary: usize, variant: Variant) -> Result<RunConfig> {
    let model = ModelConfig {
        vocabulary,
        width: 64,
        layers: 2,
        heads: 4,
        length: LENGTH,
        experts: 8,
        expert_width: 64,
        activation: Default::default(),
        causal: arguments.causal,
    };
    let steps = arguments.steps;
    let schedule =
        Schedule { batch: 16, steps, rate: 0.004, warm_up: steps / 20, weight_decay: 0.01, clip: 1.0, mask_rate: 0.3 };
    let config = RunConfig { model, schedule, variant, seed: arguments.seed };
    config.validate()?;
    Ok(config)
}

/// Importance read off attention; the number of experts follows it with a mean of [`MEAN_K`].
fn dynamic(causal: bool) -> Result<Variant> {
    let importance = match causal {
        true => json!({ "source": "given-entropy", "causal": true, "normalize": "running", "momentum": 0.9 }),
        false => json!({ "source": "received-sum", "normalize": "rank" }),
    };
    variant(json!({
        "name": "dynamic",
        "layer": {
            "importance": importance,
            "experts_per_token": { "policy": "budget-running", "mean_k": MEAN_K, "momentum": 0.9, "min": 1, "max": 4 },
            "losses": { "balance": 0.01, "z": 0.001 },
        },
    }))
}

fn fixed() -> Result<Variant> {
    variant(json!({
        "name": "fixed",
        "layer": {
            "experts_per_token": { "policy": "fixed", "k": MEAN_K, "max": 4 },
            "losses": { "balance": 0.01, "z": 0.001 },
        },
    }))
}

fn variant(json: serde_json::Value) -> Result<Variant> {
    serde_json::from_value(json).map_err(|error| Error::Usage(error.to_string()))
}

/// How often a run of this length writes.
fn pace(config: &RunConfig) -> Pace {
    Pace { line: (config.schedule.steps / 20).max(1), held_out: 1, checkpoint: 5, batches: 20 }
}

fn bar(bars: &MultiProgress, name: &'static str, steps: u64) -> ProgressBar {
    let bar = bars.add(ProgressBar::new(steps));
    match ProgressStyle::with_template("{prefix:8} {bar:32} {pos}/{len} steps  {msg}") {
        Ok(style) => bar.with_style(style).with_prefix(name),
        Err(_) => bar,
    }
}

/// Trains to the end, or goes on to it.
fn train(run: Run, bar: &ProgressBar) -> Result<Trainer, TrainError> {
    let mut tokens = 0;
    let trainer = run.train(&mut |line| {
        let rate = (line.tokens - tokens) as f64 / line.seconds;
        tokens = line.tokens;
        bar.set_position(line.step);
        bar.set_message(format!("loss {:.3}, {rate:.0} tokens/s", line.loss));
        true
    })?;
    bar.finish_and_clear();
    Ok(trainer)
}

/// A few held-out paragraphs, as the dynamic model sees them.
fn sentences(trainer: &Trainer, text: &Prose) -> Result<Vec<Explained>> {
    let long = text.held_out.iter().filter(|paragraph| paragraph.len() > 60);
    long.take(SENTENCES).map(|paragraph| Ok(trainer.explain(&beginning(paragraph))?)).collect()
}

/// As much as is easily read.
fn beginning(paragraph: &str) -> String {
    let words: Vec<&str> = paragraph.split_whitespace().take(30).collect();
    words.join(" ")
}
