//! The processor and what it offers to the CPU backend.

use da_moe::{Backend, Cpu};
use serde::Serialize;
use std::fs;
use std::thread;

#[derive(Serialize)]
pub(super) struct Processor {
    pub(super) name: String,
    pub(super) cores: usize,
    pub(super) threads: usize,
    /// What the backend calls itself.
    device: String,
    /// Of the features that matter here, those that are there.
    features: Vec<&'static str>,
    /// And those that are not.
    absent: Vec<&'static str>,
}

impl Processor {
    pub(super) fn probe(backend: &Cpu) -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let (features, absent) = relevant().iter().partition(|feature| has(&cpuinfo, feature));
        Self {
            name: name(&cpuinfo),
            cores: thread::available_parallelism().map_or(1, usize::from),
            threads: backend.threads(),
            device: backend.describe(),
            features,
            absent,
        }
    }

    pub(super) fn features_line(&self) -> String {
        let list = |names: &[&str]| if names.is_empty() { "none".into() } else { names.join(" ") };
        match self.absent.as_slice() {
            [] => list(&self.features),
            absent => format!("{} (not {})", list(&self.features), absent.join(", ")),
        }
    }
}

/// As the Linux kernel names them.
fn relevant() -> &'static [&'static str] {
    if cfg!(target_arch = "x86_64") {
        &["avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16"]
    } else if cfg!(target_arch = "aarch64") {
        &["asimd", "asimdhp", "bf16", "sve"]
    } else {
        &[]
    }
}

/// What the kernel lists, or, where it lists nothing, what the processor says of itself. The kernel goes first because
/// it alone knows whether AMX is permitted.
fn has(cpuinfo: &str, feature: &str) -> bool {
    match line(cpuinfo, &["flags", "Features"]) {
        Some(flags) => flags.split_whitespace().any(|flag| flag == feature),
        None => detected(feature),
    }
}

#[cfg(target_arch = "x86_64")]
fn detected(feature: &str) -> bool {
    use std::arch::is_x86_feature_detected;
    match feature {
        "avx2" => is_x86_feature_detected!("avx2"),
        "fma" => is_x86_feature_detected!("fma"),
        "avx512f" => is_x86_feature_detected!("avx512f"),
        "avx512_bf16" => is_x86_feature_detected!("avx512bf16"),
        _ => false,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detected(feature: &str) -> bool {
    // Every aarch64 processor has it.
    feature == "asimd"
}

fn name(cpuinfo: &str) -> String {
    line(cpuinfo, &["model name", "Model", "Hardware"])
        .map_or_else(|| format!("unnamed {}", std::env::consts::ARCH), String::from)
}

/// The value of the first line `key : value` with one of these keys.
fn line<'a>(cpuinfo: &'a str, keys: &[&str]) -> Option<&'a str> {
    let fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    fields.into_iter().find(|(key, _)| keys.contains(&key.trim())).map(|(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpuinfo_is_read() {
        let text = "processor\t: 0\nmodel name\t: A CPU: fast\nflags\t\t: fma avx2 sse\n";
        assert_eq!(name(text), "A CPU: fast");
        assert!(has(text, "fma") && !has(text, "avx512f"));
    }
}
