//! A grid as a whole: every run once, in any order, stopped and taken up again.

use crate::common::{Scratch, TestResult, model};
use da_moe_train::evaluate::{Event, Grid, Outcomes, Places, Plan, evaluate};
use da_moe_train::{ModelConfig, TrainError};
use serde_json::{Value, json};
use std::path::Path;
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
        *plan.pointer_mut(path).expect("a place in the plan") = value;
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
    changed("/name", json!("../../outside"), "`name`");
    changed("/name", json!("/outside"), "`name`");
    changed("/name", json!(""), "`name`");
    changed("/name", json!("."), "`name`");
    changed("/groups/0/name", json!(".."), "`groups.name`");
    changed("/groups/0/variants/0/name", json!("a\0"), "`variants.name`");
    changed("/groups/0/matched/0/name", json!("x".repeat(300)), "`variants.name`");
    changed("/groups", json!([]), "`groups`: is empty");
    changed("/groups", json!([plan(&[1])["groups"][0], plan(&[2])["groups"][0]]), "`groups`: `masked` is there twice");
    changed("/vocabulary", json!(259), "`vocabulary`");
    changed("/vocabulary", json!(1_000_000_000), "`vocabulary`");
    changed("/groups/0/seeds", json!([]), "`seeds`");
    changed("/groups/0/seeds", json!([3, 4, 3]), "`seeds`: `3` is there twice");
    changed("/groups/0/schedule/steps", json!(0), "`schedule.steps`");
    changed("/groups/0/schedule/steps", json!(u64::MAX), "`schedule.steps`");
    changed("/groups/0/schedule/warm_up", json!(9), "`schedule.warm_up`: 9 steps are more than all 8");
    changed("/groups/0/schedule/rate", json!(1e30), "`schedule.rate`: 1e30");
    changed("/groups/0/schedule/batch", json!(0), "`schedule.batch`");
    changed("/groups/0/schedule/batch", json!(usize::MAX), "`schedule.batch`");
    changed("/groups/0/model/length", json!(2), "`model.length`");
    changed("/groups/0/model/length", json!(usize::MAX), "`model");
    changed("/groups/0/comparisons/0/against", json!("received"), "`comparisons.against`");
    changed("/groups/0/fine_tuning/sets", json!([]), "`fine_tuning.sets`");
    changed("/groups/0/fine_tuning/sets", json!(["glue/RTE", "glue/rte"]), "`fine_tuning.sets`");
    changed("/groups/0/fine_tuning/sets", json!(["../toy"]), "`fine_tuning.sets`");
    changed("/groups/0/fine_tuning/batch", json!(0), "`fine_tuning.batch`");
    changed("/groups/0/fine_tuning/batch", json!(usize::MAX), "`fine_tuning.batch`");
    changed("/groups/0/fine_tuning/steps", json!(0), "`fine_tuning.steps`");
    changed("/groups/0/fine_tuning/rate", json!(-1.0), "`fine_tuning.rate`");
    changed("/groups/0/fine_tuning/rate", json!(1e30), "`fine_tuning.rate`");
    for (plan, says) in cases {
        let refusal = parsed(&plan).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(refusal.contains(says), "`{says}` is not in `{refusal}`");
    }
}

/// Text of other words, where `cargo xtask data` would have written it.
fn write_prose(data: &Path, word: &str) -> TestResult {
    std::fs::create_dir_all(data.join("prose"))?;
    for name in da_moe_train::data::PROSE_SETS {
        let document = |n: usize| {
            let text = format!("{name} {word} {} sleeps under the bridge until the day is over", "x".repeat(n + 1));
            json!({ "text": text }).to_string() + "\n"
        };
        std::fs::write(data.join(format!("prose/{name}.jsonl")), (0..40).map(document).collect::<String>())?;
    }
    Ok(())
}

/// Outcomes and checkpoints are those of their text and their sets.
#[test]
fn another_text_or_set_is_refused_before_the_first_step() -> TestResult {
    let folder = Scratch::new()?;
    let places = places(&folder, 2)?;
    write_prose(&places.data, "fox")?;
    let mut plan = with_known_set(plan(&[1]));
    plan["text"] = json!("data");
    evaluate(&parsed(&plan)?, &places, &|_| {})?;
    let kept = std::fs::read(&places.outcomes)?;
    let refused = |plan: &Value, says: &str| -> TestResult {
        let refusal = evaluate(&parsed(plan)?, &places, &|event| panic!("{event:?}")).map(drop);
        let told = refusal.as_ref().err().map(ToString::to_string).unwrap_or_default();
        assert!(told.contains(says) && told.contains("remove this one"), "`{says}` is not in {refusal:?}");
        Ok(())
    };
    let set = places.data.join(format!("labelled/{}.jsonl", da_moe_train::data::LABELLED_SETS[0]));
    let examples = std::fs::read_to_string(&set)?;
    std::fs::write(&set, examples.replacen("good good", "good enough", 1))?;
    refused(&plan, "`fine_tuning.sets.food-reviews`")?;
    std::fs::write(&set, examples)?;
    for (path, value, says) in [
        ("/groups/0/held_out_batches", json!(3), "`measured.held_out_batches` is 2 there, 3 here"),
        ("/groups/0/fine_tuning/steps", json!(31), "`fine_tuning.steps` is 30 there, 31 here"),
        ("/groups/0/fine_tuning/batch", json!(5), "`fine_tuning.batch`"),
        ("/groups/0/fine_tuning", Value::Null, "`fine_tuning` is"),
    ] {
        let mut other = plan.clone();
        *other.pointer_mut(path).ok_or("no such place")? = value;
        refused(&other, says)?;
    }
    write_prose(&places.data, "cow")?;
    refused(&plan, "`text` is sha256:")?;
    assert_eq!(std::fs::read(&places.outcomes)?, kept);

    // Checkpoints alone say as much, and so do outcomes alone.
    std::fs::rename(&places.outcomes, folder.path().join("aside"))?;
    refused(&plan, "`text` is sha256:")?;
    std::fs::rename(folder.path().join("aside"), &places.outcomes)?;
    std::fs::remove_dir_all(&places.work)?;
    refused(&plan, "`text` is sha256:")?;

    // What does not say of what it is, is not taken for this either.
    write_prose(&places.data, "fox")?;
    let mut lines = String::new();
    for outcome in Outcomes::read(&places.outcomes)?.0 {
        let mut outcome = serde_json::to_value(outcome)?;
        outcome.as_object_mut().ok_or("no outcome")?.remove("identity");
        lines += &(outcome.to_string() + "\n");
    }
    std::fs::write(&places.outcomes, lines)?;
    refused(&plan, "earlier version")
}

#[test]
fn a_grid_under_way_shares_its_folders_with_no_other() -> TestResult {
    let folder = Scratch::new()?;
    let places = places(&folder, 1)?;
    let mut plan = with_known_set(plan(&[1]));
    let first = parsed(&plan)?;
    let grid = Grid::open(&first, &places)?;
    let owned = |plan: &Value, places: &Places| -> TestResult<bool> {
        let plan = parsed(plan)?;
        let opened = Grid::open(&plan, places).map(drop);
        Ok(matches!(opened, Err(TrainError::Owned { .. })))
    };
    assert!(owned(&plan, &places)?);
    let elsewhere = folder.path().join("other/outcomes.jsonl");
    assert!(owned(&plan, &Places { outcomes: elsewhere.clone(), ..places.clone() })?, "the same work folder");
    plan["name"] = json!("another");
    assert!(owned(&plan, &places)?, "the same file of outcomes");
    assert!(!owned(&plan, &Places { outcomes: elsewhere, ..places.clone() })?);
    assert_eq!(Outcomes::read(&places.outcomes)?.0.len(), 0, "reading needs no leave");
    drop(grid);
    assert!(!owned(&plan, &places)?);
    Ok(())
}

/// `a b` and `a_b`, `x` and `X`, and groups whose names end where variants' begin.
#[test]
fn every_run_has_a_folder_of_its_own_inside_the_work_folder() -> TestResult {
    let folder = Scratch::new()?;
    let places = places(&folder, 2)?;
    let mut plan = with_known_set(plan(&[1]));
    plan["name"] = json!("a plan: of names");
    let mut group = plan["groups"][0].clone();
    group["matched"] = json!([]);
    group["fine_tuning"] = Value::Null;
    group["comparisons"] = json!([]);
    for (index, name) in ["a b", "a_b", "A_b"].into_iter().enumerate() {
        group["variants"][index]["name"] = json!(name);
    }
    let (mut one, mut two) = (group.clone(), group);
    (one["name"], two["name"]) = (json!("g"), json!("g-a_b"));
    plan["groups"] = json!([one, two]);
    let outcomes = evaluate(&parsed(&plan)?, &places, &|_| {})?;
    assert_eq!(outcomes.0.len(), 6);
    let mut folders = vec![places.work.clone()];
    let mut checkpoints = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)?.flatten() {
            match entry.file_type()?.is_dir() {
                true => folders.push(entry.path()),
                false if entry.file_name() == "checkpoint.safetensors" => checkpoints.push(entry.path()),
                false => {}
            }
        }
    }
    assert_eq!(checkpoints.len(), 6);
    Ok(())
}

/// A line that was torn costs its own run, and is told of once.
#[test]
fn a_torn_file_of_outcomes_costs_one_run() -> TestResult {
    let folder = Scratch::new()?;
    let places = places(&folder, 2)?;
    let plan = parsed(&with_known_set(plan(&[1])))?;
    let expected = evaluate(&plan, &places, &|_| {})?;
    let whole = std::fs::read(&places.outcomes)?;
    let ends: Vec<usize> = (0..whole.len()).filter(|&at| whole[at] == b'\n').collect();
    let count = |bytes: &[u8]| -> TestResult<[usize; 2]> {
        std::fs::write(&places.outcomes, bytes)?;
        let (notes, started) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let outcomes = evaluate(&plan, &places, &|event| match event {
            Event::Note(_) => drop(notes.fetch_add(1, Ordering::Relaxed)),
            Event::Start(_) => drop(started.fetch_add(1, Ordering::Relaxed)),
            _ => {}
        })?;
        assert_eq!(figures(&outcomes), figures(&expected));
        assert_eq!(figures(&Outcomes::read(&places.outcomes)?), figures(&expected), "the file is whole again");
        Ok([notes.into_inner(), started.into_inner()])
    };
    assert_eq!(count(&whole[..whole.len() - 1])?, [0, 0], "an end that is missing loses nothing");
    assert_eq!(count(&whole[..ends[2] + 100])?, [1, 1]);
    let glued = [&whole[..ends[1] + 1], &whole[ends[1] + 1..ends[1] + 50], &whole[ends[2] + 1..]].concat();
    std::fs::write(&places.outcomes, &glued)?;
    assert_eq!(Outcomes::read(&places.outcomes)?.0.len(), 3);
    assert_eq!(count(&whole)?, [0, 0]);
    std::fs::write(&places.outcomes, b"\xff\xfe\n")?;
    let refusal = evaluate(&plan, &places, &|_| {}).map(drop);
    assert!(refusal.is_err_and(|error| error.to_string().contains("outcomes.jsonl: line 1: byte 1 is not UTF-8")));
    Ok(())
}

/// A mean of all experts has none above it to choose from.
#[test]
fn a_control_of_all_experts_can_be_run() -> TestResult {
    let folder = Scratch::new()?;
    let mut plan = plan(&[1]);
    plan["groups"][0]["fine_tuning"] = Value::Null;
    plan["groups"][0]["variants"][0]["layer"] = json!({ "experts_per_token": { "policy": "fixed", "k": 4 } });
    let outcomes = evaluate(&parsed(&plan)?, &places(&folder, 2)?, &|_| {})?;
    assert_eq!(outcomes.0.len(), 4);
    Ok(())
}

/// So few tokens are masked that most batches would ask nothing.
#[test]
fn a_batch_that_masks_nothing_masks_one() -> TestResult {
    let folder = Scratch::new()?;
    let mut plan = plan(&[1]);
    plan["groups"][0]["fine_tuning"] = Value::Null;
    plan["groups"][0]["matched"] = json!([]);
    plan["groups"][0]["schedule"]["mask_rate"] = json!(1e-9);
    for outcome in evaluate(&parsed(&plan)?, &places(&folder, 2)?, &|_| {})?.0 {
        assert!(outcome.held_out.loss.is_finite());
    }
    Ok(())
}

#[test]
fn a_set_that_is_not_there_is_named() -> TestResult {
    let folder = Scratch::new()?;
    let refusal = evaluate(&parsed(&plan(&[1]))?, &places(&folder, 1)?, &|_| {});
    assert!(matches!(&refusal, Err(TrainError::Data(error)) if error.to_string().contains("toy")), "{refusal:?}");
    Ok(())
}
