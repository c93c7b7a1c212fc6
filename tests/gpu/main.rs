//! Every property that holds of every backend, and the benchmarks, as one program for a machine that has a GPU, a driver and
//! nothing else. Built by `cargo xtask gpu-bundle`; the properties are the other test programs' own files.

#![allow(clippy::duplicate_mod, reason = "every file brings the harness along")]

#[path = "../agreement.rs"]
mod agreement;
#[path = "../attention_kernels.rs"]
mod attention_kernels;
#[path = "../backward_kernels.rs"]
mod backward_kernels;
mod bench;
#[path = "../conformance/main.rs"]
mod conformance;
#[path = "../determinism.rs"]
mod determinism;
#[path = "../edges.rs"]
mod edges;
#[path = "../engine.rs"]
mod engine;
#[path = "../expert_backward_kernels.rs"]
mod expert_backward_kernels;
#[path = "../expert_kernels.rs"]
mod expert_kernels;
#[path = "../kernels.rs"]
mod kernels;
#[path = "../nonfinite.rs"]
mod nonfinite;
#[path = "../plan.rs"]
mod plan;
#[path = "../state.rs"]
mod state;

use da_moe::Backend;
use da_moe::cuda::Cuda;

/// Says which GPU there is; fails where there is none.
#[test]
#[ignore = "asked for by name"]
fn probe() {
    match Cuda::open(0) {
        Ok(cuda) => println!("{}", cuda.describe()),
        Err(error) => panic!("{error}"),
    }
}
