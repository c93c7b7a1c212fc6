//! The CPU backend: the layer and each of its stages. `cargo bench`, or `cargo bench -- experts/c-mid` for some of it.

mod layer;
mod setup;
mod stages;

use criterion::{criterion_group, criterion_main};

criterion_group!(benches, layer::layer, layer::proportional, stages::importance, stages::stages);
criterion_main!(benches);
