//! The checks can fail: bugs are planted, one at a time, in a backend's results and in the kernels' own sources, and each has
//! to be found under every order of execution that is tried, by the emulator's report or by the oracle.

mod attention;
mod backends;
mod backward;
mod experts;
mod experts_backward;
mod forward;
mod importance;
