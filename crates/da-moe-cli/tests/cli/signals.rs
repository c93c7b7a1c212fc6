//! A process that trains ends when it is told to, and nothing goes on in its place.

use crate::common::{assert_refused, program};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longer than any of these models needs for a few steps on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A process that a failed test does not leave behind.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

fn start(folder: &Path, arguments: &[&str]) -> Started {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("da-moe"));
    command.current_dir(folder).args(arguments).env_remove("RAYON_NUM_THREADS");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Started(command.spawn().expect("a program that starts"))
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what} has not come");
        sleep(Duration::from_millis(20));
    }
}

/// Processes that work in `folder`: each test has a folder of its own. Those that have ended and not been waited for work nowhere.
fn at_work(folder: &Path) -> Vec<PathBuf> {
    let folder = folder.canonicalize().expect("a folder");
    let processes = fs::read_dir("/proc").expect("processes").flatten().map(|entry| entry.path());
    processes.filter(|process| fs::read_link(process.join("cwd")).is_ok_and(|place| place == folder)).collect()
}

/// Every file below `folder`, with its length and the time of its last change.
fn files(folder: &Path) -> Vec<(PathBuf, u64, std::time::SystemTime)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => found.extend(files(&entry.path())),
            Ok(metadata) => found.push((entry.path(), metadata.len(), metadata.modified().expect("a time"))),
            Err(_) => {}
        }
    }
    found.sort();
    found
}

/// Starts a command, waits for `file`, sends the signal, and expects everything to have ended with it.
fn ends_with(signal: (&str, i32), arguments: &[&str], file: &str) -> TempDir {
    let folder = TempDir::new().expect("a temporary folder");
    let Started(child) = &mut start(folder.path(), arguments);
    wait_until(file, || {
        assert!(child.try_wait().expect("a status").is_none(), "{arguments:?} ended by itself");
        folder.path().join(file).exists()
    });
    assert_eq!(at_work(folder.path()).len(), 1, "{arguments:?} is more than one process");
    let kill = Command::new("kill").args(["-s", signal.0, &child.id().to_string()]).status();
    assert!(kill.is_ok_and(|status| status.success()));
    let status = child.wait().expect("a status");
    assert_eq!(status.signal(), Some(signal.1), "{arguments:?}: {status}");
    assert_eq!(at_work(folder.path()), [] as [PathBuf; 0], "{arguments:?}: something goes on after {}", signal.0);
    let left = files(folder.path());
    sleep(Duration::from_millis(300));
    assert_eq!(files(folder.path()), left, "{arguments:?}: something writes after {}", signal.0);
    folder
}

/// Whenever it was: here after the first checkpoint, so that there is one to go on from.
#[test]
fn training_ends_by_the_signal_that_it_was_sent_and_leaves_a_checkpoint() {
    let checkpoint = "da-moe-model/dynamic/checkpoint.safetensors";
    for signal in [("TERM", 15), ("INT", 2), ("KILL", 9)] {
        // The most steps with a checkpoint after five of them: little to wait for, and much left to do.
        let folder = ends_with(signal, &["train", "--steps", "39", "--vocabulary", "280"], checkpoint);
        let mut explain = program();
        explain.current_dir(folder.path()).args(["explain", "--text", "a bridge", "--model", checkpoint]);
        explain.assert().success();
    }
}

#[test]
fn an_evaluation_ends_by_the_signal_that_it_was_sent() {
    ends_with(("TERM", 15), &["evaluate"], "target/evaluate");
}

/// The program is started again with one thread a run, once, and what is wrong is told once.
#[test]
fn what_is_wrong_is_told_once_whatever_number_of_threads_is_asked_for() {
    for threads in ["1", "2", "many"] {
        let folder = TempDir::new().expect("a temporary folder");
        let mut command = program();
        command.current_dir(folder.path()).env("RAYON_NUM_THREADS", threads);
        let output = command.args(["train", "--text", "absent.txt"]).output().expect("a program that starts");
        assert_refused(&output, "absent.txt");
    }
}
