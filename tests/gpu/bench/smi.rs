//! The GPU's clock and power while something runs, as `nvidia-smi` tells them; nothing where there is no such program.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

/// Megahertz and watts.
type Sample = (Instant, [f64; 2]);

pub(super) struct Smi {
    program: Option<Child>,
    samples: Arc<Mutex<Vec<Sample>>>,
}

impl Smi {
    /// Ten samples a second from now on.
    pub(super) fn start() -> Self {
        let arguments = ["--query-gpu=clocks.sm,power.draw", "--format=csv,noheader,nounits", "--id=0", "-lms", "100"];
        let program = Command::new("nvidia-smi").args(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut program = program.ok();
        let samples = Arc::<Mutex<Vec<Sample>>>::default();
        if let Some(lines) = program.as_mut().and_then(|program| program.stdout.take()) {
            let samples = samples.clone();
            thread::spawn(move || {
                for line in BufReader::new(lines).lines().map_while(Result::ok) {
                    let sample = parse(&line).map(|sample| (Instant::now(), sample));
                    samples.lock().unwrap_or_else(PoisonError::into_inner).extend(sample);
                }
            });
        }
        Self { program, samples }
    }

    /// Median clock and power since then.
    pub(super) fn since(&self, start: Instant) -> String {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let recent: Vec<[f64; 2]> = samples.iter().filter(|(at, _)| *at >= start).map(|(_, sample)| *sample).collect();
        told(&recent)
    }
}

impl Drop for Smi {
    fn drop(&mut self) {
        if let Some(program) = &mut self.program {
            // It may have ended by itself.
            let _ = program.kill();
            let _ = program.wait();
        }
    }
}

/// From a line such as `1980, 654.32`; what a GPU does not tell is `[N/A]` there.
fn parse(line: &str) -> Option<[f64; 2]> {
    let (clock, power) = line.split_once(',')?;
    Some([clock.trim().parse().ok()?, power.trim().parse().unwrap_or(f64::NAN)])
}

fn told(samples: &[[f64; 2]]) -> String {
    let median = |which: usize, unit: &str| {
        let mut all: Vec<f64> = samples.iter().map(|sample| sample[which]).filter(|value| !value.is_nan()).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).map_or(format!("- {unit}"), |value| format!("{value:.0} {unit}"))
    };
    format!("{} {}", median(0, "MHz"), median(1, "W"))
}

#[test]
fn samples_are_read_and_told() {
    assert_eq!(parse("1980, 654.32"), Some([1980.0, 654.32]));
    assert!(parse("1980, [N/A]").is_some_and(|[clock, power]| clock == 1980.0 && power.is_nan()));
    assert_eq!([parse("No devices were found"), parse("[N/A], 3")], [None; 2]);
    assert_eq!(told(&[[345.0, f64::NAN], [1980.0, 650.4], [1980.0, 700.0]]), "1980 MHz 700 W");
    assert_eq!(told(&[]), "- MHz - W");
}
