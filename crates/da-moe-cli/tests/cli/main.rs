//! The program `da-moe` as a user meets it: every command, every file that it reads or writes, and whatever can be wrong with them.
//!
//! Whatever needs a process of its own is one that a test starts: with other variables, another folder, a signal, a lock.

mod common;

mod bad_input;
mod commands;
mod driver;
mod folders;
mod fuzz;
mod one_line;
mod plan;
mod run;
#[cfg(target_os = "linux")]
mod signals;
mod sizes;
mod training;
