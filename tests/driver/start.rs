//! Before `main`: the program again, with the library where the loader looks for it.

use da_moe::cuda::{BuildReport, Emulated, build_report};
use da_moe_harness::kernels::CACHE;
use std::env;
use std::os::unix::process::CommandExt;
use std::process::{Command, exit};

/// Set in the second process.
const STARTED: &str = "DA_MOE_ON_EMULATED_DRIVER";

/// Tests that take long and ask nothing of the driver that others do not.
const LEFT_OUT: [&str; 3] =
    ["state::cpu", "state::kernels::bias_updates_follow", "state::kernels::the_running_price_reaches"];

/// Run by the loader. The test runner's own `main` cannot be written here, and by then it would be too late for its tests
/// not to run in this process too.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = start_again;

extern "C" fn start_again() {
    if env::var_os(STARTED).is_some() {
        return;
    }
    if let BuildReport::NotBuilt { reason } = build_report() {
        eprintln!("the driver backend is not tested: kernels were not built: {reason}");
        exit(0);
    }
    let error = match Emulated::compiler(CACHE).libcuda() {
        Ok(library) => {
            let (name, value) = library.environment();
            let mut again = Command::new(env::current_exe().expect("this program has a path"));
            again.args(env::args_os().skip(1)).args(LEFT_OUT.iter().flat_map(|name| ["--skip", name]));
            again
                .env(name, value)
                .env("DA_MOE_EMULATOR", "0")
                .env("DA_MOE_GPU", "1")
                .env(STARTED, "1")
                .exec()
                .to_string()
        }
        Err(error) => error.to_string(),
    };
    eprintln!("the driver backend cannot be tested: {error}");
    exit(1);
}
