//! Every property that holds of every backend, and the benchmarks, as one program for a machine that has a GPU, a driver and
//! nothing else. Built by `cargo xtask gpu-bundle`; the properties are the other test programs' own files.

mod bench;
#[path = "../kernels"]
mod kernels {
    mod attention;
    mod backward;
    mod conformance;
    mod experts;
    mod experts_backward;
    mod forward;
}
#[path = "../properties/main.rs"]
mod properties;
#[path = "../refusals"]
mod refusals {
    mod device;
}
mod smoke;

use da_moe::Error;
use da_moe::cuda::{Device, Driver};

/// Says in one line which GPU there is, that there is none, or why it cannot be used, and in others which machine code runs on
/// it; `run.sh` reads it.
#[test]
#[ignore = "asked for by name"]
fn probe() {
    let in_a_line = |error: Error| error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    match Driver::open(0) {
        Ok(driver) => {
            println!("probe: found {}", driver.describe());
            println!("probe: {}", driver.loaded());
            if driver.loaded().are_compiled_by_the_driver() {
                println!("probe: WARNING, this is not the machine code that the build looked at");
            }
        }
        Err(error @ (Error::NoDriver { .. } | Error::NoDevice { .. })) => println!("probe: none {}", in_a_line(error)),
        Err(error) => println!("probe: broken {}", in_a_line(error)),
    }
}
