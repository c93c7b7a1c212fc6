//! What bench tells: a table for people, an object for programs.

use super::shapes::ShapeArg;
use crate::{Error, Result};
use da_moe::{DType, StageTimes};
use serde::Serialize;
use std::io::{self, Write};
use std::time::Duration;

/// Median, smallest and largest of the repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) median: Duration,
    min: Duration,
    max: Duration,
}

impl Times {
    pub(super) fn of(samples: &[Duration]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_unstable();
        let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
        let last = sorted.len().saturating_sub(1);
        // Of an even number the mean of the middle two.
        let median = (at(last / 2) + at(last.div_ceil(2))) / 2;
        Self { median, min: at(0), max: at(last) }
    }
}

/// One benchmark, finished.
pub(super) struct Measurement<'a> {
    pub(super) shape: &'a ShapeArg,
    pub(super) dtype: DType,
    pub(super) device: String,
    pub(super) rows: usize,
    pub(super) mean_k: f64,
    pub(super) stages: StageTimes,
    pub(super) forward: Times,
    pub(super) backward: Option<Times>,
    /// Useful operations of a forward.
    pub(super) operations: f64,
    /// GFLOP/s of dense products on this device.
    pub(super) ceiling: f64,
    /// Growth of this process over the calls, or what they have on a device beside inputs and weights.
    pub(super) peak_bytes: Option<u64>,
    pub(super) repeats: u32,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Object<'a> {
    #[serde(flatten)]
    shape: &'a ShapeArg,
    dtype: &'a str,
    device: &'a str,
    rows: usize,
    mean_k: f64,
    stages_ms: Stages,
    forward_ms: f64,
    forward_ms_min: f64,
    forward_ms_max: f64,
    backward_ms: Option<f64>,
    gflops_forward: f64,
    gflops_backward: Option<f64>,
    ceiling_gflops: f64,
    peak_bytes: Option<u64>,
    repeats: u32,
}

#[derive(Serialize)]
struct Stages {
    importance: f64,
    gate: f64,
    permute: f64,
    experts: f64,
    combine: f64,
}

impl Measurement<'_> {
    pub(super) fn print(&self, json: bool) -> Result<()> {
        let text = if json {
            serde_json::to_string(&self.json()).map_err(|error| Error::Stdout(error.into()))? + "\n"
        } else {
            self.table()
        };
        io::stdout().write_all(text.as_bytes()).map_err(Error::Stdout)
    }

    fn gflops_forward(&self) -> f64 {
        self.operations / self.forward.median.as_secs_f64() / 1e9
    }

    fn gflops_backward(&self) -> Option<f64> {
        self.backward.map(|backward| 2.0 * self.operations / backward.median.as_secs_f64() / 1e9)
    }

    fn json(&self) -> Object<'_> {
        let (shape, stages) = (self.shape, &self.stages);
        Object {
            shape,
            dtype: self.dtype.name(),
            device: &self.device,
            rows: self.rows,
            mean_k: self.mean_k,
            stages_ms: Stages {
                importance: milliseconds(stages.importance),
                gate: milliseconds(stages.gate),
                permute: milliseconds(stages.permute),
                experts: milliseconds(stages.experts),
                combine: milliseconds(stages.combine),
            },
            forward_ms: milliseconds(self.forward.median),
            forward_ms_min: milliseconds(self.forward.min),
            forward_ms_max: milliseconds(self.forward.max),
            backward_ms: self.backward.map(|backward| milliseconds(backward.median)),
            gflops_forward: self.gflops_forward(),
            gflops_backward: self.gflops_backward(),
            ceiling_gflops: self.ceiling,
            peak_bytes: self.peak_bytes,
            repeats: self.repeats,
        }
    }

    fn table(&self) -> String {
        let shape = self.shape;
        let mut text = format!(
            "{}: T {} D {} F {} E {}, {}, {} rows, mean k {:.2}\n{}, median of {}\n\n",
            shape.name,
            shape.tokens,
            shape.hidden,
            shape.width,
            shape.experts,
            self.dtype,
            self.rows,
            self.mean_k,
            self.device,
            self.repeats
        );
        let stages = &self.stages;
        let forward = [
            ("importance", stages.importance),
            ("gate", stages.gate),
            ("permute", stages.permute),
            ("experts", stages.experts),
            ("combine", stages.combine),
        ];
        let backward = [
            ("combine", stages.combine_backward),
            ("experts", stages.experts_backward),
            ("permute", stages.permute_backward),
            ("gate", stages.gate_backward),
        ];
        self.direction(&mut text, "forward", self.forward, &forward, self.gflops_forward());
        if let (Some(times), Some(rate)) = (self.backward, self.gflops_backward()) {
            self.direction(&mut text, "backward", times, &backward, rate);
        }
        text += &format!("ceiling     {:>10.1} GFLOP/s   this device's dense matrix products\n", self.ceiling);
        if let Some(bytes) = self.peak_bytes {
            text +=
                &format!("memory      {:>10.1} MiB       peak beside inputs and weights\n", bytes as f64 / 1048576.0);
        }
        text
    }

    fn direction(&self, text: &mut String, name: &str, times: Times, stages: &[(&str, Duration)], rate: f64) {
        for (stage, time) in stages {
            *text += &format!("  {stage:<10}{:>10.3} ms\n", milliseconds(*time));
        }
        *text += &format!(
            "{name:<12}{:>10.3} ms        {:.3} to {:.3}\n{:<12}{rate:>10.1} GFLOP/s   {:.0}% of the ceiling\n\n",
            milliseconds(times.median),
            milliseconds(times.min),
            milliseconds(times.max),
            "",
            100.0 * rate / self.ceiling
        );
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        let times = |samples: &[u64]| Times::of(&samples.iter().map(|s| Duration::from_secs(*s)).collect::<Vec<_>>());
        assert_eq!(times(&[3, 1, 2]).median, Duration::from_secs(2));
        assert_eq!(times(&[4, 1, 2, 9]).median, Duration::from_secs(3));
        assert_eq!(times(&[4, 1, 2, 9]).max, Duration::from_secs(9));
    }
}
