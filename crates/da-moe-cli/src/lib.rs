//! The `da-moe` program: `demo`, `train`, `explain`, `evaluate`, `run`, `bench`, `plan` and `doctor` for dynamic
//! mixture-of-experts layers.
//!
//! Exit codes: 0 when all went well, 1 when a check failed, 2 for bad input. Bad input is told in one line on stderr.

#![forbid(unsafe_code)]

mod ahead;
mod args;
mod bench;
mod canvas;
mod demo;
mod device;
mod doctor;
mod draw;
mod error;
mod evaluate;
mod explain;
mod gradient_buffers;
mod heat_map;
mod memory;
mod plan;
mod ramp;
mod result_buffer;
pub mod run;
mod single;
mod target;
mod train;

pub use device::Device;
pub use error::{Error, Result};

use args::{Cli, Command};
use clap::Parser;
use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

/// Runs the program with these arguments, the program's own name first.
pub fn execute(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let outcome = match Cli::try_parse_from(arguments) {
        Ok(cli) => dispatch(cli),
        // Help and version are answers, not failures; clap knows where they go and in which colours.
        Err(answer) if !answer.use_stderr() => answer.print().map_err(Error::Stdout),
        Err(refusal) => Err(Error::Usage(args::one_line(&refusal))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough.
        Err(Error::Stdout(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            // With stderr closed there is nobody left to tell; the exit code still does.
            let _ = writeln!(io::stderr(), "error: {}", error.told());
            error.exit_code()
        }
    }
}

fn dispatch(cli: Cli) -> Result<()> {
    match cli.command.unwrap_or_default() {
        Command::Demo(arguments) => demo::execute(&arguments),
        Command::Run(arguments) => run::execute(&arguments),
        Command::Bench(arguments) => bench::execute(&arguments),
        Command::Evaluate(arguments) => evaluate::execute(&arguments),
        Command::Train(arguments) => train::execute(&arguments),
        Command::Explain(arguments) => explain::execute(&arguments),
        Command::Plan(arguments) => plan::execute(&arguments),
        Command::Doctor(arguments) => doctor::execute(&arguments),
    }
}
