//! Where the time of `cargo test` goes: the slowest tests, and every program, from what they said.

use std::fs;

const SHOWN: usize = 10;

/// Seconds, and what took them.
type Times = Vec<(f64, String)>;

/// The times of tests and of programs in a log, the longest first. A test says its own only where it was asked to.
fn times(log: &str) -> [Times; 2] {
    let (mut tests, mut programs, mut program) = (Times::new(), Times::new(), "");
    for line in log.lines().map(str::trim) {
        if let Some(started) = line.strip_prefix("Running ").or(line.strip_prefix("Doc-tests ")) {
            program = started.split(" (").next().unwrap_or_default();
        } else if line.starts_with("test result: ") {
            let seconds = line.rsplit_once("finished in ").and_then(|(_, time)| seconds(time));
            programs.extend(seconds.map(|seconds| (seconds, program.into())));
        } else if let Some((name, outcome)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ")) {
            let time = outcome.split_once('<').and_then(|(_, rest)| seconds(rest.split('>').next()?));
            tests.extend(time.map(|seconds| (seconds, format!("{name} in {program}"))));
        }
    }
    [tests, programs].map(|mut times| {
        times.sort_by(|a, b| b.0.total_cmp(&a.0));
        times
    })
}

/// `1.234s` as a number.
fn seconds(time: &str) -> Option<f64> {
    time.strip_suffix('s')?.parse().ok()
}

/// Prints the slowest tests and every program of a log.
pub fn print(log: &str) -> Result<(), String> {
    let bytes = fs::read(log).map_err(|error| format!("cannot read {log}: {error}"))?;
    let [tests, programs] = times(&String::from_utf8_lossy(&bytes));
    if programs.is_empty() {
        return Err(format!("{log} has no test's result"));
    }
    for (what, times, shown) in [("slowest tests", &tests, SHOWN), ("programs", &programs, usize::MAX)] {
        println!("{what}, of {:.0} s in all", times.iter().map(|time| time.0).sum::<f64>());
        times.iter().take(shown).for_each(|(seconds, name)| println!("{seconds:>8.1} s  {name}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_and_programs_are_sorted_by_their_time() {
        let log = "
   Compiling da-moe v0.1.0
     Running tests/tools/main.rs (target/debug/deps/tools-0123456789abcdef)

running 3 tests
test abi::sizes ... ok <0.250s>
the kernels run on the emulator only: there is no driver
test sass::wide ... FAILED <1.500s>
test sass::later ... ignored, asked for by name

test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.53s

   Doc-tests da_moe
test src/lib.rs - (line 3) ... ok
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 12.00s
";
        let of = |seconds, name: &str| (seconds, name.to_string());
        let tests = vec![of(1.5, "sass::wide in tests/tools/main.rs"), of(0.25, "abi::sizes in tests/tools/main.rs")];
        let programs = vec![of(12.0, "da_moe"), of(1.53, "tests/tools/main.rs")];
        assert_eq!(times(log), [tests, programs]);
        assert_eq!(times("error: it does not compile"), [vec![], vec![]]);
    }
}
