//! What SPEC.md and docs/ENGINES.md promise of every backend. All of it also belongs to the program for a machine with a GPU,
//! `tests/gpu`.

mod accumulation;
mod agreement;
mod calls;
mod determinism;
mod edges;
mod engine;
mod finite_differences;
mod gradient_range;
mod graphs;
mod hidden;
mod leak;
mod memory;
mod nonfinite;
mod plan;
mod state;
mod streams;
mod workspace;
