//! The oracle, section by section of SPEC.md: by hand, and its derivatives against finite differences.

mod common;

mod derivatives;
mod experts_per_token;
mod importance;
mod router;
mod verify;
mod views;
