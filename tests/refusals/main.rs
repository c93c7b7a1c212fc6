//! SPEC §7: what does not fit is refused with an error that names operation, argument and numbers, and nothing has been written
//! then.

mod calls;
mod configs;
mod device;
mod stages;
mod steps;
