//! SPEC §7: what does not fit is refused with an error that names operation, argument and numbers, and nothing has been written
//! then. And a backend that is wrong is refused by the harness.

mod backends;
mod calls;
mod configs;
mod device;
mod stages;
mod steps;
