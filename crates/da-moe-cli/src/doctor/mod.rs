//! `da-moe doctor`: what this machine can do, found by looking at files only.

mod cpu;
mod cuda;

use crate::args::DoctorArgs;
use crate::{Error, Result};
use cpu::Processor;
use cuda::{Compiler, Gpu};
use da_moe::Cpu;
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
}

/// GPU code inside this program.
#[derive(Serialize)]
struct Kernels {
    built: bool,
    architectures: Vec<&'static str>,
    reason: Option<&'static str>,
}

pub(crate) fn execute(arguments: &DoctorArgs) -> Result<()> {
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        cpu: Processor::probe(&Cpu::new()),
        gpu: Gpu::probe(),
        kernels: Kernels { built: false, architectures: Vec::new(), reason: Some("not built in this version") },
        compiler: Compiler::probe(),
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
        lines.push(("kernels", self.kernels.reason.unwrap_or_default().into()));
        lines.push(("compiler", self.compiler.line()));
        lines.iter().map(|(name, value)| format!("{name:<10}{value}")).collect::<Vec<_>>().join("\n")
    }
}
