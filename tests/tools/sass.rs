//! What the compiler made of the kernels: nothing spilled, nothing in local memory, wide accesses where they were meant, no
//! sum by floating-point atomics.
//! A kernel that fails here still computes the right numbers, so no other test would notice.
//!
//! Without compiled kernels, or without `cuobjdump` to read them, one line on standard error says that nothing was
//! checked; with `DA_MOE_CUDA=1` that is a failure.

use super::instructions::{Instruction, Listing, family, listings, machine_code, matches};
use super::ptxas::{Resources, blocks, resources};
use da_moe::cuda::{Architecture, Image};
use da_moe_harness::machine_code::{cuobjdump, images, readable_images};
use std::collections::BTreeSet;

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
    // What a whole tile takes is asked for in `sass_products.rs`.
    ("grouped_gemm_*_any", &[("HMMA", 64)]),
    ("grouped_gemm_*_plain_any", &[("LDSM", 40)]),
    ("grouped_gemm_*_gated_any", &[("LDSM", 40)]),
    ("grouped_gemm_*16_dh_any", &[("LDSM", 40)]),
    ("grouped_gemm_*16_nn_any", &[("LDSM", 40)]),
    ("grouped_gemm_*16_tn_any", &[("LDSM", 40)]),
    ("grouped_gemm_tf32_nn_f16_weights_any", &[("LDSM", 36)]),
    ("grouped_gemm_tf32_tn_f16_rows_any", &[("LDSM", 4), ("LDS", 130)]),
    ("grouped_gemm_tf32_tn_f16_left_any", &[("LDSM", 16), ("LDS", 34)]),
];

/// Threads of a block, bytes of shared memory that are asked for at the launch, and the blocks that a multiprocessor is
/// to hold at once.
const OCCUPANCY: &[(&str, u32, u32, u32)] = &[
    ("importance_query_key_*", 128, 0, 2),
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

/// Machine code that has to be there; PTX is code for every later architecture. Of kernels for Hopper alone there is only
/// the last.
const MACHINES: [&str; 2] = ["sm_80", "sm_90a"];

/// The machines that an image has code for.
fn machines(image: &Image) -> &'static [&'static str] {
    match image.architecture {
        Architecture::Portable => &MACHINES,
        Architecture::Hopper => &MACHINES[1..],
    }
}

/// Whether an instruction is one of some families, `LDG` or `LDGSTS`, on 128 bits.
fn is_wide(instruction: &Instruction, families: &[&str]) -> bool {
    families.contains(&instruction.family()) && instruction.has("128")
}

/// Whether an instruction may add floating-point numbers in the order of arrival: an atomic on such a type, or the
/// compare-and-swap that the compiler makes one of where memory has none (shared f32, f64).
fn is_unordered(opcode: &str) -> bool {
    // Among them `F16x2`, `BF16_V2` and `CAST`.
    let is_such = |part: &str| ["F16", "BF16", "F32", "F64", "CAS"].iter().any(|start| part.starts_with(start));
    ["ATOM", "ATOMG", "ATOMS", "RED", "REDG", "REDS", "UTMAREDG", "UBLKRED"].contains(&family(opcode))
        && opcode.split('.').any(is_such)
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
fn every_image_has_code_for_its_machines() {
    let Some((images, program)) = readable_images() else { return };
    let architectures = images.iter().map(|image| image.architecture);
    assert!(architectures.clone().any(|architecture| architecture == Architecture::Hopper));
    assert!(architectures.clone().any(|architecture| architecture == Architecture::Portable));
    for image in images {
        let files = cuobjdump(&program, "-lelf", image);
        for machine in MACHINES {
            let (found, wanted) = (files.contains(&format!(".{machine}.cubin")), machines(image).contains(&machine));
            assert_eq!(found, wanted, "code of {} for {machine}:\n{files}", image.name);
        }
        let files = cuobjdump(&program, "-lptx", image);
        let (found, wanted) = (files.contains(".ptx"), image.architecture == Architecture::Portable);
        assert_eq!(found, wanted, "PTX of {}:\n{files}", image.name);
        assert_eq!(files.contains(".sm_80.ptx"), wanted, "PTX of {} for every later GPU:\n{files}", image.name);
    }
}

#[test]
fn every_kernel_is_compiled_for_the_machines_of_its_image() {
    for image in images().unwrap_or_default() {
        let all = resources(image.ptxas);
        let kernels = |machine: &str| -> BTreeSet<&str> {
            let of_machine = all.iter().filter(|entry| entry.registers.is_some() && entry.machine == machine);
            of_machine.map(|entry| entry.kernel.as_str()).collect()
        };
        let every = kernels("sm_90a");
        assert!(!every.is_empty(), "{} has no kernels", image.name);
        for machine in MACHINES {
            let wanted = if machines(image).contains(&machine) { every.clone() } else { BTreeSet::new() };
            assert_eq!(kernels(machine), wanted, "kernels of {} for {machine}", image.name);
        }
    }
}

#[test]
fn nothing_is_in_local_memory() {
    let Some(all) = machine_code() else { return };
    let machines: BTreeSet<&str> = all.iter().map(|code| code.machine.as_str()).collect();
    assert_eq!(machines, BTreeSet::from(MACHINES), "machines with kernels");
    for Listing { kernel, machine, instructions } in all {
        assert!(
            instructions.iter().any(|instruction| instruction.opcode == "EXIT"),
            "{kernel}: no machine code that is understood"
        );
        let local = instructions.iter().filter(|instruction| ["LDL", "STL"].contains(&instruction.family())).count();
        assert_eq!(local, 0, "accesses to local memory in {kernel} on {machine}");
    }
}

#[test]
fn no_floating_point_atomics() {
    let Some(all) = machine_code() else { return };
    for Listing { kernel, machine, instructions } in all {
        let unordered = instructions.iter().find(|instruction| is_unordered(&instruction.opcode));
        assert_eq!(unordered, None, "{kernel} on {machine}");
    }
    // The counts of the gate, at least, are atomics that are none of those.
    assert!(all.iter().flat_map(|code| &code.instructions).any(|instruction| instruction.family() == "ATOMS"));
}

/// Whether all that a kernel writes is written by the tensor memory accelerator.
pub(super) fn leaves_by_tma(kernel: &str) -> bool {
    kernel.contains("_tn_") && kernel.contains("hopper")
}

#[test]
fn wide_kernels_are_wide() {
    let Some(all) = machine_code() else { return };
    // A copy that goes past the registers into shared memory is a load too.
    let tables = [(WIDE_LOADS, &["LDG", "LDGSTS"][..], "loads"), (WIDE_STORES, &["STG"], "stores")];
    for (table, families, what) in tables {
        for pattern in table {
            let mut kernels =
                all.iter().filter(|code| matches(&code.kernel, pattern) && !leaves_by_tma(&code.kernel)).peekable();
            assert!(kernels.peek().is_some(), "no kernel is named `{pattern}`");
            for Listing { kernel, machine, instructions } in kernels {
                let wide = instructions.iter().any(|instruction| is_wide(instruction, families));
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
        for (Listing { kernel, machine, instructions }, (wanted, least)) in
            kernels.flat_map(|code| wanted.iter().map(move |wanted| (code, wanted)))
        {
            let count = instructions.iter().filter(|instruction| instruction.family() == *wanted).count();
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
    let all = listings(text);
    assert_eq!((all[0].kernel.as_str(), all[0].machine.as_str()), ("gate", "sm_80"));
    let [load, store, exit] = &all[0].instructions[..] else { panic!("{:?}", all[0].instructions) };
    assert_eq!((load.address, load.predicate.as_str(), load.opcode.as_str()), (0, "!P0", "LDG.E.128.CONSTANT"));
    assert_eq!((load.register(0), load.names(2), load.names(64), exit.family()), (Some(8), true, false, "EXIT"));
    assert!(is_wide(load, &["LDG", "LDGSTS"]) && !is_wide(load, &["STG"]) && !is_wide(store, &["STL"]));
    for found in
        ["RED.E.ADD.F32.FTZ.RN.STRONG.GPU", "ATOMG.E.ADD.F16x2.RN.STRONG.GPU", "ATOMS.CAST.SPIN.64", "REDG.E.ADD.F64"]
    {
        assert!(is_unordered(found), "{found}");
    }
    assert!(!["ATOMS.POPC.INC.32", "RED.E.ADD.STRONG.GPU", "REDUX.SUM.S32", "FADD.F32"].into_iter().any(is_unordered));
    assert!(matches("combine_f32_wide", "combine_*_wide") && matches("gate", "gate") && !matches("gate_32", "gate"));
    assert!(!matches("a_b", "a_*_b") && !matches("combine_wide_f32", "*_wide"));
}
