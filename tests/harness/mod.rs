//! The harness is a package of its own: compiled once for all test programs, and once in a program of many of them, which then
//! opens a GPU once. The files call it `harness`.

pub use da_moe_harness::*;
