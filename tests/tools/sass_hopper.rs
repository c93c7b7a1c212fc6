//! What ptxas made of Hopper's products (`kernels/experts/hopper`): main loops of nothing but what a step needs, operands of `wgmma`
//! from uniform registers, copies as many as planned, and no more registers than warps have after they are moved.
//! A kernel that lost this still computes the right numbers, so no other test would notice.
//!
//! Without compiled kernels, or without `cuobjdump` to read them, one line on standard error says that nothing was
//! checked; with `DA_MOE_CUDA=1` that is a failure.

use super::instructions::{Instruction, Listing, listings, machine_code, matches};

/// Some kernels, and what they are made of.
#[derive(Clone, Copy)]
struct Kernels {
    named: &'static str,
    count: usize,
    /// Registers that multiplying threads have; instructions of a warp of theirs for a step, at most.
    registers: u32,
    multiplying: usize,
    /// Instructions of a warp that brings a step, at most; none where one thread brings it.
    bringing: Option<usize>,
    /// Copies of 16 bytes by a thread for a step, and for one that is filled up with zeros; boxes of multicast, and all that are loaded.
    copies: usize,
    last_copies: usize,
    /// Tokens that a thread looks up in a step.
    looked_up: usize,
    multicasts: usize,
    boxes: usize,
    /// Operands of `wgmma` that run across the depth, as its words say.
    across: &'static [&'static str],
}

const GATHERED: Kernels = Kernels {
    named: "grouped_gemm_*_gathered_hopper",
    count: 4,
    registers: 224,
    multiplying: 80,
    bringing: Some(120),
    copies: 8,
    last_copies: 0,
    looked_up: 0,
    multicasts: 1,
    boxes: 1,
    across: &[],
};
const PACKED: Kernels =
    Kernels { named: "grouped_gemm_*_packed_hopper", registers: 232, bringing: None, copies: 0, boxes: 2, ..GATHERED };
/// Weights across their rows are two boxes for each block.
const DX: Kernels = Kernels {
    named: "grouped_gemm_*_nn_hopper",
    count: 1,
    multiplying: 90,
    multicasts: 2,
    boxes: 3,
    across: &["tnspB"],
    ..PACKED
};
/// `h` comes for the first columns of a unit, and for the next three times.
const DH_PLAIN: Kernels = Kernels {
    named: "grouped_gemm_*_dh_plain_hopper",
    count: 1,
    multiplying: 90,
    bringing: Some(130),
    multicasts: 2,
    boxes: 2 + 4,
    across: &["tnspB"],
    ..GATHERED
};
const DH_GATED: Kernels = Kernels { named: "grouped_gemm_*_dh_gated_hopper", boxes: 2 + 2 * 4, ..DH_PLAIN };
const DW_OUT: Kernels = Kernels {
    named: "grouped_gemm_*_tn_hopper",
    count: 1,
    multiplying: 95,
    bringing: Some(230),
    last_copies: 4,
    looked_up: 1,
    multicasts: 2,
    boxes: 2,
    across: &["tnspA", "tnspB"],
    ..GATHERED
};
const DW_IN: Kernels = Kernels { named: "grouped_gemm_*_tn_turned_hopper", ..DW_OUT };
const KERNELS: [Kernels; 7] = [GATHERED, PACKED, DX, DH_PLAIN, DH_GATED, DW_OUT, DW_IN];

fn of_hopper(all: &[Listing], kernels: Kernels) -> impl Iterator<Item = &Listing> {
    let Kernels { named, count, .. } = kernels;
    let found: Vec<_> =
        all.iter().filter(|code| matches(&code.kernel, named) && !code.kernel.ends_with("_clocked")).collect();
    assert_eq!(found.len(), count, "kernels named {named}, each for one machine");
    found.into_iter().inspect(|code| assert_eq!(code.machine, "sm_90a", "{}", code.kernel))
}

fn count(code: &[Instruction], family: &str) -> usize {
    code.iter().filter(|instruction| instruction.family() == family && !instruction.never_runs()).count()
}

/// The shortest stretch from where a jump goes back to the jump, that has an instruction of a family: an innermost loop.
fn innermost<'a>(code: &'a [Instruction], family: &str) -> Option<&'a [Instruction]> {
    let loops = code.iter().enumerate().filter_map(|(end, jump)| {
        let target = jump.target()?;
        // In the order of their addresses.
        let start = code.binary_search_by_key(&target, |instruction| instruction.address).ok()?;
        (start <= end).then(|| &code[start..=end])
    });
    loops.filter(|body| count(body, family) > 0).min_by_key(|body| body.len())
}

#[test]
fn a_step_is_four_products_and_what_they_wait_for() {
    let Some(all) = machine_code() else { return };
    for kernels in KERNELS {
        let (registers, most) = (kernels.registers, kernels.multiplying);
        for Listing { kernel, instructions, .. } in of_hopper(all, kernels) {
            let body = innermost(instructions, "HGMMA").unwrap_or_else(|| panic!("{kernel}: no loop of products"));
            let products: Vec<_> = body.iter().filter(|instruction| instruction.family() == "HGMMA").collect();
            assert_eq!(products.len(), 4, "{kernel}: {products:?}");
            for product in &products {
                // Both operands by descriptors in uniform registers, to accumulators that stay where they are.
                assert!(
                    product.has("64x256x16") && product.operands[1].starts_with("gdesc[UR"),
                    "{kernel}: {product:?}"
                );
                assert_eq!(product.register(0), product.register(2), "{kernel}: {product:?}");
                let across: Vec<_> =
                    ["tnspA", "tnspB"].into_iter().filter(|side| product.operands[1].contains(side)).collect();
                assert_eq!(across, kernels.across, "{kernel}: {product:?}");
            }
            let what = |family, wanted| assert_eq!(count(body, family), wanted, "{family} in a step of {kernel}");
            // The loop asks whether a step is full, waits for the one before, and says that it is free again.
            [("WARPGROUP", 2), ("SYNCS", 2)].into_iter().for_each(|(family, wanted)| what(family, wanted));
            let never = ["LDS", "STS", "LDSM", "STSM", "BAR", "ERRBAR", "CCTL", "LDG", "STG"];
            never.into_iter().for_each(|family| what(family, 0));
            let global = body.iter().find(|instruction| instruction.opcode == "MEMBAR.ALL.GPU");
            assert_eq!(global, None, "{kernel} waits for all of memory in every step");
            // What threads have copied is read through another proxy.
            what("FENCE", usize::from(kernels.bringing.is_some()));
            assert!(body.len() <= most, "{kernel}: {} instructions a step", body.len());
            let highest = instructions.iter().flat_map(|instruction| (0..4).filter_map(|at| instruction.register(at)));
            assert!(highest.max() < Some(registers), "{kernel} has registers beyond {registers}");
        }
    }
}

#[test]
fn the_first_products_of_a_unit_only_write() {
    let Some(all) = machine_code() else { return };
    for kernels in KERNELS {
        for Listing { kernel, instructions, .. } in of_hopper(all, kernels) {
            let products: Vec<_> = instructions.iter().filter(|instruction| instruction.family() == "HGMMA").collect();
            assert_eq!(products.len(), 8, "{kernel}: four before the loop and four in it");
            let first = products.iter().filter(|product| product.operands[2] == "RZ").count();
            assert_eq!((first, products[0].operands[2].as_str()), (1, "RZ"), "{kernel}");
        }
    }
}

#[test]
fn steps_are_brought_as_planned() {
    let Some(all) = machine_code() else { return };
    for kernels in KERNELS {
        for Listing { kernel, instructions, .. } in of_hopper(all, kernels) {
            let multicast =
                |instruction: &&Instruction| instruction.family() == "UTMALDG" && instruction.has("MULTICAST");
            let found = instructions.iter().filter(multicast).count();
            assert_eq!(found, kernels.multicasts, "{kernel}: weights are fetched once for two");
            assert_eq!(count(instructions, "UTMALDG"), kernels.boxes, "{kernel}");
            assert_eq!(count(instructions, "LDGSTS"), kernels.copies + kernels.last_copies, "{kernel}");
            let narrow = |instruction: &&Instruction| instruction.family() == "LDGSTS" && !instruction.has("128");
            assert_eq!(instructions.iter().find(narrow), None, "{kernel}");
            assert_eq!(count(instructions, "USETMAXREG"), 2, "{kernel}");
            if let Some(most) = kernels.bringing {
                // Whoever copies a step arrives for it.
                let body = innermost(instructions, "ARRIVES").unwrap_or_else(|| panic!("{kernel}: no loop of copies"));
                let issued = |body: &[Instruction]| body.iter().filter(|instruction| !instruction.never_runs()).count();
                // The loop that fills up the last step does not run in others.
                let last = innermost(body, "LDGSTS").filter(|_| kernels.last_copies > 0).map_or(0, issued);
                let of_step = issued(body) - last;
                assert_eq!(count(body, "LDGSTS"), kernels.copies + kernels.last_copies, "{kernel}");
                assert!(of_step <= most, "{kernel}: {of_step} instructions a step");
                assert_eq!([count(body, "LDG"), count(body, "BAR")], [kernels.looked_up, 0], "{kernel}");
            }
        }
    }
}

#[test]
fn whole_rows_leave_by_the_accelerator() {
    let Some(all) = machine_code() else { return };
    for kernels in [GATHERED, PACKED] {
        for Listing { kernel, instructions, .. } in of_hopper(all, kernels) {
            let is_gated = kernel.contains("_gated_");
            // Four spans of columns, or two of both halves; h is kept in one of two types, and where there is one half rows may
            // leave in f32: an activated plane, one or two of h, and two for each in f32.
            let (spans, planes) = if is_gated { (2, 1 + 2 + 4) } else { (4, 1 + 2 + 1 + 2) };
            assert_eq!(count(instructions, "UTMASTG"), spans * planes, "{kernel}");
            assert_eq!(count(instructions, "STSM"), spans * 4 * if is_gated { 3 } else { 2 }, "{kernel}");
        }
    }
}

/// On the way back: dx as forward's plain rows; dh of one or two halves and g·a for each of four spans; a gradient's plane of each span, as it
/// is, or in two of f32 that may be added, and the same of zeros, which are not.
#[test]
fn gradients_leave_by_the_accelerator() {
    let Some(all) = machine_code() else { return };
    let of_weight = (2 * 4 * 3, 4 * 2);
    let planes = [
        (DX, 4 * (1 + 2 + 1 + 2), 0),
        (DH_PLAIN, 4 * 2, 0),
        (DH_GATED, 4 * 3, 0),
        (DW_OUT, of_weight.0, of_weight.1),
        (DW_IN, of_weight.0, of_weight.1),
    ];
    for (kernels, stored, added) in planes {
        for Listing { kernel, instructions, .. } in of_hopper(all, kernels) {
            assert_eq!(count(instructions, "UTMASTG"), stored, "{kernel}");
            assert_eq!(count(instructions, "UTMAREDG"), added, "{kernel}");
        }
    }
}

#[test]
fn loops_are_understood() {
    let text = "
\tcode for sm_90a
\t\tFunction : product
        /*0000*/                   HGMMA.64x256x16.F32.BF16 R24, gdesc[UR20], RZ, !UPT ;
        /*0010*/                   NOP ;
        /*0020*/              @!P0 SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R2+URZ+0x38000], R3 ;
        /*0030*/                   HGMMA.64x256x16.F32.BF16 R24, gdesc[UR20], R24, gsb0 ;
        /*0040*/              @!PT LDS RZ, [RZ] ;
        /*0050*/              @!P0 BRA 0x20 ;
        /*0060*/                   BRA 0x0 ;
";
    let code = &listings(text)[0].instructions;
    let body = innermost(code, "HGMMA").expect("a loop");
    assert_eq!((body.len(), count(body, "HGMMA"), count(body, "LDS")), (4, 1, 0));
    assert_eq!((body[1].register(0), body[1].register(2), code[0].register(2)), (Some(24), Some(24), None));
    assert!(innermost(code, "LDGSTS").is_none());
}
