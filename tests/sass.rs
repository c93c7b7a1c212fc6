//! What the compiler made of the kernels: nothing spilled, nothing in local memory, wide accesses where they were meant, no
//! sum by floating-point atomics.
//! A kernel that fails here still computes the right numbers, so no other test would notice.
//!
//! Without compiled kernels, or without `cuobjdump` to read them, one line on standard error says that nothing was
//! checked; with `DA_MOE_CUDA=1` that is a failure.

// The tests look for `cuobjdump` where the build script looks for nvcc.
#[allow(dead_code, reason = "the build script uses the rest")]
#[path = "../build/toolkit.rs"]
mod toolkit;

use da_moe::cuda::{BuildReport, Image, abi, build_report, kernels};
use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Once, OnceLock};
use std::{env, fs};

/// Kernels that must read global memory 16 bytes at a time somewhere; `*` stands for anything.
const WIDE_LOADS: &[&str] = &["*_wide", "importance_query_key_*", "importance_own_key_*", "grouped_gemm_*_dh"];

/// Kernels that must write global memory 16 bytes at a time somewhere.
const WIDE_STORES: &[&str] = &[
    "combine_f32_wide",
    "combine_bf16_wide",
    "combine_f16_wide",
    "combine_*_f32rows_wide",
    "combine_constants_*_wide",
    "gate_dx_*_wide",
    "grouped_gemm_*",
    "permute_backward_*_wide",
];

/// Instructions that kernels are made of, and how many at least: products of matrices on tensor cores, their operands
/// from shared memory, and copies to it that do not wait. Fewer mean that a loop was not unrolled as planned.
const MADE_OF: &[(&str, &[(&str, usize)])] = &[
    ("importance_query_key_bf16", &[("HMMA", 32), ("LDSM", 12), ("LDGSTS", 12)]),
    ("importance_query_key_f16", &[("HMMA", 32), ("LDSM", 12), ("LDGSTS", 12)]),
    ("importance_query_key_*f16_64", &[("HMMA", 64), ("LDSM", 24), ("LDGSTS", 16)]),
    ("importance_query_key_*f16_128", &[("HMMA", 128), ("LDSM", 48), ("LDGSTS", 28)]),
    ("importance_query_key_f32", &[("FFMA", 512), ("LDS", 24), ("LDGSTS", 12)]),
    ("grouped_gemm_*16_plain", &[("HMMA", 32), ("LDSM", 18), ("LDGSTS", 16)]),
    ("grouped_gemm_*16_gated", &[("HMMA", 32), ("LDSM", 18), ("LDGSTS", 16)]),
    ("grouped_gemm_tf32_plain", &[("HMMA", 32), ("LDSM", 18), ("LDGSTS", 16)]),
    ("grouped_gemm_tf32_gated", &[("HMMA", 32), ("LDSM", 18), ("LDGSTS", 16)]),
    ("grouped_gemm_*_any", &[("HMMA", 32), ("LDSM", 18)]),
    ("grouped_gemm_*16_dh", &[("HMMA", 32), ("LDSM", 18), ("LDGSTS", 16)]),
    ("grouped_gemm_*16_nn", &[("HMMA", 32), ("LDSM", 18), ("LDGSTS", 16)]),
    ("grouped_gemm_*16_tn", &[("HMMA", 32), ("LDSM", 18), ("LDGSTS", 8)]),
    // Half of them are the activations', which gradients of weights have none of.
    ("grouped_gemm_f32_plain*", &[("FFMA", 512), ("LDS", 32)]),
    ("grouped_gemm_f32_gated", &[("FFMA", 512), ("LDS", 32)]),
    ("grouped_gemm_f32_nn*", &[("FFMA", 512), ("LDS", 32)]),
    ("grouped_gemm_f32_dh", &[("FFMA", 512), ("LDS", 32)]),
    ("grouped_gemm_f32_tn*", &[("FFMA", 256), ("LDS", 32)]),
];

/// Threads of a block, bytes of shared memory that are asked for at the launch, and the blocks that a multiprocessor is
/// to hold at once.
const OCCUPANCY: &[(&str, u32, u32, u32)] = &[
    ("importance_query_key_*", 128, 0, 2),
    ("grouped_gemm_*16_plain", 256, abi::GEMM_SHARED_BYTES as u32, 2),
    ("grouped_gemm_*16_gated", 256, abi::GEMM_SHARED_BYTES as u32, 2),
    ("grouped_gemm_tf32_plain", 256, abi::GEMM_SHARED_BYTES as u32, 2),
    ("grouped_gemm_tf32_gated", 256, abi::GEMM_SHARED_BYTES as u32, 2),
    ("grouped_gemm_*16_dh", 256, abi::GEMM_SHARED_BYTES as u32, 2),
    ("grouped_gemm_*16_nn", 256, abi::GEMM_SHARED_BYTES as u32, 2),
    ("grouped_gemm_*16_tn", 256, abi::GEMM_SHARED_BYTES as u32, 2),
    ("grouped_gemm_*_any", 256, abi::GEMM_SHARED_BYTES as u32, 1),
    ("grouped_gemm_f32_*", 256, 0, 2),
    ("bias_gradient_*", 256, 0, 3),
    ("row_weight_gradient_*", 256, 0, 8),
    ("importance_received_*", 256, 0, 3),
    ("importance_given_*", 256, 0, 4),
    ("gate_32", 256, 0, 4),
    ("gate_64", 256, 0, 4),
    ("gate_128", 256, 0, 3),
    ("gate_256", 256, 0, 2),
    ("gate_512", 256, 0, 1),
    ("gate_backward_32", 256, 0, 4),
    ("gate_backward_64", 256, 0, 4),
    ("gate_backward_128", 256, 0, 4),
    ("gate_backward_256", 256, 0, 3),
    ("gate_backward_512", 256, 0, 2),
    ("routing_32", 256, 0, 4),
    ("routing_64", 256, 0, 4),
    ("routing_128", 256, 0, 4),
    ("routing_256", 256, 0, 3),
    ("routing_512", 256, 0, 2),
    ("combine_constants_*", 256, 0, 5),
    ("combine_*_wide", 256, 0, 4),
    ("gate_dx_*_wide", 256, 0, 4),
    ("permute_backward_*_wide", 256, 0, 4),
];

/// What a multiprocessor of sm_80 has, the smaller of the two: registers, handed out to a warp in portions of 256, and
/// bytes of shared memory, of which every block costs 1 KiB more than it asks for.
const REGISTERS: u32 = 65536;
const SHARED_BYTES: u32 = 164 << 10;

/// Machine code that has to be there; PTX is code for every later architecture.
const MACHINES: [&str; 2] = ["sm_80", "sm_90a"];

/// What ptxas says of one function.
#[derive(Clone, Debug, Default, PartialEq)]
struct Resources {
    kernel: String,
    machine: String,
    /// Those of a function that a kernel calls are counted with the kernel's: none here.
    registers: Option<u32>,
    /// Bytes of static shared memory of a block.
    shared: u32,
    /// Stack frame, spill stores, spill loads, in bytes.
    local: [u32; 3],
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [stack, stores, loads] = self.local;
        let registers = self.registers.map_or("called".into(), |count| format!("{count:>3} registers"));
        write!(f, "{:>7} {registers:>13}", self.machine)?;
        write!(f, "  {stack:>4} stack {stores:>4} spill stores {loads:>4} spill loads  {}", self.kernel)
    }
}

/// One entry for each function and machine of `ptxas --verbose`.
fn resources(ptxas: &str) -> Vec<Resources> {
    let (mut all, mut machine) = (Vec::<Resources>::new(), "");
    for line in ptxas.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            machine = rest.split('\'').nth(2).unwrap_or_default();
        } else if let Some((_, name)) = line.split_once("Function properties for ") {
            all.push(Resources { kernel: name.trim().into(), machine: machine.into(), ..Resources::default() });
        } else if let Some(last) = all.last_mut() {
            let numbers: Vec<u32> = line.split([' ', ',']).filter_map(|word| word.parse().ok()).collect();
            match numbers.as_slice() {
                &[stack, stores, loads] if line.contains("bytes stack frame") => last.local = [stack, stores, loads],
                [registers, ..] if line.contains(" registers") => {
                    last.registers = Some(*registers);
                    let shared = line.split(", ").find_map(|part| part.strip_suffix(" bytes smem"));
                    last.shared = shared.map_or(0, |bytes| bytes.parse().expect("a number of bytes"));
                }
                _ => {}
            }
        }
    }
    all
}

/// The instructions of one kernel on one machine, without operands: `LDG.E.128.CONSTANT`.
struct Code {
    kernel: String,
    machine: String,
    instructions: Vec<String>,
}

/// One entry for each function in what `cuobjdump -sass` prints.
fn code(sass: &str) -> Vec<Code> {
    let (mut all, mut machine) = (Vec::<Code>::new(), "");
    for line in sass.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("code for ") {
            machine = name;
        } else if let Some(name) = line.strip_prefix("Function : ") {
            all.push(Code { kernel: name.into(), machine: machine.into(), instructions: Vec::new() });
        } else if let (Some(last), Some((_, text))) =
            (all.last_mut(), line.strip_prefix("/*").and_then(|line| line.split_once("*/")))
        {
            // A predicate such as `@!P0` comes first; a line with an encoding alone has no instruction.
            let opcode = text.split([' ', ';']).find(|word| !word.is_empty() && !word.starts_with('@'));
            last.instructions.extend(opcode.filter(|word| word.starts_with(char::is_alphabetic)).map(String::from));
        }
    }
    all
}

/// What an instruction is, without how: `LDG` of `LDG.E.128.CONSTANT`.
fn family(instruction: &str) -> &str {
    instruction.split('.').next().unwrap_or_default()
}

/// Whether an instruction is one of some families, `LDG` or `LDGSTS`, on 128 bits.
fn is_wide(instruction: &str, families: &[&str]) -> bool {
    families.contains(&family(instruction)) && instruction.split('.').any(|part| part == "128")
}

/// Whether an instruction may add floating-point numbers in the order of arrival: an atomic on such a type, or the
/// compare-and-swap that the compiler makes one of where memory has none (shared f32, f64).
fn is_unordered(instruction: &str) -> bool {
    // Among them `F16x2`, `BF16_V2` and `CAST`.
    let is_such = |part: &str| ["F16", "BF16", "F32", "F64", "CAS"].iter().any(|start| part.starts_with(start));
    ["ATOM", "ATOMG", "ATOMS", "RED", "REDG", "REDS", "UTMAREDG", "UBLKRED"].contains(&family(instruction))
        && instruction.split('.').any(is_such)
}

/// Whether a name is what a pattern with at most one `*` says.
fn matches(name: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        Some((start, end)) => name.strip_prefix(start).is_some_and(|rest| rest.ends_with(end)),
        None => name == pattern,
    }
}

fn is_required() -> bool {
    env::var("DA_MOE_CUDA").is_ok_and(|mode| mode == "1")
}

/// Says that nothing was checked, past the test runner, which keeps what passing tests print to itself.
fn skip(why: &str) {
    assert!(!is_required(), "DA_MOE_CUDA=1, but {why}");
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        writeln!(io::stderr(), "compiled kernels are not checked: {why}").expect("a line on standard error");
    });
}

fn images() -> Option<&'static [Image]> {
    if let BuildReport::NotBuilt { reason } = build_report() {
        skip(&format!("there are none: {reason}"));
    }
    kernels()
}

/// Images with the program that reads them.
fn readable_images() -> Option<(&'static [Image], PathBuf)> {
    let images = images()?;
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let nvcc = toolkit::find_nvcc(project, |name| env::var_os(name)).ok().and_then(|search| search.nvcc);
    let beside = nvcc.as_deref().and_then(Path::parent).map(PathBuf::from);
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = beside.into_iter().chain([toolkit::project_tools(project)]).chain(env::split_paths(&path));
    let found = toolkit::program("cuobjdump", folders);
    if found.is_none() {
        skip("there is no cuobjdump beside nvcc, in target/cuda-toolkit or on PATH");
    }
    Some((images, found?))
}

/// What cuobjdump prints about an image.
fn cuobjdump(program: &Path, option: &str, image: &Image) -> String {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}{option}.fatbin", image.name));
    fs::write(&file, image.fatbin).expect("a written file");
    let folder = program.parent().expect("a folder with programs").to_path_buf();
    // It runs nvdisasm, which is installed beside it.
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths([folder].into_iter().chain(env::split_paths(&path))).expect("a search path");
    let output = Command::new(program).arg(option).arg(&file).env("PATH", path).output().expect("cuobjdump");
    assert!(output.status.success(), "{}: {}", image.name, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// The instructions of every kernel, read once for all tests.
fn machine_code() -> Option<&'static [Code]> {
    static ALL: OnceLock<Option<Vec<Code>>> = OnceLock::new();
    let read = || {
        let (images, program) = readable_images()?;
        Some(images.iter().flat_map(|image| code(&cuobjdump(&program, "-sass", image))).collect())
    };
    ALL.get_or_init(read).as_deref()
}

#[test]
fn nothing_is_spilled() {
    let Some(images) = images() else { return };
    let all: Vec<Resources> = images.iter().flat_map(|image| resources(image.ptxas)).collect();
    let machines: BTreeSet<_> = all.iter().filter(|e| e.registers.is_some()).map(|e| e.machine.as_str()).collect();
    assert_eq!(machines, BTreeSet::from(MACHINES), "machines for which ptxas told of registers");
    let spilled: Vec<_> = all.iter().filter(|entry| entry.local != [0; 3]).map(ToString::to_string).collect();
    let table: Vec<_> = all.iter().map(ToString::to_string).collect();
    assert!(spilled.is_empty(), "spills or stack:\n{}\nall:\n{}", spilled.join("\n"), table.join("\n"));
}

#[test]
fn ptxas_has_no_advice() {
    for image in images().unwrap_or_default() {
        let advice = image.ptxas.lines().find(|line| line.contains("(C75"));
        assert_eq!(advice, None, "{}", image.name);
    }
}

#[test]
fn every_image_has_both_machines_and_ptx() {
    let Some((images, program)) = readable_images() else { return };
    for image in images {
        let files = cuobjdump(&program, "-lelf", image);
        for machine in MACHINES {
            assert!(files.contains(&format!(".{machine}.cubin")), "{} has no code for {machine}:\n{files}", image.name);
        }
        let files = cuobjdump(&program, "-lptx", image);
        assert!(files.contains(".sm_80.ptx"), "{} has no PTX:\n{files}", image.name);
    }
}

#[test]
fn nothing_is_in_local_memory() {
    let Some(all) = machine_code() else { return };
    let machines: BTreeSet<&str> = all.iter().map(|code| code.machine.as_str()).collect();
    assert_eq!(machines, BTreeSet::from(MACHINES), "machines with kernels");
    for Code { kernel, machine, instructions } in all {
        assert!(instructions.iter().any(|name| name == "EXIT"), "{kernel}: no machine code that is understood");
        let local = instructions.iter().filter(|name| name.starts_with("LDL") || name.starts_with("STL")).count();
        assert_eq!(local, 0, "accesses to local memory in {kernel} on {machine}");
    }
}

#[test]
fn no_floating_point_atomics() {
    let Some(all) = machine_code() else { return };
    for Code { kernel, machine, instructions } in all {
        let unordered = instructions.iter().find(|name| is_unordered(name));
        assert_eq!(unordered, None, "{kernel} on {machine}");
    }
    // The counts of the gate, at least, are atomics that are none of those.
    assert!(all.iter().any(|code| code.instructions.iter().any(|name| name.starts_with("ATOMS"))));
}

#[test]
fn wide_kernels_are_wide() {
    let Some(all) = machine_code() else { return };
    // A copy that goes past the registers into shared memory is a load too.
    let tables = [(WIDE_LOADS, &["LDG", "LDGSTS"][..], "loads"), (WIDE_STORES, &["STG"], "stores")];
    for (table, families, what) in tables {
        for pattern in table {
            let mut kernels = all.iter().filter(|code| matches(&code.kernel, pattern)).peekable();
            assert!(kernels.peek().is_some(), "no kernel is named `{pattern}`");
            for Code { kernel, machine, instructions } in kernels {
                let wide = instructions.iter().any(|name| is_wide(name, families));
                assert!(wide, "{kernel} on {machine} has no {what} of 16 bytes");
            }
        }
    }
}

#[test]
fn kernels_have_the_instructions_they_are_made_of() {
    let Some(all) = machine_code() else { return };
    for (pattern, wanted) in MADE_OF {
        let mut kernels = all.iter().filter(|code| matches(&code.kernel, pattern)).peekable();
        assert!(kernels.peek().is_some(), "no kernel is named `{pattern}`");
        for (Code { kernel, machine, instructions }, (wanted, least)) in
            kernels.flat_map(|code| wanted.iter().map(move |wanted| (code, wanted)))
        {
            let count = instructions.iter().filter(|name| family(name) == *wanted).count();
            assert!(count >= *least, "{kernel} on {machine} has {count} {wanted} of {least}");
        }
    }
}

#[test]
fn multiprocessors_hold_as_many_blocks_as_planned() {
    let all: Vec<Resources> = images().unwrap_or_default().iter().flat_map(|image| resources(image.ptxas)).collect();
    for (pattern, threads, shared, planned) in OCCUPANCY.iter().filter(|_| !all.is_empty()) {
        let kernels = all.iter().filter(|entry| matches(&entry.kernel, pattern) && entry.registers.is_some());
        let blocks = kernels.map(|entry| (entry, blocks(entry, *threads, *shared))).collect::<Vec<_>>();
        assert!(!blocks.is_empty(), "no kernel is named `{pattern}`");
        for (entry, blocks) in blocks {
            assert!(blocks >= *planned, "{blocks} blocks of {threads} threads instead of {planned}: {entry}");
        }
    }
}

/// Blocks of so many threads that a multiprocessor's registers and shared memory have room for.
fn blocks(entry: &Resources, threads: u32, shared: u32) -> u32 {
    let of_warp = (entry.registers.unwrap_or(255) * 32).next_multiple_of(256);
    let by_registers = REGISTERS / (of_warp * threads.div_ceil(32));
    by_registers.min(SHARED_BYTES / (entry.shared + shared + 1024))
}

#[test]
fn ptxas_is_understood() {
    let text = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'gate' for 'sm_90a'
ptxas info    : Function properties for gate
    48 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 48 bytes cumulative stack size, 1024 bytes smem
";
    let expected = Resources {
        kernel: "gate".into(),
        machine: "sm_90a".into(),
        registers: Some(255),
        shared: 1024,
        local: [48, 8, 12],
    };
    assert_eq!(blocks(&expected, 128, 0), 2);
    assert_eq!(blocks(&expected, 32, 80 << 10), 2);
    assert_eq!(resources(text), [expected]);
}

#[test]
fn machine_code_is_understood() {
    let text = "
\tcode for sm_80
\t\tFunction : gate
\t.headerflags\t@\"EF_CUDA_SM80\"
        /*0000*/              @!P0 LDG.E.128.CONSTANT R8, [R2.64] ;    /* 0x0000000402087981 */
                                                                       /* 0x000ea2000c1e9d00 */
        /*0010*/                   STL [R1], R2 ;                      /* 0x0000000402087981 */
        /*0020*/                   EXIT ;                              /* 0x0000000402087981 */
";
    let all = code(text);
    assert_eq!((all[0].kernel.as_str(), all[0].machine.as_str()), ("gate", "sm_80"));
    assert_eq!(all[0].instructions, ["LDG.E.128.CONSTANT", "STL", "EXIT"]);
    assert!(is_wide("LDGSTS.E.BYPASS.128", &["LDG", "LDGSTS"]) && !is_wide("STG.E.128", &["LDG"]));
    assert!(!is_wide("LDG.E.64", &["LDG"]));
    for found in
        ["RED.E.ADD.F32.FTZ.RN.STRONG.GPU", "ATOMG.E.ADD.F16x2.RN.STRONG.GPU", "ATOMS.CAST.SPIN.64", "REDG.E.ADD.F64"]
    {
        assert!(is_unordered(found), "{found}");
    }
    assert!(!["ATOMS.POPC.INC.32", "RED.E.ADD.STRONG.GPU", "REDUX.SUM.S32", "FADD.F32"].into_iter().any(is_unordered));
    assert!(matches("combine_f32_wide", "combine_*_wide") && matches("gate", "gate") && !matches("gate_32", "gate"));
    assert!(!matches("a_b", "a_*_b") && !matches("combine_wide_f32", "*_wide"));
}
