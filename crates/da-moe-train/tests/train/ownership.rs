//! One writer in a folder, and one run: whatever decides a run's results belongs to what it is.

use crate::common::{LENGTH, Scratch, TestResult, config, corpus, text, variant};
use candle_core::Device;
use da_moe_train::data::{Tokenizer, prose_from_text};
use da_moe_train::{Checkpoint, Corpus, Folder, Line, Owner, Pace, Run, RunConfig, Schedule, TrainError, run};
use serde_json::json;
use std::io::Write;
use std::sync::Arc;

const PACE: Pace = Pace { line: 2, held_out: 2, checkpoint: 1, batches: 2 };

fn fixed(steps: u64) -> RunConfig {
    let layer = json!({ "experts_per_token": { "policy": "fixed", "k": 1, "max": 2 } });
    config(variant(json!({ "name": "fixed", "layer": layer })), false, steps)
}

#[test]
fn a_folder_has_one_owner_who_is_named() -> TestResult {
    let scratch = Scratch::new()?;
    let folder = scratch.path().join("new/folder");
    let owner = Owner::of(&folder)?;
    let refusal = Owner::of(&folder).map(drop);
    assert!(
        matches!(&refusal, Err(TrainError::Owned { holder, .. }) if holder.contains(&format!("process {} ", std::process::id()))),
        "{refusal:?}"
    );
    drop(owner);
    Owner::of(&folder)?;
    // A file is no folder.
    std::fs::write(scratch.path().join("file"), "")?;
    assert!(Owner::of(&scratch.path().join("file")).is_err());
    Ok(())
}

#[test]
fn a_run_under_way_is_not_joined() -> TestResult {
    let (corpus, scratch) = (Arc::new(corpus()?), Scratch::new()?);
    let folder = Folder(scratch.path().join("run"));
    let first = Run::open(&fixed(4), &corpus, PACE, &folder, &Device::Cpu)?;
    let second = Run::open(&fixed(4), &corpus, PACE, &folder, &Device::Cpu).map(drop);
    assert!(matches!(second, Err(TrainError::Owned { .. })), "{second:?}");
    first.train(&mut |_| true)?;
    assert_eq!(Run::open(&fixed(4), &corpus, PACE, &folder, &Device::Cpu)?.step(), 4);
    Ok(())
}

/// Whoever writes there without asking changes nothing of what this run has found.
#[test]
fn what_a_run_reports_is_what_it_has_seen_itself() -> TestResult {
    let (corpus, scratch) = (Arc::new(corpus()?), Scratch::new()?);
    let folder = Folder(scratch.path().join("run"));
    let mut seen: Vec<Line> = Vec::new();
    let trainer = run(&fixed(6), &corpus, PACE, &folder, &Device::Cpu, &mut |line| {
        seen.push(line.clone());
        let forged = Line { loss: 99.0, ..line.clone() };
        let mut file = std::fs::OpenOptions::new().append(true).open(folder.metrics()).expect("an open file");
        writeln!(file, "{}", serde_json::to_string(&forged).expect("a line")).expect("a written line");
        true
    })?;
    assert_eq!(trainer.lines(), seen);
    assert!(seen.iter().all(|line| line.loss < 99.0));
    Ok(())
}

#[test]
fn names_of_files_being_written_are_swept_and_no_others() -> TestResult {
    let (corpus, scratch) = (Arc::new(corpus()?), Scratch::new()?);
    let folder = Folder(scratch.path().join("run"));
    std::fs::create_dir(&folder.0)?;
    let (begun, other) = (folder.0.join(".da-moe-abc.partial"), folder.0.join("notes.partial"));
    std::fs::write(&begun, "half")?;
    std::fs::write(&other, "mine")?;
    run(&fixed(2), &corpus, PACE, &folder, &Device::Cpu, &mut |_| true)?;
    assert!(!begun.exists() && other.exists());
    let left: Vec<_> = std::fs::read_dir(&folder.0)?.flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left.len(), 4, "checkpoint, metrics, lock and what was there: {left:?}");
    Ok(())
}

#[test]
fn another_run_is_refused_by_the_field_that_differs() -> TestResult {
    let (own, scratch) = (Arc::new(corpus()?), Scratch::new()?);
    let folder = Folder(scratch.path().join("run"));
    // Interrupted, so that a run of something else would go on with its weights.
    run(&fixed(8), &own, PACE, &folder, &Device::Cpu, &mut |line| line.step < 4)?;
    let before = std::fs::read(folder.checkpoint())?;

    let other = Corpus::with_tokenizer(own.tokenizer.clone(), &prose_from_text(&text().replace("fox", "cow")), LENGTH)?;
    let held_out_alone = {
        let mut prose = prose_from_text(&text());
        prose.held_out.push("one more that nothing is trained on".into());
        Corpus::with_tokenizer(own.tokenizer.clone(), &prose, LENGTH)?
    };
    let tokenizer = Tokenizer::train(&["other merges of the same number ".repeat(20)], 280)?;
    let read_otherwise = Corpus::with_tokenizer(tokenizer, &prose_from_text(&text()), LENGTH)?;
    let (other, held_out_alone, read_otherwise) = (Arc::new(other), Arc::new(held_out_alone), Arc::new(read_otherwise));
    let vocabulary = read_otherwise.tokenizer.vocabulary();
    let model = da_moe_train::ModelConfig { vocabulary, ..fixed(8).model };
    let cases = [
        ("`text`", fixed(8), &other, PACE),
        ("`text`", fixed(8), &held_out_alone, PACE),
        ("`tokenizer`", RunConfig { model, ..fixed(8) }, &read_otherwise, PACE),
        ("`seed` is 7 there, 8 here", RunConfig { seed: 8, ..fixed(8) }, &own, PACE),
        ("`schedule.steps` is 8 there, 9 here", fixed(9), &own, PACE),
        (
            "`schedule.rate`",
            RunConfig { schedule: Schedule { rate: 0.5, ..fixed(8).schedule }, ..fixed(8) },
            &own,
            PACE,
        ),
        ("`measured.held_out_batches` is 2 there, 3 here", fixed(8), &own, Pace { batches: 3, ..PACE }),
    ];
    for (says, config, corpus, pace) in cases {
        let refusal = run(&config, corpus, pace, &folder, &Device::Cpu, &mut |_| true).map(drop);
        let Err(TrainError::Contents { problem, .. }) = refusal else {
            return Err(format!("{says}: {refusal:?}").into());
        };
        assert!(problem.contains(says) && problem.contains("remove this one"), "`{says}` is not in `{problem}`");
        assert_eq!(std::fs::read(folder.checkpoint())?, before, "nothing is changed");
    }
    // How often a checkpoint is written decides nothing.
    run(&fixed(8), &own, Pace { checkpoint: 2, ..PACE }, &folder, &Device::Cpu, &mut |_| true)?;
    Ok(())
}

/// A checkpoint without an identity can be looked at, and not be gone on from.
#[test]
fn a_checkpoint_that_does_not_say_its_text_is_refused() -> TestResult {
    let (corpus, scratch) = (Arc::new(corpus()?), Scratch::new()?);
    let folder = Folder(scratch.path().join("run"));
    run(&fixed(4), &corpus, PACE, &folder, &Device::Cpu, &mut |_| true)?;
    let bytes = std::fs::read(folder.checkpoint())?;
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes)?;
    let header = metadata.metadata().as_ref().and_then(|text| text.get("da-moe")).ok_or("no header")?;
    let mut header: serde_json::Value = serde_json::from_str(header)?;
    header.as_object_mut().and_then(|header| header.remove("identity")).ok_or("no identity")?;
    let tensors = safetensors::SafeTensors::deserialize(&bytes)?.tensors();
    let text = [("da-moe".to_string(), header.to_string())].into();
    std::fs::write(folder.checkpoint(), safetensors::serialize(tensors, Some(text))?)?;

    let refusal = run(&fixed(4), &corpus, PACE, &folder, &Device::Cpu, &mut |_| true).map(drop);
    assert!(
        matches!(&refusal, Err(TrainError::Contents { problem, .. }) if problem.contains("earlier version")),
        "{refusal:?}"
    );
    da_moe_train::explain(&Checkpoint::read(&folder.checkpoint())?, "the red fox")?;
    Ok(())
}

#[test]
fn a_record_with_a_hole_is_not_gone_on_from() -> TestResult {
    let (corpus, scratch) = (Arc::new(corpus()?), Scratch::new()?);
    let folder = Folder(scratch.path().join("run"));
    run(&fixed(6), &corpus, PACE, &folder, &Device::Cpu, &mut |_| true)?;
    std::fs::remove_file(folder.metrics())?;
    let refusal = run(&fixed(6), &corpus, PACE, &folder, &Device::Cpu, &mut |_| true).map(drop);
    assert!(
        matches!(&refusal, Err(TrainError::Contents { problem, .. }) if problem.contains("0 of the 3 lines")),
        "{refusal:?}"
    );
    Ok(())
}
