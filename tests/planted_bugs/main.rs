//! The checks can fail: bugs are planted, one at a time, in the kernels' own sources, and each has to be found under every order of
//! execution that is tried, by the emulator's report or by the oracle. Compiling them takes minutes, so that this program is one to
//! ask for: `cargo test --test planted_bugs`. (Bugs in a backend's results are `backends` in `refusals`.)

mod attention;
mod backward;
mod experts;
mod experts_backward;
mod experts_hopper;
mod experts_tf32;
mod forward;
mod importance;
mod rows;
