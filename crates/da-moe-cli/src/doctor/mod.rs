//! `da-moe doctor`: what this machine can do, found by looking at files, and what `--device auto` chooses, found by trying.

mod cpu;
mod nvidia;

use crate::args::DoctorArgs;
use crate::{Device, Error, Result};
use cpu::Processor;
use da_moe::Cpu;
use da_moe::cuda::{self, BuildReport};
use nvidia::{Compiler, Gpu};
use serde::Serialize;
use std::io::{self, Write};

/// The answer, as `--json` prints it.
#[derive(Serialize)]
struct Report {
    version: &'static str,
    cpu: Processor,
    gpu: Gpu,
    kernels: Kernels,
    compiler: Compiler,
    /// What `--device auto` chooses, and why.
    auto: String,
}

/// GPU code inside this program.
#[derive(Serialize)]
struct Kernels {
    built: bool,
    architectures: &'static [&'static str],
    /// What they were built with.
    compiler: Option<&'static str>,
    /// Why they were not built.
    reason: Option<&'static str>,
}

impl Kernels {
    fn new(report: BuildReport) -> Self {
        match report {
            BuildReport::Built { architectures, compiler } => {
                Self { built: true, architectures, compiler: Some(compiler), reason: None }
            }
            BuildReport::NotBuilt { reason } => {
                Self { built: false, architectures: &[], compiler: None, reason: Some(reason) }
            }
        }
    }

    fn line(&self) -> String {
        match (self.compiler, self.reason) {
            (Some(compiler), _) => format!("{}, built by {compiler}", self.architectures.join(" ")),
            (None, reason) => format!("not built ({})", reason.unwrap_or_default()),
        }
    }
}

pub(crate) fn execute(arguments: &DoctorArgs) -> Result<()> {
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        cpu: Processor::probe(&Cpu::new()),
        gpu: Gpu::probe(),
        kernels: Kernels::new(cuda::build_report()),
        compiler: Compiler::probe(),
        auto: Device::explain_auto(),
    };
    let text = if arguments.json {
        serde_json::to_string(&report).map_err(|error| Error::Stdout(error.into()))?
    } else {
        report.table()
    };
    writeln!(io::stdout(), "{text}").map_err(Error::Stdout)
}

impl Report {
    fn table(&self) -> String {
        let (cpu, gpu) = (&self.cpu, &self.gpu);
        let mut lines = vec![
            ("da-moe", self.version.to_string()),
            ("cpu", cpu.name.clone()),
            ("cores", format!("{}, {} threads used", cpu.cores, cpu.threads)),
            ("features", cpu.features_line()),
            ("driver", gpu.driver_line()),
        ];
        lines.extend(gpu.devices.iter().map(|name| ("gpu", name.clone())));
        if gpu.devices.is_empty() {
            lines.push(("gpu", "none found".into()));
        }
        lines.push(("kernels", self.kernels.line()));
        lines.push(("compiler", self.compiler.line()));
        lines.push(("auto", self.auto.clone()));
        lines.iter().map(|(name, value)| format!("{name:<10}{value}")).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_of_in_both_cases() {
        let built = BuildReport::Built { architectures: &["sm_80", "sm_90a"], compiler: "nvcc 13.0.88" };
        assert_eq!(Kernels::new(built).line(), "sm_80 sm_90a, built by nvcc 13.0.88");
        let not_built = BuildReport::NotBuilt { reason: "nvcc was not found" };
        assert_eq!(Kernels::new(not_built).line(), "not built (nvcc was not found)");
    }
}
