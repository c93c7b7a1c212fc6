//! The layer inside candle: gradients against candle's own, and everything that a training loop does with a module.

mod collected;
mod common;
mod dense;
mod gradients;
mod graph;
mod losses;
mod module;
mod refusals;
mod repeat;
