//! What models are trained on: prose for pre-training, labelled text for fine-tuning, and the ways from text to batches
//! of token ids.
//!
//! Everything here is a pure function of its arguments: the same texts give the same tokenizer, and a step and a seed
//! give the same batch and the same mask, whatever was drawn before. A run can stop and go on at any step.
//!
//! `cargo xtask data` writes the files that [`prose()`] and [`labelled()`] read; `docs/DATA.md` says where each set comes
//! from and how it is split. The labelled sets are GLUE-like; [`glue`] reads the files of GLUE itself.

mod blocks;
mod error;
pub mod glue;
mod labelled;
mod lines;
mod mask;
mod prose;
mod tokenizer;

pub use blocks::Blocks;
pub use error::DataError;
pub use labelled::{Example, LABELLED_SETS, Labelled, labelled};
pub use mask::{Masked, mask_tokens};
pub use prose::{PROSE_SETS, Prose, own_documentation, prose, prose_from_text};
pub use tokenizer::Tokenizer;
