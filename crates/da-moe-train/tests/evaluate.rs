//! A grid as a whole: every run once, in any order, stopped and taken up again.

mod common;

use common::{Scratch, TestResult, model};
use da_moe_train::evaluate::{Event, Outcomes, Places, Plan, evaluate};
use da_moe_train::{ModelConfig, TrainError};
use serde_json::{Value, json};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

fn plan(seeds: &[u64]) -> Value {
    let budget = json!({ "policy": "budget-running", "mean_k": 2, "momentum": 0.9, "min": 1, "max": 3 });
    let model = ModelConfig { vocabulary: 0, ..model(false) };
    json!({
        "name": "test", "text": "documentation", "vocabulary": 280,
        "groups": [{
            "name": "masked", "model": model, "seeds": seeds, "held_out_batches": 2,
            "schedule": { "batch": 4, "steps": 8, "rate": 0.01, "warm_up": 2 },
            "variants": [
                { "name": "paper", "layer": { "experts_per_token": { "policy": "proportional", "min": 1, "max": 3 },
                                              "importance": { "source": "received-max", "normalize": "max" } } },
                { "name": "random", "signal": "random", "rank": "groups", "layer": { "experts_per_token": budget } },
                { "name": "received", "rank": "groups", "layer": { "experts_per_token": budget } },
            ],
            "matched": [{ "name": "matched", "mean_k_of": "paper" }],
            "comparisons": [{ "question": "Is it importance?", "of": "received", "against": "random", "headline": true }],
            "fine_tuning": { "sets": ["toy"], "batch": 4, "steps": 30, "rate": 0.02 },
        }],
    })
}

fn parsed(plan: &Value) -> da_moe_train::Result<Plan> {
    Plan::parse(&plan.to_string(), "test.json".as_ref())
}

/// Places below a folder, with a labelled set whose classes are two words.
fn places(folder: &Scratch, at_once: usize) -> TestResult<Places> {
    let data = folder.path().join("data");
    std::fs::create_dir_all(data.join("labelled"))?;
    let example = |n: usize| {
        let (text, label) = [("good good good", "yes"), ("bad bad bad", "no")][n % 2];
        let split = ["train", "validation", "test"][n / 2 % 3];
        json!({ "text": text, "label": label, "split": split }).to_string() + "\n"
    };
    for set in da_moe_train::data::LABELLED_SETS {
        std::fs::write(data.join(format!("labelled/{set}.jsonl")), (0..24).map(example).collect::<String>())?;
    }
    let (work, outcomes) = (folder.path().join("work"), folder.path().join("outcomes.jsonl"));
    Ok(Places { data, work, outcomes, at_once, device: candle_core::Device::Cpu })
}

fn with_known_set(mut plan: Value) -> Value {
    plan["groups"][0]["fine_tuning"]["sets"] = json!([da_moe_train::data::LABELLED_SETS[0]]);
    plan
}

/// Everything but times.
fn figures(outcomes: &Outcomes) -> Vec<Value> {
    let mut figures: Vec<Value> = outcomes.0.iter().filter_map(|outcome| serde_json::to_value(outcome).ok()).collect();
    figures.iter_mut().for_each(|figure| figure["processor_seconds"] = Value::Null);
    figures.sort_by_key(ToString::to_string);
    figures
}

#[test]
fn a_grid_taken_up_again_has_the_outcomes_of_one_that_never_stopped() -> TestResult {
    let (whole, parts) = (Scratch::new()?, Scratch::new()?);
    let plan_of = |seeds: &[u64]| parsed(&with_known_set(plan(seeds)));
    let expected = evaluate(&plan_of(&[1, 2])?, &places(&whole, 2)?, &|_| {})?;
    assert_eq!(expected.0.len(), 8);

    let places = places(&parts, 1)?;
    evaluate(&plan_of(&[1])?, &places, &|_| {})?;
    let (done, started) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let outcomes = evaluate(&plan_of(&[1, 2])?, &places, &|event| match event {
        Event::Done(_) => drop(done.fetch_add(1, Ordering::Relaxed)),
        Event::Start(job) => started.lock().unwrap().push(job.seed),
        _ => {}
    })?;
    assert_eq!(done.into_inner(), 4, "runs of the first seed are not made again");
    assert_eq!(started.into_inner()?, [2; 4]);
    assert_eq!(figures(&outcomes), figures(&expected), "one run at a time or two make no difference");
    assert_eq!(figures(&Outcomes::read(&places.outcomes)?), figures(&expected));

    std::fs::remove_file(&places.outcomes)?;
    let resumed = evaluate(&plan_of(&[1, 2])?, &places, &|_| {})?;
    assert_eq!(figures(&resumed), figures(&expected), "from their last checkpoints the runs end as they did");
    let timed = |outcomes: &Outcomes| outcomes.0.iter().filter(|outcome| outcome.processor_seconds.is_some()).count();
    assert_eq!((timed(&expected), timed(&resumed)), (8, 0), "what a run took is known if it was made in one piece");
    Ok(())
}

#[test]
fn a_matched_variant_has_the_mean_of_its_model() -> TestResult {
    let folder = Scratch::new()?;
    let plan = parsed(&with_known_set(plan(&[3])))?;
    let outcomes = evaluate(&plan, &places(&folder, 2)?, &|_| {})?;
    let mean = |name: &str| outcomes.estimate(&plan.groups[0], name, |outcome| outcome.held_out.allocated.mean_k);
    let (paper, matched) = (mean("paper").ok_or("no outcome")?.mean, mean("matched").ok_or("no outcome")?.mean);
    assert!((paper - matched).abs() < 0.15, "{paper} and {matched}");
    Ok(())
}

/// A control at another mean than its model's, or with other fields, is no outcome of the plan.
#[test]
fn outcomes_of_other_configurations_do_not_count() -> TestResult {
    let folder = Scratch::new()?;
    let plan = parsed(&with_known_set(plan(&[1])))?;
    let mut outcomes = evaluate(&plan, &places(&folder, 1)?, &|_| {})?;
    let group = &plan.groups[0];
    for name in group.names() {
        assert_eq!(outcomes.by_seed(group, name).len(), 1, "{name}");
    }
    let model = outcomes.0.iter_mut().find(|outcome| outcome.config.variant.name == "paper").ok_or("no outcome")?;
    model.held_out.allocated.mean_k += 0.01;
    assert_eq!(outcomes.by_seed(group, "matched").len(), 0);
    let random = outcomes.0.iter_mut().find(|outcome| outcome.config.variant.name == "random").ok_or("no outcome")?;
    random.config.variant.layer.insert("losses".into(), json!({ "balance": 0.5 }));
    assert_eq!(outcomes.by_seed(group, "random").len(), 0);
    Ok(())
}

/// Two words that are two classes, after a few steps.
#[test]
fn fine_tuning_learns_what_can_be_told_apart() -> TestResult {
    let folder = Scratch::new()?;
    let plan = parsed(&with_known_set(plan(&[1])))?;
    for outcome in &evaluate(&plan, &places(&folder, 1)?, &|_| {})?.0 {
        assert_eq!(outcome.accuracy.values().copied().collect::<Vec<_>>(), [1.0], "{}", outcome.config.variant.name);
    }
    Ok(())
}

/// What is stated before running is refused before running.
#[test]
fn plans_that_cannot_run_are_refused() {
    let mut cases = Vec::new();
    let mut changed = |path: &str, value: Value, says: &'static str| {
        let mut plan = plan(&[1]);
        if let Some(place) = plan.pointer_mut(path) {
            *place = value;
        }
        cases.push((plan, says));
    };
    changed("/groups/0/comparisons/0/of", json!("nobody"), "has no variant `nobody`");
    changed("/groups/0/matched/0/mean_k_of", json!("nobody"), "has no variant `nobody`");
    changed("/groups/0/matched/0/mean_k_of", json!("matched"), "has no variant `matched` of its own");
    changed("/groups/0/variants/1/name", json!("paper"), "`paper` is there twice");
    changed("/groups/0/model/heads", json!(3), "3 heads do not divide a width of 16");
    changed("/groups/0/model/causal", json!(true), "leak");
    changed("/groups/0/held_out_batches", json!(0), "nothing would decide");
    changed("/groups/0/schedule/rate", json!(-1.0), "-1 is not a positive number");
    changed("/groups/0/variants/2/layer/experts_per_token", json!({ "policy": "fixed" }), "missing field `k`");
    changed("/groups/0/name", json!(3), "test.json");
    for (plan, says) in cases {
        let refusal = parsed(&plan).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(refusal.contains(says), "`{says}` is not in `{refusal}`");
    }
}

#[test]
fn a_set_that_is_not_there_is_named() -> TestResult {
    let folder = Scratch::new()?;
    let refusal = evaluate(&parsed(&plan(&[1]))?, &places(&folder, 1)?, &|_| {});
    assert!(matches!(&refusal, Err(TrainError::Data(error)) if error.to_string().contains("toy")), "{refusal:?}");
    Ok(())
}
