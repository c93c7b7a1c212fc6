//! Folders that `train` and `evaluate` write over time: one owner, one run, and whole lines whatever happens to the writer.

use crate::common::{assert_refused, program};
use da_moe_train::Owner;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

fn folder() -> TempDir {
    TempDir::new().expect("a temporary folder")
}

/// The program as one process, which does not start itself again.
fn single(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("da-moe"));
    command.current_dir(folder).args(arguments).env("RAYON_NUM_THREADS", "1").env("TERM", "dumb");
    command
}

fn start(folder: &Path, arguments: &[&str]) -> Child {
    let mut command = single(folder, arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a program that starts")
}

fn output(folder: &Path, arguments: &[&str]) -> Output {
    program().current_dir(folder).args(arguments).output().expect("a program that starts")
}

/// Waits until another process holds a folder.
fn wait_for(lock: &Path) {
    let start = Instant::now();
    while fs::metadata(lock).map_or(true, |metadata| metadata.len() == 0) {
        assert!(start.elapsed() < Duration::from_secs(60), "{} is not written", lock.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn count(path: &Path) -> usize {
    fs::read_to_string(path).unwrap_or_default().lines().count()
}

/// A text that is another one for each word.
fn write_text(folder: &Path, word: &str) -> String {
    let paragraph = |n: usize| {
        let (who, place) = (["red", "grey", "young", "old"][n % 4], ["bridge", "house", "tree"][n / 4 % 3]);
        let long = "on and on ".repeat(n / 12 + 1);
        format!(
            "The {who} {word} went {long} to the {place} until the day was over, and all the others stayed behind.\n\n"
        )
    };
    let name = format!("{word}.txt");
    fs::write(folder.join(&name), (0..60).map(paragraph).collect::<String>()).expect("a written file");
    name
}

/// The smallest plan, with its options; `steps` make it last.
fn plan(folder: &Path, steps: u64) -> [&'static str; 3] {
    let plan = include_str!("../../plans/smoke.json");
    let mut plan: serde_json::Value = serde_json::from_str(plan).expect("a plan");
    let group = &mut plan["groups"][0];
    group["schedule"]["steps"] = steps.into();
    group["schedule"]["warm_up"] = 1.into();
    group["held_out_batches"] = 1.into();
    for name in ["matched", "comparisons"] {
        group[name] = serde_json::json!([]);
    }
    let variants = group["variants"].as_array_mut().expect("variants");
    variants.truncate(2);
    fs::write(folder.join("plan.json"), plan.to_string()).expect("a written file");
    ["evaluate", "--plan", "plan.json"]
}

#[test]
fn of_two_evaluations_at_once_one_runs() {
    let folder = folder();
    let evaluate = plan(folder.path(), 20);
    let both = [0, 1].map(|_| start(folder.path(), &evaluate));
    let ended = both.map(|child| child.wait_with_output().expect("an end"));
    let (well, refused): (Vec<_>, Vec<_>) = ended.iter().partition(|output| output.status.success());
    assert!(!well.is_empty(), "{ended:?}");
    for output in refused {
        assert_refused(output, "is being written by");
    }
    assert_eq!(count(&folder.path().join("evaluation/outcomes.jsonl")), 4);
}

/// Of the same runs, of another report of them, and of other runs in the same report.
#[test]
fn what_another_process_writes_is_refused_with_its_name() {
    let folder = folder();
    let evaluate = plan(folder.path(), 2);
    let with = |more: &[&str]| output(folder.path(), &[&evaluate, more].concat());
    let name = format!("process {} ", std::process::id());
    let owner = Owner::of(&folder.path().join("target/evaluate/smoke")).expect("a free folder");
    assert_refused(&with(&[]), &name);
    assert_refused(&with(&["--report", "other.md"]), &name);
    drop(owner);
    let owner = Owner::of(&folder.path().join("evaluation")).expect("a free folder");
    assert_refused(&with(&["--work", "work"]), &name);
    assert!(with(&["--only-report"]).status.success(), "reading is not writing");
    drop(owner);
    assert!(with(&[]).status.success());
}

#[test]
fn a_killed_owner_leaves_its_folder_to_the_next() {
    let folder = folder();
    let text = write_text(folder.path(), "fox");
    let arguments = ["train", "--text", &text, "--model", "model", "--steps", "2000", "--vocabulary", "280"];
    let mut first = start(folder.path(), &arguments);
    let pid = format!("process {}", first.id());
    wait_for(&folder.path().join("model/.da-moe.lock"));
    assert_refused(&output(folder.path(), &arguments), &pid);
    first.kill().expect("a process to kill");
    first.wait().expect("an end");
    let mut second = start(folder.path(), &arguments);
    let name = format!("process {} ", second.id());
    let lock = folder.path().join("model/.da-moe.lock");
    let begun = Instant::now();
    while !fs::read_to_string(&lock).unwrap_or_default().starts_with(&name) {
        assert!(
            begun.elapsed() < Duration::from_secs(60) && matches!(second.try_wait(), Ok(None)),
            "the folder is free"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    second.kill().expect("a process to kill");
    second.wait().expect("an end");
}

#[test]
fn another_text_is_another_run() {
    let folder = folder();
    let (fox, cow) = (write_text(folder.path(), "fox"), write_text(folder.path(), "cow"));
    let train = |text: &str| {
        output(folder.path(), &["train", "--text", text, "--model", "model", "--steps", "4", "--vocabulary", "260"])
    };
    let first = train(&fox);
    assert!(first.status.success(), "{first:?}");
    let refused = train(&cow);
    assert_refused(&refused, "`text` is sha256:");
    assert_refused(&refused, "--model");
    assert_eq!(train(&fox).stdout, first.stdout);
}

/// A file that may grow no longer is a disk without room: the shell's limit is 512 bytes a block.
#[test]
#[cfg(unix)]
fn room_made_again_is_all_that_a_full_disk_asks_for() {
    let folder = folder();
    let evaluate = plan(folder.path(), 2);
    let outcomes = folder.path().join("evaluation/outcomes.jsonl");
    fs::create_dir(folder.path().join("evaluation")).expect("a folder");
    // Lines of nothing leave room for an outcome or two below the limit, which checkpoints are far from.
    fs::write(&outcomes, "\n".repeat(2048 * 512 - 4000)).expect("a written file");
    let program = assert_cmd::cargo::cargo_bin!("da-moe");
    let limited = |trap: &str| {
        let script = format!("{trap} ulimit -f 2048; exec \"$0\" {} --at-once 1", evaluate.join(" "));
        Command::new("sh")
            .arg("-c")
            .arg(script)
            .arg(program)
            .current_dir(folder.path())
            .env("RAYON_NUM_THREADS", "1")
            .output()
    };
    // Told by the system, then killed by it.
    let told = limited("trap '' XFSZ;").expect("a shell");
    assert_refused(&told, "outcomes.jsonl");
    let killed = limited("").expect("a shell");
    assert!(!killed.status.success());
    let ended = output(folder.path(), &evaluate);
    assert!(ended.status.success(), "{ended:?}");
    assert!(String::from_utf8_lossy(&ended.stderr).lines().count() <= 1, "{ended:?}");
    let kept = fs::read_to_string(&outcomes).expect("outcomes");
    assert_eq!(kept.lines().filter(|line| !line.is_empty()).count(), 4);
}

/// Told before the first step, so that nothing has been trained in vain.
#[test]
fn what_cannot_be_written_in_the_end_is_refused_in_the_beginning() {
    let folder = folder();
    let text = write_text(folder.path(), "fox");
    let plan = include_str!("../../plans/smoke.json");
    fs::write(folder.path().join("plan.json"), plan).expect("a written file");
    fs::create_dir_all(folder.path().join("taken/outcomes.jsonl")).expect("a folder");
    fs::create_dir_all(folder.path().join("data/prose.md")).expect("a folder");
    fs::write(folder.path().join("file"), "").expect("a written file");
    fs::write(folder.path().join("file.md"), "").expect("a written file");
    // Of two fields of one name only one would count.
    let twice = plan.replacen("\"k\": 1, \"max\": 3 }", "\"k\": 1, \"max\": 3 }, \"experts_per_token\": {}", 1);
    assert_ne!(twice, plan);
    fs::write(folder.path().join("twice.json"), twice).expect("a written file");
    let evaluate: [(&[&str], &str); 10] = [
        (&["--report", "report."], "--report `report.`"),
        (&["--plan", "twice.json"], "`experts_per_token` is there twice"),
        (&["--report", "report"], "--report `report`"),
        (&["--report", "."], "--report `.`"),
        (&["--report", "data/prose.md"], "data/prose.md"),
        (&["--report", "taken.md"], "taken/outcomes.jsonl"),
        (&["--report", "file.md"], "file"),
        (&["--plan", "plan.json", "--report", "plan.json"], "--report `plan.json`"),
        (&["--work", "file"], "file"),
        (&["--at-once", "1000000000"], "--at-once"),
    ];
    for (arguments, culprit) in evaluate {
        assert_refused(&output(folder.path(), &[&["evaluate"], arguments].concat()), culprit);
    }
    assert_eq!(fs::read_to_string(folder.path().join("plan.json")).expect("the plan"), plan);
    let train: [(&[&str], &str); 6] = [
        (&["--svg", "absent/picture.svg"], "--svg `absent/picture.svg`"),
        (&["--svg", "."], "--svg `.`"),
        (&["--svg", &text], "written over"),
        (&["--model", "file"], "file"),
        (&["--vocabulary", "259"], "--vocabulary"),
        (&["--steps", "18446744073709551615"], "--steps"),
    ];
    for (arguments, culprit) in train {
        assert_refused(&output(folder.path(), &[&["train", "--text", &text], arguments].concat()), culprit);
    }
    let trained = ["da-moe-model", "target/evaluate/smoke/masked"].map(|place| folder.path().join(place).exists());
    assert_eq!(trained, [false; 2], "nothing was trained");
    assert_refused(&output(folder.path(), &["explain", "--text", "a"]), "da-moe train");
}

#[cfg(unix)]
#[test]
fn links_that_lead_nowhere_are_refused_in_the_beginning() {
    let folder = folder();
    let text = write_text(folder.path(), "fox");
    for (link, place) in
        [("astray.svg", "absent/picture.svg"), ("circle.svg", "circle.svg"), ("report.md", "absent/report.md")]
    {
        std::os::unix::fs::symlink(place, folder.path().join(link)).expect("a link");
    }
    for link in ["astray.svg", "circle.svg"] {
        let train = ["train", "--text", &text, "--svg", link];
        assert_refused(&output(folder.path(), &train), &format!("--svg `{link}` cannot be written"));
    }
    assert_refused(
        &output(folder.path(), &["evaluate", "--report", "report.md"]),
        "--report `report.md` cannot be written",
    );
    let trained = ["da-moe-model", "target/evaluate/smoke/masked"].map(|place| folder.path().join(place).exists());
    assert_eq!(trained, [false; 2], "nothing was trained");
}

/// Nothing is read of what may never end.
#[cfg(unix)]
#[test]
fn a_device_is_no_checkpoint() {
    let folder = folder();
    assert_refused(
        &output(folder.path(), &["explain", "--text", "a", "--model", "/dev/null"]),
        "/dev/null: is not a file",
    );
}

#[test]
fn what_is_read_is_not_written_over() {
    let folder = folder();
    let text = write_text(folder.path(), "fox");
    let before = fs::read(folder.path().join(&text)).expect("the text");
    let others: [&[&str]; 3] = [
        &["demo", "--text", &text],
        &["explain", "--text", "a", "--model", &text],
        &["run", "--config", &text, "--input", &text, "--output", &text],
    ];
    for command in others {
        let options: &[&[&str]] =
            if command[0] == "run" { &[&[]] } else { &[&["--svg", &text], &["--html", "./fox.txt"]] };
        for option in options {
            assert_refused(&output(folder.path(), &[command, option].concat()), "is what is read");
        }
    }
    assert_eq!(fs::read(folder.path().join(&text)).expect("the text"), before);
}

#[test]
fn a_report_of_two_texts_is_refused() {
    let folder = folder();
    let evaluate = plan(folder.path(), 2);
    assert!(output(folder.path(), &evaluate).status.success());
    let outcomes = folder.path().join("evaluation/outcomes.jsonl");
    let kept = fs::read_to_string(&outcomes).expect("outcomes");
    let at = kept.find("\"text\":\"").expect("an identity") + "\"text\":\"".len();
    let mut mixed = kept.clone();
    mixed.replace_range(at..at + 8, "01234567");
    fs::write(&outcomes, &mixed).expect("a written file");
    assert_refused(&output(folder.path(), &[&evaluate[..], &["--only-report"]].concat()), "`text`");
    assert_refused(&output(folder.path(), &evaluate), "`text`");
}

/// A repository that was cloned without git-lfs has such files.
#[test]
fn a_git_lfs_pointer_is_named_wherever_training_reads() {
    let folder = folder();
    let write = |path: &str| {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        let oid = "0".repeat(64);
        fs::write(path, format!("version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 12345\n"))
    };
    let plan = include_str!("../../plans/smoke.json").replace("\"documentation\"", "\"data\"");
    fs::write(folder.path().join("data.json"), plan).expect("a written file");
    let model = "model/dynamic/checkpoint.safetensors";
    for file in ["text.txt", "plan.json", "data/prose/brown.jsonl", "evaluation/outcomes.jsonl", model] {
        write(file).expect("a written file");
    }
    let own = write_text(folder.path(), "fox");
    let cases: [(&[&str], &str); 6] = [
        (&["train", "--text", "text.txt", "--model", "other"], "text.txt"),
        (&["train", "--text", &own, "--model", "model"], model),
        (&["explain", "--text", "a", "--model", model], model),
        (&["evaluate", "--plan", "plan.json"], "plan.json"),
        (&["evaluate", "--plan", "data.json", "--data", "data"], "brown.jsonl"),
        (&["evaluate"], "outcomes.jsonl"),
    ];
    for (arguments, culprit) in cases {
        let refused = output(folder.path(), arguments);
        assert_refused(&refused, culprit);
        assert_refused(&refused, "git lfs pull");
    }
}
