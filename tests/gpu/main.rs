//! Every property that holds of every backend, and the benchmarks, as one program for a machine that has a GPU, a driver and
//! nothing else. Built by `cargo xtask gpu-bundle`; the properties are the other test programs' own files.

#![allow(clippy::duplicate_mod, reason = "every file names the harness")]

#[path = "../accumulation.rs"]
mod accumulation;
#[path = "../agreement.rs"]
mod agreement;
#[path = "../attention_kernels.rs"]
mod attention_kernels;
#[path = "../backward_kernels.rs"]
mod backward_kernels;
mod bench;
#[path = "../calls.rs"]
mod calls;
#[path = "../conformance/main.rs"]
mod conformance;
#[path = "../determinism.rs"]
mod determinism;
#[path = "../device_refusals.rs"]
mod device_refusals;
#[path = "../edges.rs"]
mod edges;
#[path = "../engine.rs"]
mod engine;
#[path = "../expert_backward_kernels.rs"]
mod expert_backward_kernels;
#[path = "../expert_kernels.rs"]
mod expert_kernels;
#[path = "../finite_differences.rs"]
mod finite_differences;
#[path = "../graphs.rs"]
mod graphs;
#[path = "../harness/mod.rs"]
mod harness;
#[path = "../kernels.rs"]
mod kernels;
#[path = "../leak.rs"]
mod leak;
#[path = "../memory.rs"]
mod memory;
#[path = "../nonfinite.rs"]
mod nonfinite;
#[path = "../plan.rs"]
mod plan;
mod smoke;
#[path = "../state.rs"]
mod state;
#[path = "../streams.rs"]
mod streams;
#[path = "../workspace.rs"]
mod workspace;

use da_moe::Error;
use da_moe::cuda::{Device, Driver, LoadedKernels};

/// Says in one line which GPU there is, that there is none, or why it cannot be used, and in more what was loaded onto it;
/// `run.sh` reads it.
#[test]
#[ignore = "asked for by name"]
fn probe() {
    let in_a_line = |error: Error| error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    match Driver::open(0) {
        Ok(driver) => {
            println!("probe: found {}", driver.describe());
            println!("probe: {}", driver.loaded());
            doubts(&driver.describe(), &driver.loaded()).iter().for_each(|doubt| println!("probe: WARNING, {doubt}"));
        }
        Err(error @ (Error::NoDriver { .. } | Error::NoDevice { .. })) => println!("probe: none {}", in_a_line(error)),
        Err(error) => println!("probe: broken {}", in_a_line(error)),
    }
}

/// What is not as it was built, and makes every time another than that of these kernels.
fn doubts(gpu: &str, loaded: &LoadedKernels) -> Vec<&'static str> {
    let own = [loaded.binary, loaded.ptx].map(|(least, most)| (least, most) == (90, 90));
    let all = [
        (gpu.contains("sm_90") && own != [true; 2], "this is not the machine code that was built for sm_90a"),
        (loaded.local_bytes > 0, "registers are spilled"),
    ];
    all.into_iter().filter_map(|(doubted, what)| doubted.then_some(what)).collect()
}

#[test]
fn other_machine_code_is_told() {
    let own = LoadedKernels {
        kernels: 144,
        binary: (90, 90),
        ptx: (90, 90),
        registers: 168,
        local_bytes: 0,
        took: std::time::Duration::ZERO,
    };
    assert_eq!(doubts("NVIDIA H100, sm_90, driver", &own), [""; 0]);
    let translated = LoadedKernels { ptx: (80, 90), ..own };
    assert_eq!(doubts("NVIDIA H100, sm_90, driver", &translated).len(), 1);
    assert_eq!(
        doubts("NVIDIA A100, sm_80, driver", &LoadedKernels { binary: (80, 80), ptx: (80, 80), ..own }),
        [""; 0]
    );
    assert_eq!(doubts("NVIDIA H100, sm_90, driver", &LoadedKernels { local_bytes: 16, ..translated }).len(), 2);
}
