//! The emulator, theme by theme. Every fault must be found under every schedule, at the right line.

mod common;

mod block;
mod clusters;
mod functions;
mod gate;
mod host;
mod layouts;
mod memory;
mod multicast;
mod ptx;
mod races_between_blocks;
mod tensor_core;
mod tma;
mod tma_stores;
mod traffic;
