//! The `da-moe` program; everything it does is in the library beside it.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    da_moe_cli::execute(std::env::args_os())
}
