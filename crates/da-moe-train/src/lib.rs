#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod allocation;
mod checkpoint;
mod classify;
mod config;
mod corpus;
pub mod data;
mod error;
pub mod evaluate;
mod explain;
pub mod header;
mod held;
mod identity;
mod journal;
mod limits;
mod measure;
mod metrics;
mod model;
mod names;
mod optimizer;
mod owner;
pub mod pointer;
mod random;
mod run;
mod tokens;
mod trainer;
mod variables;
mod variant;
mod whole;

pub use allocation::{Rank, Signal};
pub use checkpoint::Checkpoint;
pub use config::{ModelConfig, RunConfig, Schedule};
pub use corpus::{Batch, Corpus};
pub use error::{Result, TrainError};
pub use explain::{Explained, Given, Piece, explain};
pub use identity::{Identity, Measured, Tuned};
pub use metrics::{Allocated, HeldOut, Line};
pub use model::{Pass, Transformer};
pub use names::file_name;
pub use owner::Owner;
pub use run::{Folder, Pace, Run, run};
pub use tokens::Tokens;
pub use trainer::Trainer;
pub use variables::Variables;
pub use variant::Variant;
