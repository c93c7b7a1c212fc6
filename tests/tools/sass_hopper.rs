//! What ptxas made of Hopper's products (`kernels/experts/hopper`): main loops of nothing but what a step needs, operands of `wgmma`
//! from uniform registers, copies as many as planned, and no more registers than warps have after they are moved.
//! A kernel that lost this still computes the right numbers, so no other test would notice.
//!
//! Without compiled kernels, or without `cuobjdump` to read them, one line on standard error says that nothing was
//! checked; with `DA_MOE_CUDA=1` that is a failure.

use super::instructions::{Instruction, Listing, listings, machine_code, matches};

/// The kernels, how many, and whether rows of A are gathered by threads.
const KERNELS: [(&str, usize, bool); 2] =
    [("grouped_gemm_*_gathered_hopper", 4, true), ("grouped_gemm_*_packed_hopper", 4, false)];

/// Registers that multiplying threads have, and instructions that a warp of theirs issues for a step, at most.
const MULTIPLYING: [(u32, usize); 2] = [(224, 80), (232, 80)];

/// Instructions that a warp issues for a step that brings it, at most. Packed rows are brought by one thread.
const BRINGING: usize = 120;

fn of_hopper<'a>(
    all: &'a [Listing],
    (pattern, count, _): (&'a str, usize, bool),
) -> impl Iterator<Item = &'a Listing> + use<'a> {
    let found: Vec<_> = all.iter().filter(|code| matches(&code.kernel, pattern)).collect();
    assert_eq!(found.len(), count, "kernels named {pattern}, each for one machine");
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
    for (kernels, (registers, most)) in KERNELS.into_iter().zip(MULTIPLYING) {
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
            }
            let what = |family, wanted| assert_eq!(count(body, family), wanted, "{family} in a step of {kernel}");
            // The loop asks whether a step is full, waits for the one before, and says that it is free again.
            [("WARPGROUP", 2), ("SYNCS", 2)].into_iter().for_each(|(family, wanted)| what(family, wanted));
            let never = ["LDS", "STS", "LDSM", "STSM", "BAR", "ERRBAR", "CCTL", "LDG", "STG"];
            never.into_iter().for_each(|family| what(family, 0));
            let global = body.iter().find(|instruction| instruction.opcode == "MEMBAR.ALL.GPU");
            assert_eq!(global, None, "{kernel} waits for all of memory in every step");
            // What threads have copied is read through another proxy.
            what("FENCE", usize::from(kernels.2));
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
        let is_gathered = kernels.2;
        for Listing { kernel, instructions, .. } in of_hopper(all, kernels) {
            let multicast =
                |instruction: &&Instruction| instruction.family() == "UTMALDG" && instruction.has("MULTICAST");
            assert_eq!(instructions.iter().filter(multicast).count(), 1, "{kernel}: weights are fetched once for two");
            assert_eq!(count(instructions, "UTMALDG"), if is_gathered { 1 } else { 2 }, "{kernel}");
            assert_eq!(count(instructions, "LDGSTS"), if is_gathered { 8 } else { 0 }, "{kernel}");
            let narrow = |instruction: &&Instruction| instruction.family() == "LDGSTS" && !instruction.has("128");
            assert_eq!(instructions.iter().find(narrow), None, "{kernel}");
            assert_eq!(count(instructions, "USETMAXREG"), 2, "{kernel}");
            if is_gathered {
                let body = innermost(instructions, "LDGSTS").unwrap_or_else(|| panic!("{kernel}: no loop of copies"));
                let issued = body.iter().filter(|instruction| !instruction.never_runs()).count();
                assert!(count(body, "LDGSTS") == 8 && issued <= BRINGING, "{kernel}: {issued} instructions a step");
                assert_eq!(count(body, "LDG") + count(body, "BAR"), 0, "{kernel}");
            }
        }
    }
}

#[test]
fn whole_rows_leave_by_the_accelerator() {
    let Some(all) = machine_code() else { return };
    for kernels in KERNELS {
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
