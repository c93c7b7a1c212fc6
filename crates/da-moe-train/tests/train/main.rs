//! Training and the comparison of allocations: data, runs, checkpoints, folders, grids, and the leak rule in a whole model.

mod common;

mod checkpoints;
mod data;
mod evaluate;
mod leak;
mod ownership;
mod training;
